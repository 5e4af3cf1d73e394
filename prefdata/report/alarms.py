"""Warnings before training, from the numbers that a version stores: what was found, why it matters, what to do.

Pure: stats tables in, alarms out. `Rule` says which number of which table is looked at, and from where on it is told.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from schemas.manifest import Counts
from schemas.stats import HUGE_SUM, POSITIVE_LOGP, UNLIKELY_ANSWER, UNLIKELY_TOKEN

Level = Literal["error", "warning", "note"]
Line = Mapping[str, Any]
Tables = Mapping[str, Sequence[Line]]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
FEWEST_ROWS = 40  # of a split; with fewer a share or a mean above a limit would often be chance


@dataclass(frozen=True)
class Alarm:
    """One thing that a person should know."""

    level: Level
    title: str
    found: str  # with numbers
    advice: str


@dataclass(frozen=True)
class Checked:
    """What was found, worst first, and the names of the checks that found nothing."""

    alarms: tuple[Alarm, ...]
    sound: tuple[str, ...]

    @property
    def serious(self) -> list[Alarm]:
        """Without the notes."""
        return [alarm for alarm in self.alarms if alarm.level != "note"]


@dataclass(frozen=True)
class Rule:
    """A number that should not be above a limit, in every line of a stats table that `where` fits."""

    level: Level
    title: str
    table: str
    value: Callable[[Line], float | None]
    limit: float
    of: str  # what the value counts
    shown: Callable[[float], str]
    advice: str
    where: Mapping[str, str] | None = None
    fewest: int = 1  # rows that a line must be of; counts of errors are told of any

    def look(self, tables: Tables) -> Alarm | str | None:
        """An alarm; its title if nothing is wrong; None if there is nothing to look at."""
        every = tables.get(self.table, ())
        lines = [line for line in every if line["rows"] >= self.fewest and _fits(line, self.where or {})]
        values = [(line, value) for line in lines if (value := self.value(line)) is not None]
        if not values:
            return None
        told = [f"{_place(line)} {self.shown(value)}" for line, value in values if not value <= self.limit]  # NaN too
        return _alarm(self.level, self.title, [f"{self.of}: {', '.join(told)}"] if told else [], self.advice)


def check(tables: Tables, counts: Counts, *, referenced: bool) -> Checked:
    """Every rule that applies."""
    looked = [*(rule.look(tables) for rule in RULES), _ending_differently(tables), _set_aside(counts)]
    looked += [*_labels(tables), *_missing(counts, referenced)]
    alarms = sorted((each for each in looked if isinstance(each, Alarm)), key=lambda each: LEVELS.index(each.level))
    return Checked(tuple(alarms), tuple(each for each in looked if isinstance(each, str)))


def _fits(line: Line, where: Mapping[str, str]) -> bool:
    return all(line[key] == value for key, value in where.items())


def _place(line: Line) -> str:
    return " ".join(str(line[key]) for key in ("split", "side") if line.get(key))


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _column(name: str) -> Callable[[Line], float | None]:
    return lambda line: line.get(name)


def _off_policy_by(line: Line) -> float | None:
    return None if line["mean"] is None else abs(line["mean"])


def _rejected_longer(line: Line) -> float | None:
    return None if line["auc"] is None else 1 - line["auc"]


def _alike(line: Line) -> float | None:
    return None if line["p50"] is None else 1 - line["p50"]


def _share(name: str) -> Callable[[Line], float | None]:
    return lambda line: line[name] / line["rows"] if line["rows"] else None


_SUPPRESSION = (
    "An unlikely rejected side has large gradients, and training turns into pushing it down (arXiv 2406.07327). Make "
    "pairs on-policy, or train with a likelihood term on the chosen side, and watch the chosen log-prob."
)

_LENGTH = (
    "A model can learn to be long (or short) instead of good. Balance lengths, or train with a loss that normalises or "
    "penalises length."
)

RULES: tuple[Rule, ...] = (
    Rule(
        "error",
        "Reference log-probs that are not finite",
        "reference",
        _column("not_finite"),
        0,
        "tokens",
        _count,
        "They would poison every batch they are in: add the reference again with flows.add_reference.",
    ),
    Rule(
        "error",
        "Reference log-probs above zero",
        "reference",
        _column("positive"),
        0,
        "tokens",
        _count,
        f"A log-prob above {POSITIVE_LOGP:g} is no rounding; it was computed or stored wrongly.",
    ),
    Rule(
        "error",
        "Answers without a scored token",
        "lengths",
        lambda line: None if line["side"] == "prompt" else line["empty"],
        0,
        "rows",
        _count,
        "They have no log-prob to compare, and a mean over no tokens is not a number.",
    ),
    Rule(
        "error",
        "Identical pairs",
        "duplicates",
        _column("identical_pairs"),
        0,
        "rows",
        _count,
        "Both sides are the same tokens, so the loss is a constant with no gradient.",
    ),
    Rule(
        "warning",
        "Scores that contradict the label",
        "scores",
        _column("negative"),
        0,
        "rows",
        _count,
        "The chosen side has the lower score. Objectives that read margins (ODPO) refuse or invert such pairs.",
        {"score": "margin"},
    ),
    Rule(
        "warning",
        "The reference prefers the rejected side",
        "reference_margin",
        _column("share_below_zero"),
        0.5,
        "share of pairs",
        percent,
        "More often than not log p_ref(rejected) is above log p_ref(chosen), so training starts against the model's "
        "own taste. Right for corrections; otherwise look whether the sides are swapped.",
        {"unit": "sum"},
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "One side is much less on-policy than the other",
        "reference_margin",
        _off_policy_by,
        0.5,
        "nats per token apart",
        "{:.2f}".format,
        _SUPPRESSION,
        {"unit": "per_token"},
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "Tokens that the reference would hardly write",
        "reference",
        _column("share_unlikely_tokens"),
        0.01,
        "share of tokens",
        percent,
        f"They are below {UNLIKELY_TOKEN:g} nats each. {_SUPPRESSION}",
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "Answers that the reference would hardly write",
        "reference",
        _column("share_unlikely_answers"),
        0.05,
        "share of answers",
        percent,
        f"Their mean is below {UNLIKELY_ANSWER:g} nats per token. {_SUPPRESSION}",
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "Sums that saturate losses",
        "reference",
        _column("huge_sums"),
        0,
        "rows",
        _count,
        f"A summed log-prob below {HUGE_SUM:g} nats: bounded losses have no gradient there, squared ones explode.",
    ),
    Rule(
        "warning",
        "The chosen side is usually the longer one",
        "length_bias",
        _column("auc"),
        0.65,
        "share of pairs, ties counting half",
        percent,
        _LENGTH,
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "The rejected side is usually the longer one",
        "length_bias",
        _rejected_longer,
        0.65,
        "share of pairs, ties counting half",
        percent,
        _LENGTH,
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "Answers cut by length",
        "lengths",
        _column("cut_share"),
        0.05,
        "answers without an end-of-turn token",
        percent,
        "A model trained on them learns not to stop. Raise the length limit, or set such rows aside.",
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "Near-duplicate pairs",
        "similarity",
        _alike,
        0.98,
        "tokens that half of the pairs share at least",
        percent,
        "Very similar sides can pull the chosen log-prob down with the rejected one (arXiv 2410.08847).",
        {"measure": "edit_distance"},
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "warning",
        "Chosen answers that are rejected elsewhere",
        "duplicates",
        _column("chosen_rejected_elsewhere"),
        0,
        "rows",
        _count,
        "The same answer to the same prompt is chosen in one row and rejected in another: contradictory labels.",
    ),
    Rule(
        "warning",
        "Same text in different tokens",
        "duplicates",
        _column("same_text_other_tokens"),
        0,
        "rows",
        _count,
        "The sides read the same and differ only in how they are cut into tokens.",
    ),
    Rule(
        "note",
        "Rows that repeat a prompt and its good answer",
        "duplicates",
        _share("rows_sharing_good_answer"),
        0.1,
        "share of rows",
        percent,
        "Those answers weigh more than others in training. Usual where one answer got several negatives.",
        fewest=FEWEST_ROWS,
    ),
    Rule(
        "note",
        "Ties in score",
        "scores",
        _column("zero"),
        0,
        "rows",
        _count,
        "Both sides have the same score; objectives that read margins get nothing from such pairs.",
        {"score": "margin"},
    ),
)


def _ending_differently(tables: Tables) -> Alarm | str | None:
    """Cut answers on one side only: the missing end token tells the sides apart."""
    title = "One side is cut more often"
    lines = [line for line in tables.get("lengths", ()) if line["rows"] >= FEWEST_ROWS]
    cut = {(line["split"], line["side"]): line["cut_share"] for line in lines}
    gaps = [
        (split, share - cut[split, "rejected"])
        for (split, side), share in cut.items()
        if side == "chosen" and share is not None and cut.get((split, "rejected")) is not None
    ]
    told = [
        f"{split}: the {'chosen' if gap > 0 else 'rejected'} side, by {percent(abs(gap))} of pairs"
        for split, gap in gaps
        if abs(gap) > 0.05
    ]
    advice = "A missing end token alone then tells the sides apart. Set cut answers aside, or sample longer."
    return _alarm("warning", title, told, advice) if gaps else None


def _labels(tables: Tables) -> Iterator[Alarm | str | None]:
    """Unpaired rows: how the labels are balanced, and whether length tells them apart."""
    by_split: dict[str, dict[bool, Line]] = {}
    for line in tables.get("labels", ()):
        by_split.setdefault(line["split"], {})[line["label"]] = line
    if not by_split:
        return
    both = {split: (lines[True], lines[False]) for split, lines in by_split.items() if len(lines) == 2}
    told = [split for split in by_split if split not in both]
    yield _alarm("warning", "Only one label", told, "There is nothing to tell apart.")
    told = [
        f"{split} {bad['contradictory']:,}" for split, (_, bad) in both.items() if bad.get("contradictory")
    ]  # versions that were published before it was counted have no such column
    yield _alarm(
        "warning",
        "Answers that are desirable and undesirable",
        [f"undesirable rows: {', '.join(told)}"] if told else [],
        "The same answer to the same prompt has both labels: their gradients cancel, or the labels are noise.",
    )
    yield _balance(*both["train"]) if "train" in both else None
    told = [
        f"{split}: {good['mean_tokens']:.0f} tokens on average against {bad['mean_tokens']:.0f}"
        for split, (good, bad) in both.items()
        if min(good["rows"], bad["rows"]) >= FEWEST_ROWS
        and not 2 / 3 <= good["mean_tokens"] / max(bad["mean_tokens"], 1) <= 3 / 2
    ]
    advice = "A model can learn to be long (or short) instead of good."
    yield _alarm("warning", "Desirable answers are of another length", told, advice)


def _balance(good: Line, bad: Line) -> Alarm | str:
    """What KTO calls lambda_D n_D / (lambda_U n_U), with the weights that the rows carry."""
    title = "Labels weigh differently"
    if bad["weight"] and 1 <= (ratio := good["weight"] / bad["weight"]) <= 3 / 2:
        return title
    found = f"train: {good['weight']:,.6g} desirable against {bad['weight']:,.6g} undesirable, as sums of weights"
    if not good["weight"] or not bad["weight"]:
        return Alarm("note", title, found, "Rows without weight change nothing in training.")
    rare, weight = ("desirable", 1 / ratio) if ratio < 1 else ("undesirable", ratio)
    advice = f"KTO wants a ratio between 1 and 3/2: multiplying the weights of {rare} rows by {weight:.3g} gives 1."
    return Alarm("note", title, found, advice)


def _alarm(level: Level, title: str, told: Sequence[str], advice: str) -> Alarm | str:
    """An alarm if there is anything to tell, else its title."""
    return Alarm(level, title, "; ".join(told), advice) if told else title


def _set_aside(counts: Counts) -> Alarm | str | None:
    title = "Most rows were set aside"
    if not counts["rows_in"]:
        return None
    share = counts["set_aside"] / counts["rows_in"]
    if share <= 0.5:
        return title
    reasons = sorted(
        ((rows, reason) for stage in counts["stages"] for reason, rows in stage["set_aside"].items()), reverse=True
    )
    found = f"{counts['set_aside']:,} of {counts['rows_in']:,}, most often {reasons[0][1]} ({reasons[0][0]:,})"
    return Alarm("note", title, found, "What is left may be of another kind than what went in: the ledger says why.")


def _missing(counts: Counts, referenced: bool) -> Iterator[Alarm]:
    if not referenced:
        yield Alarm(
            "note",
            "No reference log-probs",
            "nothing can be said of margins and on-policyness",
            "Objectives with a reference need them too: python -m flows.add_reference adds them in a new version.",
        )
    if not counts["rows"].get("test"):
        yield Alarm("note", "No held-out rows", "there is no test split", "Training will have nothing to be judged by.")
