"""The shortcut probe: how well something shallow alone tells which side of a pair is the better one.

If length, format or a bag of words is enough, a model can learn that instead of what was preferred. Each pair is one
row of differences, better side - worse side, so that swapping the sides only flips its sign: a logistic regression
without an intercept reads it the same either way. Its scores come from folds that share no prompt with what it was
fitted on, nor an answer. Pure; NumPy only.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]

TELLS = 0.65  # an AUC above this is a shortcut worth a warning
FEWEST_GROUPS = 100  # with fewer, noise alone is taken for a shortcut in one of ten probes
STOCK = 0.1  # an answer in more of the pairs than this share is a habit, not a copy
FOLDS = 5
MOST_WORDS = 1000
LEAST_PAIRS_WITH_WORD = 5
MOST_CHARACTERS = 20_000  # of a text that are looked at
SHOWN_WORDS = 5
_PENALTY = 1.0  # of the squared weights, against losses that are summed
_Z95 = 1.96

# scripts that put no space between words are read sign by sign
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")


@dataclass(frozen=True)
class Auc:
    """How often the score of a pair shown the right way round is above that of one shown the wrong way round."""

    value: float  # 0.5: not at all
    low: float  # 95 % confidence interval, pairs of a group counted together
    high: float

    @property
    def tells(self) -> bool:
        """Whether it is a shortcut, and not by chance."""
        return self.value > TELLS and self.low > 0.5


@dataclass(frozen=True)
class Finding:
    """What one kind of feature alone gives away."""

    auc: Auc | None  # None: too few groups to tell
    right: float | None  # share of pairs whose better side is guessed, ties counting half
    pairs: int
    groups: int
    better: tuple[str, ...] = ()  # what speaks for the better side most, then second most, ...
    worse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Features:
    """Differences of features, better side - worse side: (pairs, features), with a name for each column."""

    names: Sequence[str]
    differences: Numbers


# -- the probe -----------------------------------------------------------------------------------------------------


def probe(features: Features, groups: Sequence[str], *, seed: int = 0) -> Finding:
    """Cross-validated, with all pairs of a group (see `joined`) in one fold."""
    x = np.asarray(features.differences, dtype=np.float64)
    number_of = {group: number for number, group in enumerate(sorted(set(groups)))}
    numbers = np.array([number_of[group] for group in groups], dtype=np.int64)
    if len(number_of) < FEWEST_GROUPS:
        return Finding(None, None, len(x), len(number_of))
    scores = held_out_scores(x, numbers, seed)
    right = float((scores > 0).mean() + (scores == 0).mean() / 2)
    better, worse = _loudest(features.names, fit(x))
    return Finding(auc(scores, numbers), right, len(x), len(number_of), better, worse)


def joined(prompts: Sequence[str], *answers: Sequence[Hashable]) -> list[str]:
    """The group of each pair: pairs that share their prompt or an answer are in one, and so are those that these lead to.

    Each of `answers` is a side, one answer per pair. A group is named for its first prompt by name. An answer that stands
    in more than `STOCK` of the pairs joins none: it would leave a single group, and is itself what should be found.
    """
    leader = {prompt: prompt for prompt in prompts}

    def lead(prompt: str) -> str:
        while leader[prompt] != prompt:
            leader[prompt] = prompt = leader[leader[prompt]]
        return prompt

    often = Counter(answer for side in answers for answer in side)
    first: dict[Hashable, str] = {}
    for side in answers:
        for prompt, answer in zip(prompts, side, strict=True):
            if often[answer] <= max(1, STOCK * len(prompts)):
                one, other = sorted((lead(prompt), lead(first.setdefault(answer, prompt))))
                leader[other] = one
    return [lead(prompt) for prompt in prompts]


def held_out_scores(x: Numbers, groups: Numbers, seed: int) -> Numbers:
    """(pairs,) scores, each from weights fitted without its own group; above 0: the better side is guessed."""
    folds = np.random.default_rng(seed).permutation(groups.max() + 1)[groups] % FOLDS
    scores = np.zeros(len(x))
    for fold in range(FOLDS):
        inside = folds == fold
        scores[inside] = x[inside] @ fit(x[~inside])
    return scores


def auc(scores: Numbers, groups: Numbers) -> Auc:
    """Of scores whose sign flips with the sides: the share of two draws i, j with scores[i] > -scores[j].

    Its error is that of the one-sample rank statistic, from the sums of its influences within groups.
    """
    n = len(scores)
    flipped = np.sort(-scores)
    below = np.searchsorted(flipped, scores, "left")
    not_above = np.searchsorted(flipped, scores, "right")
    wins = (below + not_above) / (2 * n)  # of each score, against every flipped one; ties count half
    value = float(wins.mean())
    by_group = np.bincount(groups, weights=wins - value)
    error = 2 * math.sqrt(float((by_group**2).sum())) / n
    return Auc(value, max(0.0, value - _Z95 * error), min(1.0, value + _Z95 * error))


def fit(x: Numbers) -> Numbers:
    """(features,) weights of the penalised logistic regression that gives every row of differences a high score.

    Minimises sum softplus(-x w) + penalty |w|^2 / 2, which is strictly convex: Newton's method, each step by conjugate
    gradients and halved until the loss falls.
    """
    w = np.zeros(x.shape[1])
    for _ in range(30):
        miss = _sigmoid(-(x @ w))
        gradient = _PENALTY * w - x.T @ miss
        if float(gradient @ gradient) <= 1e-8 * len(x):
            break
        step = _conjugate_gradients(x, miss * (1 - miss), -gradient)
        w = w + _shortened(x, w, step) * step
    return w


def _loss(x: Numbers, w: Numbers) -> float:
    return float(np.logaddexp(0, -(x @ w)).sum() + _PENALTY * (w @ w) / 2)


def _shortened(x: Numbers, w: Numbers, step: Numbers) -> float:
    before, size = _loss(x, w), 1.0
    while size > 1e-4 and _loss(x, w + size * step) > before:
        size /= 2
    return size


def _conjugate_gradients(x: Numbers, weights: Numbers, right: Numbers, rounds: int = 30) -> Numbers:
    """Solves (penalty + x' weights x) step = right, closely enough for a Newton step."""
    step, residual = np.zeros_like(right), right.copy()
    direction, size = right.copy(), float(right @ right)
    enough = 1e-4 * size
    for _ in range(rounds):
        if size <= enough:
            break
        curved = _PENALTY * direction + x.T @ (weights * (x @ direction))
        length = size / float(direction @ curved)
        step += length * direction
        residual -= length * curved
        shrunk = float(residual @ residual)
        direction = residual + (shrunk / size) * direction
        size = shrunk
    return step


def _sigmoid(z: Numbers) -> Numbers:
    return 0.5 * (1 + np.tanh(z / 2))


def _loudest(names: Sequence[str], w: Numbers) -> tuple[tuple[str, ...], tuple[str, ...]]:
    order = np.argsort(-w, kind="stable")
    better = tuple(names[i] for i in order[:SHOWN_WORDS] if w[i] > 1e-6)
    worse = tuple(names[i] for i in order[::-1][:SHOWN_WORDS] if w[i] < -1e-6)
    return better, worse


# -- features ------------------------------------------------------------------------------------------------------


def lengths(better: Iterable[int], worse: Iterable[int]) -> Features:
    """Length in tokens, as a logarithm: nothing but which side is longer, and how many times."""
    return _scaled(["longer"], np.log1p([*better])[:, None] - np.log1p([*worse])[:, None])


def formats(better: Sequence[str], worse: Sequence[str]) -> Features:
    """How texts are laid out: lists, headings, code, punctuation, capitals; as presence or per character."""
    return _scaled(list(_FORMAT), np.array([_format(text) for text in better]) - [_format(text) for text in worse])


def words(better: Sequence[str], worse: Sequence[str]) -> Features:
    """Which words a side holds, whatever their order: the `MOST_WORDS` that most pairs hold."""
    return bags([_words(text) for text in better], [_words(text) for text in worse])


def bags(better: Sequence[set[str]], worse: Sequence[set[str]]) -> Features:
    """The same of sets of anything that has a name. What both sides hold, or neither, is 0."""
    told: Counter[str] = Counter()
    for one, other in zip(better, worse, strict=True):
        told.update(one ^ other)
    names = [name for name, pairs in told.most_common(MOST_WORDS) if pairs >= LEAST_PAIRS_WITH_WORD]
    column = {name: number for number, name in enumerate(names)}
    differences = np.zeros((len(better), len(names)))
    for row, (one, other) in enumerate(zip(better, worse, strict=True)):
        differences[row, [column[name] for name in one - other if name in column]] = 1
        differences[row, [column[name] for name in other - one if name in column]] = -1
    return Features(names, differences)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text[:MOST_CHARACTERS].lower()))


