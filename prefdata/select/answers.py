"""What selections look at: one line for each completion of a version, without its text or tokens.

row_id     the completion's
prompt_id  what it answers
score      what its scorer gave it; null: none
tokens     its scored tokens
answer     names its exact tokens: equal answers of a prompt share it
greedy     whether it is the prompt's greedy completion
generator  the model that wrote it, as its row names it; null: unknown
reference  nats, its log-prob under the reference; null: not stored
"""

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

COLUMNS = ("row_id", "prompt_id", "score", "completion_tokens", "completion_ids", "method")
REFERENCE = "ref_completion_logps"  # read where it is stored, as generator is
GREEDY = "greedy"

SCHEMA = {
    "row_id": pl.String,
    "prompt_id": pl.String,
    "score": pl.Float64,
    "tokens": pl.Int32,
    "answer": pl.Binary,
    "greedy": pl.Boolean,
    "generator": pl.String,
    "reference": pl.Float64,
}


def answers(tables: Iterable[pa.Table]) -> pl.DataFrame:
    """The lines of a version's completions, in their order."""
    found = [_lines(table) for table in tables]
    return pl.concat(found) if found else pl.DataFrame(schema=SCHEMA)


def _lines(table: pa.Table) -> pl.DataFrame:
    def nulls(kind: pa.DataType) -> pa.Array:
        return pa.nulls(table.num_rows, kind)

    score = table["score"] if "score" in table.column_names else nulls(pa.float64())
    return pl.DataFrame(
        {
            "row_id": table["row_id"],
            "prompt_id": table["prompt_id"],
            "score": score,
            "tokens": table["completion_tokens"],
            "answer": token_keys(table["completion_ids"]),
            "greedy": pl.Series(table["method"]) == GREEDY,
            "generator": table["generator"] if "generator" in table.column_names else nulls(pa.string()),
            "reference": table[REFERENCE] if REFERENCE in table.column_names else nulls(pa.float64()),
        },
        schema=SCHEMA,
    )


def token_keys(column: pa.ChunkedArray) -> list[bytes]:
    """16 bytes for each list of token ids, equal for equal lists."""
    return [key for chunk in column.chunks for key in _keys(chunk)]


def _keys(chunk: pa.ListArray) -> list[bytes]:
    values: Any = np.ascontiguousarray(chunk.values.to_numpy(zero_copy_only=False))
    raw = memoryview(values).cast("B")
    size = values.itemsize
    return [
        hashlib.blake2b(raw[start * size : end * size], digest_size=16).digest()
        for start, end in pairwise(chunk.offsets.to_numpy().tolist())
    ]
