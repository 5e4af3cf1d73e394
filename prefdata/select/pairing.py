"""Two completions of one prompt as a row of pairs. Tables in, a table out; rows are matched by their place, which whoever
calls this has made sure of by their ids.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.identity import pair_row_id
from prefdata.records import Message
from schemas import pairs

GENERATED = ("sampled", "greedy")  # methods whose ids rule, where others' text does
_SHARED = ("prompt_id", "prompt", "tools", "prompt_ids", "prompt_tokens", "source", "license")
_SIDE = {
    "{}": "completion",
    "{}_ids": "completion_ids",
    "{}_tokens": "completion_tokens",
    "{}_finish": "completion_finish",
    "{}_loss_mask": "completion_loss_mask",
    "{}_row_id": "row_id",
    "{}_method": "method",
    "{}_generator": "generator",
}
SCHEMA = pa.unify_schemas([pairs.BASE, pairs.SELECTED])


def joined(chosen: pa.Table, rejected: pa.Table, scores: pa.Table, method: str) -> pa.Table:
    """Rows of pairs from completions of equal prompts, place by place.

    scores: chosen_score, rejected_score, margin; columns that a side does not have are null.
    """
    columns: dict[str, Any] = {name: chosen[name] for name in _SHARED if name in chosen.column_names}
    for side, table in (("chosen", chosen), ("rejected", rejected)):
        for name, source in _SIDE.items():
            if source in table.column_names:
                columns[name.format(side)] = table[source]
    columns |= {name: scores[name] for name in ("chosen_score", "rejected_score", "margin")}
    columns["chosen_content_start"] = chosen["completion_content_start"]
    columns["shared_prefix"] = pa.array(_shared(chosen["completion_ids"], rejected["completion_ids"]), pa.int32())
    columns["method"] = pa.array([method] * len(chosen), pa.string())
    columns["row_id"] = pa.array(_row_ids(chosen, rejected), pa.string())
    count = chosen.num_rows
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in SCHEMA]
    return pa.Table.from_arrays(
        [_plain(array).cast(field.type) for array, field in zip(arrays, SCHEMA, strict=True)], schema=SCHEMA
    )


def _plain(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _row_ids(chosen: pa.Table, rejected: pa.Table) -> list[str]:
    prompts = [_turns(turns) for turns in chosen["prompt"].to_pylist()]
    sides = [_stated(table) for table in (chosen, rejected)]
    tools = chosen["tools"].to_pylist()
    return [pair_row_id(*row) for row in zip(prompts, *sides, tools, strict=True)]


def _stated(table: pa.Table) -> list[Any]:
    """What names each completion: its messages, or its token ids where a model wrote it here."""
    generated = pc.is_in(table["method"], pa.array(GENERATED)).to_pylist()
    ids, turns = table["completion_ids"].to_pylist(), table["completion"].to_pylist()
    return [own if by_ids else _turns(text) for by_ids, own, text in zip(generated, ids, turns, strict=True)]


def _turns(turns: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message.from_mapping(turn) for turn in turns)


def _shared(one: pa.ChunkedArray, other: pa.ChunkedArray) -> list[int]:
    """How many tokens the lists of each row begin with alike."""
    found = []
    for left, right in zip(_lists(one), _lists(other), strict=True):
        width = min(len(left), len(right))
        differs = left[:width] != right[:width]
        found.append(int(differs.argmax()) if differs.any() else width)
    return found


def _lists(column: pa.ChunkedArray) -> list[np.ndarray[Any, Any]]:
    array = _plain(column)
    values, offsets = array.values.to_numpy(zero_copy_only=False), array.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]