def _scaled(names: Sequence[str], differences: Numbers) -> Features:
    """Columns of size 1. Their means stay: they are what is looked for."""
    size = np.sqrt((differences**2).mean(axis=0)) if len(differences) else np.ones(len(names))
    return Features(names, differences / np.where(size > 0, size, 1))


def _has(pattern: str) -> Callable[[str], float]:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda text: float(compiled.search(text) is not None)


def _per_character(pattern: str) -> Callable[[str], float]:
    compiled = re.compile(pattern)
    return lambda text: sum(1 for _ in compiled.finditer(text)) / max(len(text), 1)


_FORMAT: dict[str, Callable[[str], float]] = {
    "bullet list": _has(r"^[ \t]*[-*•+] "),
    "numbered list": _has(r"^[ \t]*\d+[.)] "),
    "heading": _has(r"^#{1,6} "),
    "bold": _has(r"\*\*\S"),
    "code block": _has(r"^[ \t]*```"),
    "inline code": _has(r"`[^`\n]+`"),
    "link": _has(r"https?://|\]\("),
    "table": _has(r"^[ \t]*\|.*\|"),
    "paragraphs": _has(r"\n[ \t]*\n"),
    "ends a sentence": _has(r"[.!?。！？…\"')\]`]\s{0,9}\Z"),
    "begins with a capital": _has(r"\A\s*[A-ZÀ-ÖØ-Þ]"),
    "emoji": _has("[\U0001f300-\U0001faff\u2600-\u27bf]"),
    "line breaks": _per_character(r"\n"),
    "full stops": _per_character(r"[.。]"),
    "commas": _per_character(r"[,，、]"),
    "colons and semicolons": _per_character(r"[:;：；]"),
    "question marks": _per_character(r"[?？]"),
    "exclamation marks": _per_character(r"[!！]"),
    "quotes and brackets": _per_character(r"[\"“”()\[\]]"),
    "digits": _per_character(r"\d"),
    "capitals": _per_character(r"[A-Z]"),
    "not ASCII": _per_character(r"[^\x00-\x7f]"),
}


def _format(text: str) -> list[float]:
    return [measure(text[:MOST_CHARACTERS]) for measure in _FORMAT.values()]
