"""The logical hash of a version, and what must hold of its rows whatever the file layout.

The hash covers ids, text (through row_id), tokens, masks and labels; not log-probs, not order (of rows, or of a row's
scores), not how rows are cut into files. It is the sum modulo 2**256 of one sha256 per row, so it is the same in any order.
"""

import hashlib
from collections.abc import Container, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.errors import UserError
from schemas import cleaned, completions, pairs, prompts, unpaired
from schemas.stats import POSITIVE_LOGP

BASE = {kind.KIND: kind.BASE for kind in (pairs, completions, unpaired, prompts)}
OPTIONAL = {completions.KIND: completions.OPTIONAL}
REFERENCE = {kind.KIND: kind.REFERENCE for kind in (pairs, completions, unpaired)}
SEGMENT = {pairs.KIND: pairs.SEGMENT}
SAMPLED = {completions.KIND: completions.SAMPLED}
JUDGED = {pairs.KIND: pairs.JUDGED}
SELECTED = {
    pairs.KIND: pairs.SELECTED,
    completions.KIND: completions.SELECTED,
    unpaired.KIND: pa.unify_schemas([unpaired.MADE, unpaired.PARTNER]),
}
SIDES: dict[str, tuple[str, ...]] = {
    pairs.KIND: ("chosen", "rejected"),
    completions.KIND: ("completion",),
    unpaired.KIND: ("completion",),
    prompts.KIND: (),
}
PARTNER = "partner"

_LABELS = (
    "chosen_score",
    "rejected_score",
    "score",
    "preference",
    "label",
    "weight",
    "segment_start",
    "segment_end",
    "segment_source_end",
)
# of a sum's size; rounding to float32 is 6e-8 of it, adding up in float32 over thousands of tokens some 1e-6
_SUM_TOLERANCE = 1e-5


def sides_of(kind: str, columns: Container[str]) -> tuple[str, ...]:
    """The sides of rows with these columns: those of their kind, and the frozen partner where there is one."""
    return SIDES[kind] + ((PARTNER,) if f"{PARTNER}_ids" in columns else ())


def reference_of(kind: str, columns: Container[str]) -> pa.Schema:
    """The reference columns of rows with these columns."""
    partner = [unpaired.PARTNER_REFERENCE] if PARTNER in sides_of(kind, columns) else []
    return pa.unify_schemas([REFERENCE[kind], *partner])


