"""What is stored of a reference model: per-token log-probs of every completion. Pure: tables and arrays in, tables out.

trees(table) -> logprobs.score(model, trees) -> attach(table, logps)
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from prefdata.identity import tokens_id
from prefdata.logical import SIDES, reference_of, sides_of
from prefdata.logprobs import Tree


def fingerprint(description: Mapping[str, Any], dtype: str | None = None) -> str:
    """sha256 hex of what decides a reference's numbers: weights, their settings, precision. Names and paths do not."""
    parts = [description["digest"], description.get("config_digest"), dtype or description["dtype"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def trees(table: pa.Table) -> list[Tree]:
    """One tree per row: the prompt, then chosen and rejected, or the completion and its frozen partner, if it has one."""
    sides = _sides(table)
    columns = [_arrays(table, f"{side}_ids") for side in sides]
    return [Tree(trunk, branches) for trunk, *branches in zip(_arrays(table, "prompt_ids"), *columns, strict=True)]


def attach(table: pa.Table, logps: Sequence[Sequence[np.ndarray]]) -> pa.Table:
    """The table with its reference columns, set or replaced. `logps[row][side]` holds one number per token."""
    kind = _kind(table)
    if len(logps) != table.num_rows:
        raise ValueError(f"{len(logps)} log-probs for {table.num_rows} rows")
    stored = reference_of(kind, table.column_names)
    for i, side in enumerate(_sides(table)):
        tokens = [np.asarray(row[i], np.float32) for row in logps]
        _check_lengths(table, side, tokens)
        sums = np.array([_total(*row) for row in zip(tokens, _masks(table, side), strict=True)], np.float32)
        table = _set(table, stored.field(f"ref_{side}_token_logps"), _lists(tokens))
        table = _set(table, stored.field(f"ref_{side}_logps"), pa.array(sums))
    return table


def known(table: pa.Table) -> dict[str, np.ndarray]:
    """Log-probs that a table already holds, by `identity.tokens_id`, for a later version with the same reference."""
    found: dict[str, np.ndarray] = {}
    for side in _sides(table):
        if f"ref_{side}_token_logps" not in table.column_names:
            continue
        present = table.filter(table[f"ref_{side}_token_logps"].is_valid())
        columns = (_arrays(present, name) for name in ("prompt_ids", f"{side}_ids", f"ref_{side}_token_logps"))
        found |= {tokens_id(prompt, ids): logps for prompt, ids, logps in zip(*columns, strict=True)}
    return found


def _kind(table: pa.Table) -> str:
    for kind, sides in SIDES.items():
        if sides and all(f"{side}_ids" in table.column_names for side in sides):
            return kind
    raise ValueError(f"rows of no known kind: columns {', '.join(table.column_names)}")


def _sides(table: pa.Table) -> tuple[str, ...]:
    return sides_of(_kind(table), table.column_names)


def _arrays(table: pa.Table, name: str) -> list[np.ndarray]:
    """A list column as one array per row. No row may be null."""
    column = table[name]
    if column.null_count:
        raise ValueError(f"{name} is null in {column.null_count} rows")
    return [array for chunk in column.chunks for array in _rows(chunk)]


def _rows(chunk: pa.ListArray) -> Iterator[np.ndarray]:
    offsets = chunk.offsets.to_numpy()
    values = chunk.values.to_numpy(zero_copy_only=False)
    return (values[start:end] for start, end in pairwise(offsets))


def _masks(table: pa.Table, side: str) -> Sequence[list[bool] | None]:
    """Which tokens of each row are scored; None: all."""
    name = f"{side}_loss_mask"
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def _total(tokens: np.ndarray, mask: list[bool] | None) -> float:
    """Summed in float64: float32 loses digits over thousands of tokens."""
    scored = tokens if mask is None else tokens[np.asarray(mask, bool)]
    return float(scored.sum(dtype=np.float64))


def _check_lengths(table: pa.Table, side: str, tokens: list[np.ndarray]) -> None:
    for row, (ids, found) in enumerate(zip(_arrays(table, f"{side}_ids"), tokens, strict=True)):
        if len(ids) != len(found):
            raise ValueError(f"row {row}: {len(found)} log-probs for the {len(ids)} tokens of {side}_ids")


def _lists(arrays: list[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()))


def _set(table: pa.Table, field: pa.Field, values: pa.Array) -> pa.Table:
    values = values.cast(field.type)
    index = table.schema.get_field_index(field.name)
    return table.append_column(field, values) if index < 0 else table.set_column(index, field, values)
