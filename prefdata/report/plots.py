"""Which plots a version's rows give, from a sample and the facts of its rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from markupsafe import Markup

from prefdata.facts import Ragged, facts
from prefdata.logical import SIDES
from prefdata.report.charts import Series, histogram, scatter

Numbers = np.ndarray[Any, np.dtype[Any]]

_NATS = "nats per token"


@dataclass(frozen=True)
class Group:
    """Plots of one question."""

    heading: str
    text: str
    figures: list[Markup]


def groups(kind: str, sample: pa.Table) -> list[Group]:
    """Plots in reading order; a group without any is left out."""
    rows = facts(kind, sample.combine_chunks().to_batches()[0]) if sample.num_rows else None
    if rows is None:
        return []
    found = (_of_prompts(rows), _of_answers(rows, sample), _of_pairs(rows, sample))[len(SIDES[kind])]
    drawn = [Group(heading, text, [each for each in figures if each]) for heading, text, figures in found]
    return [group for group in drawn if group.figures]


_Drawn = tuple[str, str, Sequence[Markup | None]]


def _of_prompts(rows: pl.DataFrame) -> Iterator[_Drawn]:
    yield (
        "Lengths",
        "In tokens.",
        [histogram("Prompt length", [Series.of("prompt", "plain", rows["prompt_tokens"])], "tokens")],
    )


def _of_pairs(rows: pl.DataFrame, sample: pa.Table) -> Iterator[_Drawn]:
    def both(column: str) -> list[Series]:
        return [Series.of(side, side, rows[column.format(side)]) for side in ("chosen", "rejected")]

    yield (
        "Lengths",
        "In tokens. Dots above the line are pairs whose chosen side is longer: if most are, length can be learnt instead "
        "of quality.",
        [
            histogram("Prompt length", [Series.of("prompt", "plain", rows["prompt_tokens"])], "tokens"),
            histogram("Answer length", both("{}_tokens"), "tokens"),
            scatter(
                "Length bias",
                Series.of("rejected tokens", "rejected", rows["rejected_tokens"]),
                Series.of("chosen tokens", "chosen", rows["chosen_tokens"]),
            ),
        ],
    )
    yield "Margins", "How far apart the sides are, by the scorer and by the reference model.", list(_margins(rows))
    yield (
        "On-policyness",
        "How likely the reference model finds each side, per token. Far to the left: text it would not write itself.",
        [*_per_token(rows), _segments(sample)],
    )
    yield (
        "Similarity",
        "As shares of the longer side's tokens. Sides that share nearly everything differ in a few decisive tokens.",
        [
            histogram("Shared prefix", [Series.of("pairs", "plain", rows["shared_prefix"])], "share of tokens"),
            histogram("Shared suffix", [Series.of("pairs", "plain", rows["shared_suffix"])], "share of tokens"),
            histogram("Token overlap", [Series.of("pairs", "plain", overlaps(sample))], "share of tokens"),
            histogram("Edit distance", [Series.of("pairs", "plain", rows["edit_distance"])], "share of tokens"),
        ],
    )


def _margins(rows: pl.DataFrame) -> Iterator[Markup | None]:
    if "margin" in rows.columns:
        yield histogram("Score margin", [Series.of("pairs", "plain", rows["margin"])], "score of chosen - rejected")
    if "ref_chosen_logps" in rows.columns:
        sums = rows["ref_chosen_logps"] - rows["ref_rejected_logps"]
        yield histogram("Reference margin", [Series.of("pairs", "plain", sums)], "nats, log p of chosen - rejected")
        each = _means(rows, "chosen") - _means(rows, "rejected")
        yield histogram("Reference margin per token", [Series.of("pairs", "plain", each)], _NATS)


def _per_token(rows: pl.DataFrame) -> Iterator[Markup | None]:
    if "ref_chosen_logps" in rows.columns:
        sides = [Series.of(side, side, _means(rows, side)) for side in ("chosen", "rejected")]
        yield histogram("Reference log-prob", sides, _NATS)


def _means(rows: pl.DataFrame, side: str) -> pl.Series:
    return rows[f"ref_{side}_logps"] / rows[f"{side}_tokens"]


def _segments(sample: pa.Table) -> Markup | None:
    """Log-probs of what was regenerated, and of what it replaced."""
    if not {"segment_start", "ref_chosen_token_logps"} <= set(sample.column_names):
        return None
    rows = sample.filter(pa.compute.is_valid(sample["segment_start"]))
    starts = rows["segment_start"].to_pylist()
    original = slice_means(rows, "chosen", starts, rows["segment_source_end"].to_pylist())
    written = slice_means(rows, "rejected", starts, rows["segment_end"].to_pylist())
    series = [Series.of("original", "chosen", original), Series.of("regenerated", "rejected", written)]
    return histogram("Inside the segment", series, _NATS)


def slice_means(rows: pa.Table, side: str, starts: Sequence[int], ends: Sequence[int]) -> list[float | None]:
    """Each row's mean reference log-prob of the side's scored tokens from start to end; None where none is."""
    logps, masks = (
        rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows
        for name in (f"ref_{side}_token_logps", f"{side}_loss_mask")
    )
    return [_slice_mean(*row) for row in zip(logps, masks, starts, ends, strict=True)]


def _slice_mean(logps: list[float] | None, mask: list[bool] | None, start: int, end: int) -> float | None:
    scored = [logps[at] for at in range(start, end) if mask is None or mask[at]] if logps is not None else []
    return sum(scored) / len(scored) if scored else None


def overlaps(pairs: pa.Table) -> list[float]:
    """Tokens that both sides hold, whatever their order, over the tokens of the longer side."""
    chosen, rejected = (Ragged.of(pairs[f"{side}_ids"].combine_chunks()) for side in ("chosen", "rejected"))
    sides = zip(_bags(chosen), _bags(rejected), strict=True)
    longest = np.maximum(np.maximum(chosen.lengths, rejected.lengths), 1).tolist()
    return [(one & other).total() / most for (one, other), most in zip(sides, longest, strict=True)]


def _bags(ragged: Ragged) -> Iterator["Counter[int]"]:
    return (Counter(row.tolist()) for row in np.split(ragged.values, ragged.ends[:-1]))


def _of_answers(rows: pl.DataFrame, sample: pa.Table) -> Iterator[_Drawn]:
    labels = sample["label"].to_pylist() if "label" in sample.column_names else None

    def by_label(values: pl.Series) -> list[Series]:
        """One series, or one for each label."""
        if labels is None:
            return [Series.of("answers", "plain", values)]
        sides = (("desirable", "chosen", True), ("undesirable", "rejected", False))
        return [Series.of(name, css, values.filter(pl.Series(labels) == label)) for name, css, label in sides]

    yield (
        "Lengths",
        "In tokens.",
        [
            histogram("Prompt length", [Series.of("prompt", "plain", rows["prompt_tokens"])], "tokens"),
            histogram("Answer length", by_label(rows["completion_tokens"]), "tokens"),
        ],
    )
    if "score" in rows.columns:
        yield "Scores", "As the scorer gave them.", [histogram("Score", by_label(rows["score"]), "score")]
    if "ref_completion_logps" in rows.columns:
        figure = histogram("Reference log-prob", by_label(_means(rows, "completion")), _NATS)
        yield "On-policyness", "How likely the reference model finds the answers, per token.", [figure]
