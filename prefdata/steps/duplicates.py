"""Duplicates: of prompts, or of whole rows, that are equal or nearly so, one stands for all.

Prompts are compared with their system turns and tools: the same question to two characters is two prompts. Several rows of
one prompt (by prompt_id) are no duplicates of each other as prompts. Whole rows are duplicates if their prompts are and
every one of their answers is; an answer called good once and bad once is two rows. A row of the test split stands before
those of the train split, then the smallest id.
"""

from typing import Any

import numpy as np
import polars as pl

from prefdata.steps.batch import Batch, numbers
from prefdata.steps.chain import Verdict
from prefdata.steps.similar import groups
from prefdata.steps.sketch import Sketches

PROMPTS, ROWS = "prompts", "rows"
COMPARED = (PROMPTS, ROWS)
_HELD_OUT_FIRST = pl.col("split") != "test"


class Exact:
    """Equal but for case, white space and Unicode's forms of one character."""

    name = "duplicates"

    def __init__(self, compared: str) -> None:
        self._compared = compared
        self.reads = ["keys", compared]

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """Digests."""
        found = {"prompt_key": batch.prompt_keys}
        return found if self._compared == PROMPTS else {**found, "answer_key": batch.answer_keys}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """All but the first of each."""
        if self._compared == PROMPTS:
            prompts = _prompts(rows)
            first = pl.col("prompt_id").first().over("prompt_key")
            return _verdict(rows, prompts.select("prompt_id", stands=first), "duplicate_prompt", "prompt_id")
        ordered = rows.sort(_HELD_OUT_FIRST, "row_id")
        first = pl.col("row_id").first().over("prompt_key", "answer_key")
        return _verdict(rows, ordered.select("row_id", stands=first), "duplicate_text", "row_id")


class Near:
    """Alike in their sketches; `threshold` is the least similarity, from 0 to 1."""

    name = "near_duplicates"

    def __init__(self, compared: str, threshold: float, sides: tuple[str, ...]) -> None:
        self._compared, self._threshold = compared, threshold
        self._sides = sides if compared == ROWS else ()
        self.reads = ["sketches", *self._sides]

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """Sketches."""
        found = {"setting_key": batch.setting_keys, "prompt_sketch": batch.prompt_sketches}
        found |= {f"{side}_sketch": batch.answer_sketches[side] for side in self._sides}
        return {**found, "label": pl.Series(list(map(str, batch.labels)), dtype=pl.String)} if self._sides else found

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """All but the first of each group."""
        prompts = _prompts(rows)
        ids = prompts["prompt_id"]
        labels = groups([sketch_of(prompts, "prompt")], self._threshold, numbers(prompts["setting_key"]))
        stands = pl.DataFrame({"prompt_id": ids, "stands": ids.gather(labels)})
        if not self._sides:
            return _verdict(rows, stands, "near_duplicate_prompt", "prompt_id")
        ordered = rows.sort(_HELD_OUT_FIRST, "row_id").join(stands, on="prompt_id", how="left", maintain_order="left")
        labels = groups([sketch_of(ordered, side) for side in self._sides], self._threshold, _told_apart(ordered))
        ids = ordered["row_id"]
        stands = pl.DataFrame({"row_id": ids, "stands": ids.gather(labels)})
        return _verdict(rows, stands, "near_duplicate_row", "row_id")


def sketch_of(rows: pl.DataFrame, what: str) -> Sketches:
    """(rows, SLOTS)."""
    return np.asarray(rows[f"{what}_sketch"].to_numpy())


def _prompts(rows: pl.DataFrame) -> pl.DataFrame:
    """The first row of each prompt, in the order in which prompts stand for others."""
    return rows.sort(_HELD_OUT_FIRST, "prompt_id", "row_id").unique("prompt_id", keep="first", maintain_order=True)


def _told_apart(rows: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A number for each prompt's group and label; rows with different ones are never alike."""
    return rows.select(pl.concat_str("stands", "label").rank("dense").cast(pl.UInt64)).to_series().to_numpy()


def _verdict(rows: pl.DataFrame, stands: pl.DataFrame, reason: str, of: str) -> Verdict:
    """Rows for whose `of` another one stands."""
    others = stands.filter(pl.col("stands") != pl.col(of))
    found = rows.select("row_id", "prompt_id").join(others, on=of, how="inner", maintain_order="left")
    detail = pl.format("{} stands for it", "stands")
    return Verdict(found.select("row_id", reason=pl.lit(reason), detail=detail))