class LogicalHash:
    """Adds up rows as they are staged or read back."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, split: str, table: pa.Table) -> None:
        """Add rows of a split."""
        for line in _row_bytes(table):
            digest = hashlib.sha256(split.encode() + b"\0" + line).digest()
            self._sum = (self._sum + int.from_bytes(digest, "big")) % (1 << 256)

    def hexdigest(self) -> str:
        """64 hex digits."""
        return f"{self._sum:064x}"


def _row_bytes(table: pa.Table) -> Iterator[bytes]:
    names = [name for name in table.column_names if name.endswith(("_ids", "_loss_mask"))]
    lists = [_list_bytes(table[name]) for name in names]
    labels = [table[name].to_pylist() for name in _LABELS if name in table.column_names]
    stated = _stated_bytes(table)
    for number, row_id in enumerate(table["row_id"].to_pylist()):
        tokens = b"\0".join(column[number] for column in lists)
        values = repr([column[number] for column in labels]).encode()
        yield b"\0".join([row_id.encode(), tokens, values, *stated[number]])


def _stated_bytes(table: pa.Table) -> list[list[bytes]]:
    """What only some rows state: nothing for a row that does not, so that a column of nulls changes no hash."""
    found: list[list[bytes]] = [[] for _ in range(table.num_rows)]
    if "scores" in table.column_names:
        for parts, scores in zip(found, table["scores"].to_pylist(), strict=True):
            parts += [repr(sorted((each["scorer"], each["score"]) for each in scores)).encode()] if scores else []
    if "margin" in table.column_names:
        derived = pc.and_(pc.is_valid(table["chosen_score"]), pc.is_valid(table["rejected_score"]))
        for parts, margin in zip(found, pc.if_else(derived, None, table["margin"]).to_pylist(), strict=True):
            parts += [f"margin {margin!r}".encode()] if margin is not None else []
    return found


def _list_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """One byte string per row, its length first; None differs from empty."""
    found = []
    for chunk in column.chunks:
        values: Any = np.ascontiguousarray(chunk.values.to_numpy(zero_copy_only=False))
        raw, size = memoryview(values).cast("B"), values.itemsize
        for (start, end), ok in zip(pairwise(chunk.offsets.to_pylist()), chunk.is_valid().to_pylist(), strict=True):
            found.append((end - start).to_bytes(4, "big") + raw[start * size : end * size] if ok else b"none")
    return found


def row_problems(kind: str, table: pa.Table) -> list[str]:
    """What is wrong with a table of rows: schema first, then lengths and masks, then stored log-probs."""
    if kind not in BASE:
        return [f"unknown kind of rows {kind!r}"]
    wrong = _schema_problems(kind, table.schema) or _null_problems(kind, table)
    if wrong:
        return wrong
    table = table.combine_chunks()
    found = [*_token_problems(table, "prompt"), *_score_problems(table)]
    for side in sides_of(kind, table.column_names):
        uncounted = _token_problems(table, side)
        found += [*uncounted, *_reference_problems(table, side, summed=not uncounted)]
    return found


def _schema_problems(kind: str, found: pa.Schema) -> list[str]:
    problems = [f"column {name} is absent" for name in BASE[kind].names if name not in found.names]
    groups = [group.get(kind, ()) for group in (BASE, OPTIONAL, SEGMENT, SAMPLED, SELECTED, JUDGED)] + [cleaned.CLEANED]
    for group in (*groups, reference_of(kind, found.names) if kind in REFERENCE else ()):
        for field in group:
            index = found.get_field_index(field.name)
            if index >= 0 and found.field(index).type != field.type:
                problems.append(f"column {field.name} is {found.field(index).type}, expected {field.type}")
    return problems


def _null_problems(kind: str, table: pa.Table) -> list[str]:
    names = [field.name for field in BASE[kind] if not field.nullable]
    columns = table.column_names
    names += [field.name for field in SELECTED.get(kind, ()) if not field.nullable and field.name in columns]
    if kind in REFERENCE:
        names += [field.name for field in reference_of(kind, columns) if field.name in columns]
    return [f"{name} is null in {nulls} rows" for name in names if (nulls := table[name].null_count)]


def _token_problems(table: pa.Table, side: str) -> list[str]:
    ids, mask, counted = table[f"{side}_ids"], f"{side}_loss_mask", table[f"{side}_tokens"]
    if mask in table.column_names:
        absent = pc.is_null(table[mask])
        if not _holds(pc.or_kleene(absent, pc.equal(pc.list_value_length(table[mask]), pc.list_value_length(ids)))):
            return [f"{mask} is not one value per token of {side}_ids"]
        if pc.list_flatten(table[mask]).null_count:
            return [f"{mask} holds nulls"]
    problems = []
    if not np.array_equal(_per_row(ids, scored(table, side)), counted.to_numpy()):
        problems.append(f"{side}_tokens is not the number of scored tokens in {side}_ids")
    if side != "prompt" and not _holds(pc.greater_equal(counted, 1)):
        problems.append(f"{side}_tokens is below 1")
    return problems


def _score_problems(table: pa.Table) -> list[str]:
    """Of the scores by name."""
    if "scores" not in table.column_names:
        return []
    flat = pc.list_flatten(table["scores"])
    names, values = pc.struct_field(flat, "scorer"), pc.struct_field(flat, "score")
    problems = []
    if flat.null_count or names.null_count or values.null_count:
        problems.append("scores holds nulls")
    elif not _holds(pc.is_finite(values)):
        problems.append("scores holds values that are not finite")
    owners = pc.list_parent_indices(table["scores"])
    if len(set(zip(owners.to_pylist(), names.to_pylist(), strict=True))) < len(names):
        problems.append("scores names a scorer twice in one row")
    return problems


def _reference_problems(table: pa.Table, side: str, *, summed: bool) -> list[str]:
    """Of the stored log-probs of a side; their sums only if its tokens and mask are sound."""
    tokens, total = f"ref_{side}_token_logps", f"ref_{side}_logps"
    problems = []
    for name in (tokens, total):
        if name in table.column_names:
            problems += _logp_problems(name, _values(table[name]), POSITIVE_LOGP if name == tokens else None)
    if tokens not in table.column_names:
        return problems
    ids = table[f"{side}_ids"]
    if not _holds(pc.equal(pc.list_value_length(table[tokens]), pc.list_value_length(ids))):
        problems.append(f"{tokens} is not one value per token of {side}_ids")
    if summed and not problems and total in table.column_names:
        sums = _per_row(ids, np.where(scored(table, side), _values(table[tokens]), 0))
        wrong = np.abs(table[total].to_numpy() - sums) > _SUM_TOLERANCE * np.maximum(1, np.abs(sums))
        if wrong.any():
            problems.append(f"{total} is not the sum of {tokens} over the scored tokens in {wrong.sum()} rows")
    return problems


def _logp_problems(name: str, values: np.ndarray, largest: float | None) -> list[str]:
    if not np.isfinite(values).all():
        return [f"{name} holds values that are not finite"]
    if largest is not None and (values > largest).any():
        return [f"{name} holds a log-prob above 0"]
    return []


def _holds(what: pa.ChunkedArray) -> bool:
    """Whether it is true in every row; a null is not true."""
    return pc.all(what, skip_nulls=False, min_count=0).as_py() is True


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """All numbers of a column of numbers or of lists of them, in float64; a null is a NaN."""
    flat = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    return np.asarray(pc.cast(flat, pa.float64()))


def _per_row(lists: pa.ChunkedArray, values: np.ndarray) -> np.ndarray:
    """Sums of one value per list item, by row."""
    return np.bincount(pc.list_parent_indices(lists).to_numpy(), values, minlength=len(lists))


def scored(table: pa.Table, side: str) -> np.ndarray:
    """Which tokens are scored, one row after the other; where a row has no mask, all."""
    lengths = pc.list_value_length(table[f"{side}_ids"]).to_numpy()
    scored = np.ones(lengths.sum(), bool)
    mask = f"{side}_loss_mask"
    if mask in table.column_names:
        masked = np.repeat(table[mask].is_valid().to_numpy(), lengths)
        scored[masked] = pc.list_flatten(table[mask]).to_numpy()
    return scored


def schema_of(kind: str, *extras: pa.Schema) -> pa.Schema:
    """The row schema of a kind with further groups of columns."""
    if kind not in BASE:
        raise UserError(f"unknown kind of rows {kind!r}; there are: {', '.join(BASE)}")
    return pa.unify_schemas([BASE[kind], *extras])
