"""Segment regeneration: a negative is the good answer with a part of it written anew by a model.

Self-Augmented Preference Optimization (SAPO, arXiv 2405.20830): cut the good answer y into A, B, C; a model continues
prompt + A and writes B'; the negative is A + B' + C, or A + B' if B' ends the turn. Other work shares that acronym
(Soft Adaptive Policy Optimization, 2511.20347), hence the plain name.

What is regenerated is one rule of `RULES`: it turns an answer's length into a `Cut`. Everything after it (requests,
splicing, redraws) works on cuts alone, so a further mode is one more function here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prefdata.records import SetAside

LONGEST_SEGMENT = 256
PAPER_PROMPT_TOKENS = 1792
PAPER_TOTAL_TOKENS = 2048
PAPER_KEPT_TAIL = 3


@dataclass(frozen=True)
class Answer:
    """What a rule may look at, in tokens. `content_start`: tokens the template puts before the answer's text."""

    prompt_tokens: int
    tokens: int
    content_start: int
    max_length: int


@dataclass(frozen=True)
class Cut:
    """Half-open offsets into the good answer: A = y[:start], B = y[start:source_end], C = y[source_end:].

    `new_tokens` bounds what the model may write; `keeps_rest` says whether C follows B' when B' does not end the turn.
    """

    start: int
    source_end: int
    new_tokens: int
    keeps_rest: bool


@dataclass(frozen=True)
class Negative:
    """A spliced negative and where B' stands in it: B' = ids[segment_start:segment_end]."""

    ids: list[int]
    segment_start: int
    segment_end: int
    segment_source_end: int
    ended_early: bool


Rule = Callable[[Answer, int | None, np.random.Generator], Cut | SetAside]


def auto_segment_tokens(tokens: int) -> int:
    """min(256, ceil(L / 3)) for an answer of L tokens."""
    return min(LONGEST_SEGMENT, math.ceil(tokens / 3))


def segment(answer: Answer, segment_tokens: int | None, rng: np.random.Generator) -> Cut | SetAside:
    """A segment of g tokens at a place drawn uniformly from every place where it fits; the rest is kept."""
    cut = _uniform_cut(answer, segment_tokens, rng)
    if isinstance(cut, SetAside):
        return cut
    start, length = cut
    return Cut(start, start + length, length, keeps_rest=True)


def suffix(answer: Answer, segment_tokens: int | None, rng: np.random.Generator) -> Cut | SetAside:
    """Everything after a place drawn as for `segment`, so at least g tokens are written anew."""
    cut = _uniform_cut(answer, segment_tokens, rng)
    if isinstance(cut, SetAside):
        return cut
    return _rest_from(answer, cut[0])


def full(answer: Answer, segment_tokens: int | None, rng: np.random.Generator) -> Cut | SetAside:
    """The whole answer (what the template puts before its text stays)."""
    if answer.tokens <= answer.content_start:
        return _nothing(answer)
    return _rest_from(answer, answer.content_start)


def paper(answer: Answer, segment_tokens: int | None, rng: np.random.Generator) -> Cut | SetAside:
    """The paper's algorithm as its authors' code runs it.

    g = min(256, L); the cut is uniform on 0..min(L - 3 - g, 2048 - min(P, 1792) - g) when L - 3 - g is positive and 0
    otherwise, so an answer of up to 259 tokens starts at 0 and one of up to 256 is regenerated whole. Departure: a
    prompt over 1792 tokens is set aside here, where the authors cut it. Offsets count from the answer's first content
    token, since their cut may fall inside the template's header.
    """
    if answer.prompt_tokens > PAPER_PROMPT_TOKENS:
        found = f"{answer.prompt_tokens} prompt tokens; the paper's limit is {PAPER_PROMPT_TOKENS}"
        return SetAside("prompt_too_long", found)
    tokens = answer.tokens - answer.content_start
    if tokens < 1:
        return _nothing(answer)
    length = min(segment_tokens or LONGEST_SEGMENT, tokens)
    last = min(tokens - PAPER_KEPT_TAIL - length, PAPER_TOTAL_TOKENS - answer.prompt_tokens - length)
    start = answer.content_start + (int(rng.integers(0, last + 1)) if last > 0 else 0)
    return Cut(start, start + length, length, keeps_rest=True)


RULES: dict[str, Rule] = {"segment": segment, "suffix": suffix, "full": full, "paper": paper}


def splice(answer_ids: Sequence[int], cut: Cut, new_ids: Sequence[int], end_ids: Sequence[int]) -> Negative:
    """Put B' in B's place. Where B' holds an end-of-turn id, it is kept up to that id and C is dropped."""
    new = list(new_ids)
    end = next((number for number, token in enumerate(new) if token in end_ids), None)
    if end is not None:
        new = new[: end + 1]
    kept = list(answer_ids[cut.source_end :]) if cut.keeps_rest and end is None else []
    ids = [*answer_ids[: cut.start], *new, *kept]
    ended_early = end is not None and cut.source_end < len(answer_ids)
    return Negative(ids, cut.start, cut.start + len(new), cut.source_end, ended_early)


def unchanged(answer_ids: Sequence[int], negative: Negative) -> bool:
    """Whether the redrawn part gave the good answer back."""
    return list(answer_ids) == negative.ids


def _uniform_cut(answer: Answer, segment_tokens: int | None, rng: np.random.Generator) -> tuple[int, int] | SetAside:
    tokens = answer.tokens - answer.content_start
    if tokens < 1:
        return _nothing(answer)
    length = min(segment_tokens or auto_segment_tokens(tokens), tokens)
    return answer.content_start + int(rng.integers(0, tokens - length + 1)), length


def _rest_from(answer: Answer, start: int) -> Cut:
    """Up to twice the replaced length (at least 64 tokens), within the length limit."""
    replaced = answer.tokens - start
    room = answer.max_length - answer.prompt_tokens - start
    return Cut(start, answer.tokens, max(1, min(room, max(2 * replaced, 64))), keeps_rest=False)


def _nothing(answer: Answer) -> SetAside:
    return SetAside("nothing_to_regenerate", f"{answer.tokens} tokens, {answer.content_start} of them the template's")
