"""Two completions of one prompt as a row of pairs. Tables in, a table out; rows are matched by their place, which whoever
calls this has made sure of by their ids.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import canonical
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
_REFERENCE = {"ref_{}_token_logps": "ref_completion_token_logps", "ref_{}_logps": "ref_completion_logps"}
SCHEMA = pa.unify_schemas([pairs.BASE, pairs.SELECTED])


def joined(
    chosen: pa.Table, rejected: pa.Table, scores: pa.Table, method: str, *, referenced: bool = False
) -> pa.Table:
    """Rows of pairs from completions of equal prompts, place by place.

    scores: chosen_score, rejected_score, margin; columns that a side does not have are null.
    referenced: with the log-probs that the completions have.
    """
    schema = pa.unify_schemas([SCHEMA, pairs.REFERENCE]) if referenced else SCHEMA
    of_side = {**_SIDE, **(_REFERENCE if referenced else {})}
    columns: dict[str, Any] = {name: chosen[name] for name in _SHARED if name in chosen.column_names}
    for side, table in (("chosen", chosen), ("rejected", rejected)):
        for name, source in of_side.items():
            if source in table.column_names:
                columns[name.format(side)] = table[source]
    columns |= {name: scores[name] for name in ("chosen_score", "rejected_score", "margin")}
    columns["chosen_content_start"] = chosen["completion_content_start"]
    columns["shared_prefix"] = pa.array(_shared(chosen["completion_ids"], rejected["completion_ids"]), pa.int32())
    columns["method"] = pa.array([method] * len(chosen), pa.string())
    columns["row_id"] = pa.array(row_ids(chosen, rejected), pa.string())
    count = chosen.num_rows
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.Table.from_arrays(
        [_plain(array).cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema
    )


def _plain(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def row_ids(chosen: pa.Table, rejected: pa.Table) -> list[str]:
    """`identity.pair_row_id` of every row."""
    parts = {
        "kind": pl.repeat(f'"{pairs.KIND}"', chosen.num_rows, eager=True),
        "prompt": canonical.turns(canonical.series(chosen["prompt"])),
        "chosen": _stated(chosen),
        "rejected": _stated(rejected),
        "tools": canonical.texts(canonical.series(chosen["tools"])),
    }
    return canonical.digests(canonical.objects(parts))


def _stated(table: pa.Table) -> pl.Series:
    """What names each completion: its messages, or its token ids where a model wrote it here."""
    generated = canonical.series(table["method"]).is_in(GENERATED).fill_null(False)
    by_ids = canonical.whole_numbers(canonical.series(table["completion_ids"]))
    if generated.all():
        return by_ids
    return by_ids.zip_with(generated, canonical.turns(canonical.series(table["completion"])))


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
