"""What selections of judged answers look at: one line for each answer of a version's rows, without its text or tokens.

name       the line's: the row's row_id, and of a pair's two sides with the side behind it
row_id     the parent's row
side       chosen, rejected or completion
prompt_id  what it answers
ids, text  equal for equal tokens, and for equal messages
empty      whether it says nothing
label      what the row says of it; null: the row says a score
score      null: none
votes      how many verdicts the row stands for: its weight, else 1
sure       the share of them that agree: a pair's preference, else 1
"""

from collections.abc import Collection, Iterable
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata.logical import SIDES
from prefdata.select.answers import token_keys
from schemas import pairs, unpaired

SCHEMA: dict[str, Any] = {
    "name": pl.String,
    "row_id": pl.String,
    "side": pl.String,
    "prompt_id": pl.String,
    "ids": pl.Binary,
    "text": pl.UInt64,
    "empty": pl.Boolean,
    "label": pl.Boolean,
    "score": pl.Float64,
    "votes": pl.Float64,
    "sure": pl.Float64,
}
_EXTRAS = ("label", "weight", "score", "preference")


def columns(kind: str, present: Collection[str]) -> list[str]:
    """The columns that are read."""
    sides = SIDES[kind]
    return [
        *("row_id", "prompt_id"),
        *sides,
        *(f"{side}_ids" for side in sides),
        *(name for name in _EXTRAS if name in present),
    ]


def verdicts(kind: str, tables: Iterable[pa.Table], end_ids: Collection[int]) -> pl.DataFrame:
    """The lines of a version's rows in their order, a pair's chosen side before its rejected one."""
    found = [_lines(kind, table, end_ids) for table in tables]
    return pl.concat(found) if found else pl.DataFrame(schema=SCHEMA)


def _lines(kind: str, table: pa.Table, end_ids: Collection[int]) -> pl.DataFrame:
    frame = pl.DataFrame(table).with_row_index("place")
    sides = SIDES[kind]
    parts = [_side(kind, frame, table, side, end_ids) for side in sides]
    return pl.concat(parts).sort("place", maintain_order=True).select(*SCHEMA)


def _side(kind: str, frame: pl.DataFrame, table: pa.Table, side: str, end_ids: Collection[int]) -> pl.DataFrame:
    turn = pl.element().struct
    said = (turn.field("content").fill_null("").str.strip_chars() != "") | turn.field("tool_calls").is_not_null()
    written = pl.col(f"{side}_ids").list.eval(~pl.element().is_in(list(end_ids))).list.any()
    stated = {name: pl.col(name) for name in _EXTRAS if name in frame.columns}
    label = pl.lit(side == "chosen") if kind == pairs.KIND else stated.get("label", pl.lit(None))
    weight = stated.get("weight", pl.lit(None)) if kind == unpaired.KIND else pl.lit(None)
    return frame.select(
        *("place", "row_id", "prompt_id"),
        name=pl.col("row_id") if len(SIDES[kind]) == 1 else pl.format(f"{{}}/{side}", "row_id"),
        side=pl.lit(side),
        ids=pl.Series(token_keys(table[f"{side}_ids"]), dtype=pl.Binary),
        text=pl.col(side).list.eval(turn.json_encode()).list.join("\n").hash(),
        empty=~(pl.col(side).list.eval(said).list.any() & written),
        label=label.cast(pl.Boolean),
        score=stated.get("score", pl.lit(None)).cast(pl.Float64),
        votes=weight.cast(pl.Float64).fill_null(1.0),
        sure=stated.get("preference", pl.lit(None)).cast(pl.Float64).fill_null(1.0),
    )
