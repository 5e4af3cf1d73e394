"""The ledger's lines for rows of the parent, from what was made of them and what was not: one by one, or as tables."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata.records import SetAside
from schemas.ledger import KEPT, LEDGER, SET_ASIDE


def line(
    row_id: str, made: Sequence[str], failures: Sequence[tuple[str, SetAside]], stages: Sequence[str]
) -> dict[str, Any]:
    """Kept if anything was made, with the reasons of what was not; else why what came furthest went no further.

    made: row_ids in the new version; failures: (stage, why) of each thing not made, at least one if nothing was made;
    stages: their order.
    """
    if made:
        shortfall = [aside.reason for _, aside in failures]
        return {"row_id": row_id, "status": KEPT, "stage": "publish", "made": [*made], "shortfall": shortfall}
    stage, aside = max(failures, key=lambda failure: stages.index(failure[0]))
    return {
        "row_id": row_id,
        "status": SET_ASIDE,
        "stage": stage,
        "reason": aside.reason,
        "detail": aside.detail or None,
    }


def lines(rows: pl.DataFrame, made: pl.DataFrame, failures: pl.DataFrame, stages: Sequence[str]) -> pa.Table:
    """A line for each of `rows` (row_id), in their order, by the same rule as `line`.

    made: row_id, made (a row of the new version); failures: row_id, stage, reason, detail. Each may name a row several
    times; a row that neither names is a mistake of the build.
    """
    kept = made.group_by("row_id", maintain_order=True).agg(pl.col("made").unique(maintain_order=True))
    depth = {stage: number for number, stage in enumerate(stages)}
    ordered = failures.with_columns(depth=pl.col("stage").replace_strict(depth, return_dtype=pl.Int32))
    why = ordered.sort("depth", maintain_order=True, descending=True).unique(
        "row_id", keep="first", maintain_order=True
    )
    short = failures.group_by("row_id", maintain_order=True).agg(shortfall="reason")
    joined = rows.select("row_id").join(kept, on="row_id", how="left", maintain_order="left")
    joined = joined.join(short, on="row_id", how="left", maintain_order="left")
    joined = joined.join(why.drop("depth"), on="row_id", how="left", maintain_order="left")
    is_kept = pl.col("made").is_not_null()
    nothing = pl.lit([], pl.List(pl.String))
    told = joined.select(
        "row_id",
        status=pl.when(is_kept).then(pl.lit(KEPT)).otherwise(pl.lit(SET_ASIDE)),
        stage=pl.when(is_kept).then(pl.lit("publish")).otherwise("stage"),
        reason=pl.when(~is_kept).then("reason"),
        detail=pl.when(~is_kept).then("detail"),
        made=pl.col("made").fill_null(nothing),
        shortfall=pl.when(is_kept).then(pl.col("shortfall").fill_null(nothing)).otherwise(nothing),
    )
    if told["stage"].null_count():
        raise ValueError(f"nothing was said of row {told.filter(pl.col('stage').is_null())['row_id'][0]}")
    return told.with_columns(origin=pl.lit(None, pl.String)).to_arrow().select(LEDGER.names).cast(LEDGER)
