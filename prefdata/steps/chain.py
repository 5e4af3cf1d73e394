"""Cleaning steps one after the other: what each reads of the rows, and what becomes of every row. Pure.

A step reads rows batch by batch, each row by itself, and then judges all that are left at once. What it judges by does
not depend on the order of the rows, on batches or on what else runs; rows are handed to it by their ids, sorted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from prefdata.steps.batch import Batch

ASIDE: dict[str, Any] = {"row_id": pl.String, "reason": pl.String, "detail": pl.String}
ROW = ("row_id", "prompt_id", "split", "source")


def nothing_aside() -> pl.DataFrame:
    """No rows under ASIDE."""
    return pl.DataFrame(schema=ASIDE)


@dataclass(frozen=True)
class Verdict:
    """aside: row_id, reason, detail of rows that go no further; columns: row_id and what the step says of the others."""

    aside: pl.DataFrame = field(default_factory=nothing_aside)
    columns: pl.DataFrame | None = None


class Step(Protocol):
    """One thing to look for."""

    name: str  # its stage in the ledger
    reads: Any  # plain values: all that the columns it reads depend on, beside the rows

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """Columns of what is judged by, one value a row; steps may share them by name."""
        ...

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """Of all rows that are left: ROW and the columns that were read, sorted by row_id."""
        ...


@dataclass(frozen=True)
class Cleaned:
    """kept: row_id, split and the columns that steps added; aside: row_id, stage, reason, detail."""

    kept: pl.DataFrame
    aside: pl.DataFrame


def read(steps: Sequence[Step], batch: Batch) -> pl.DataFrame:
    """What all steps judge by, a line for each row."""
    rows = batch.rows
    found: dict[str, Any] = {
        "row_id": batch.row_ids,
        **{name: pl.Series(rows[name]) for name in ("prompt_id", "source")},
    }
    found["split"] = pl.Series([batch.split] * rows.num_rows, dtype=pl.String)
    for step in steps:
        found |= step.read(batch)
    return pl.DataFrame(found)


def clean(steps: Sequence[Step], rows: pl.DataFrame) -> Cleaned:
    """Every row is kept, or set aside by exactly one step."""
    left = rows.sort("row_id")
    aside = [pl.DataFrame(schema={"stage": pl.String, **ASIDE})]
    said = ["row_id", "split"]
    for step in steps:
        verdict = step.judge(left)
        aside.append(verdict.aside.select(pl.lit(step.name).alias("stage"), *ASIDE))
        if verdict.aside.height:
            left = left.join(verdict.aside, on="row_id", how="anti", maintain_order="left")
        if verdict.columns is not None:
            added = [name for name in verdict.columns.columns if name != "row_id"]
            left = left.drop(added, strict=False).join(
                verdict.columns, on="row_id", how="left", maintain_order="left", validate="1:1"
            )
            said += [name for name in added if name not in said]
    return Cleaned(left.select(said), pl.concat(aside))
