"""A few plain numbers for each row: what statistics are summed up from. Vectorised over a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.logical import SIDES
from schemas.stats import POSITIVE_LOGP, UNLIKELY_TOKEN

Numbers = np.ndarray[Any, np.dtype[Any]]

# columns that some kinds have
OPTIONAL = ("score", "scores", "chosen_score", "rejected_score", "margin", "label", "weight")
_CODE_POINTS = 0x110000  # characters that a string can hold


@dataclass(frozen=True)
class Ragged:
    """A list column laid end to end: all values, and how many belong to each row."""

    values: Numbers
    lengths: Numbers

    @classmethod
    def of(cls, column: pa.Array) -> Ragged:
        """A null row counts as an empty one."""
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        return cls(_plain(pc.list_flatten(column)), _plain(lengths).astype(np.int64))

    @property
    def ends(self) -> Numbers:
        """Where each row's values end."""
        return np.cumsum(self.lengths)

    def per_row(self, amounts: Numbers) -> Numbers:
        """Sums of one number per value, row by row."""
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return np.bincount(rows, weights=amounts, minlength=len(self.lengths)).astype(np.int64)


def facts(kind: str, rows: pa.RecordBatch) -> pl.DataFrame:
    """One line per row. Answers and prompts are reduced to hashes, lists of tokens to counts."""
    sides = SIDES[kind]
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    found = frame.select(
        *("source", "license", "method", "prompt_tokens"),
        *(f"{side}_{what}" for side in sides for what in ("tokens", "finish")),
        *(name for name in OPTIONAL if name in frame.columns),
        pl.col("prompt_id").hash().alias("prompt"),
        *(pl.col(f"{side}_ids").hash().alias(f"{side}_answer") for side in sides),
    )
    if len(sides) == 2:
        found = found.with_columns(**_similarity(rows), same_text=frame["chosen"].eq_missing(frame["rejected"]))
    for side in sides:
        if f"ref_{side}_token_logps" in rows.schema.names:
            found = found.with_columns(frame[f"ref_{side}_logps"].cast(pl.Float64), **_reference(rows, side))
    return found


def _similarity(rows: pa.RecordBatch) -> dict[str, pl.Series]:
    chosen, rejected = Ragged.of(rows["chosen_ids"]), Ragged.of(rows["rejected_ids"])
    prefix = _plain(rows["shared_prefix"])
    longer = np.maximum(np.maximum(chosen.lengths, rejected.lengths), 1)
    distance = edit_distances(chosen, rejected)
    suffix = shared_suffixes(chosen, rejected, np.minimum(chosen.lengths, rejected.lengths) - prefix)
    return {
        "edit_distance": pl.Series(distance / longer),
        "shared_prefix": pl.Series(prefix / longer),
        "shared_suffix": pl.Series(suffix / longer),
        "identical": pl.Series(distance == 0),
    }


def edit_distances(left: Ragged, right: Ragged) -> Numbers:
    """Insertions, deletions and replacements of single tokens that turn left into right, row by row."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cpdist

    lefts, rights = _as_texts(left, right)
    if not lefts:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(cpdist(lefts, rights, scorer=Levenshtein.distance, dtype=np.int64))


def _as_texts(left: Ragged, right: Ragged) -> tuple[list[str], list[str]]:
    """Each token as one character: strings are what the edit distance is fastest on, at four bytes a token."""
    values = np.concatenate([left.values, right.values])
    if values.size and values.max() >= _CODE_POINTS:
        values = np.unique(values, return_inverse=True)[1]
    text = values.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return _cut(text[: len(left.values)], left), _cut(text[len(left.values) :], right)


def _cut(text: str, ragged: Ragged) -> list[str]:
    ends = ragged.ends.tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def shared_suffixes(left: Ragged, right: Ragged, most: Numbers) -> Numbers:
    """Tokens that both rows end with, at most `most`: one step back per round, in the rows that still agree."""
    shared = np.zeros(len(left.lengths), dtype=np.int64)
    left_ends, right_ends = left.ends, right.ends
    agreeing = np.flatnonzero(most > 0)
    while agreeing.size:
        back = shared[agreeing] + 1
        agreeing = agreeing[left.values[left_ends[agreeing] - back] == right.values[right_ends[agreeing] - back]]
        shared[agreeing] += 1
        agreeing = agreeing[shared[agreeing] < most[agreeing]]
    return shared


def _reference(rows: pa.RecordBatch, side: str) -> dict[str, pl.Series]:
    logps = Ragged.of(rows[f"ref_{side}_token_logps"])
    unlikely = _scored(rows, side, logps) & (logps.values < UNLIKELY_TOKEN)
    return {
        f"ref_{side}_unlikely": pl.Series(logps.per_row(unlikely)),
        f"ref_{side}_not_finite": pl.Series(logps.per_row(~np.isfinite(logps.values))),
        f"ref_{side}_positive": pl.Series(logps.per_row(logps.values > POSITIVE_LOGP)),
    }


def _scored(rows: pa.RecordBatch, side: str, logps: Ragged) -> Numbers:
    """Which log-probs are of scored tokens: those the row's loss mask keeps, or all where it has none."""
    scored = np.ones(len(logps.values), dtype=bool)
    name = f"{side}_loss_mask"
    if name not in rows.schema.names or rows[name].null_count == len(rows):
        return scored
    masked = _plain(pc.and_(pc.is_valid(rows[name]), pc.is_valid(rows[f"ref_{side}_token_logps"])))
    mask = Ragged.of(rows[name].filter(pa.array(masked)))
    scored[np.repeat(masked, logps.lengths)] = mask.values
    return scored


def _plain(column: pa.Array) -> Numbers:
    values: Numbers = column.to_numpy(zero_copy_only=False)
    return values
