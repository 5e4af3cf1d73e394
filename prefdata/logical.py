"""The logical hash of a version, and what must hold of its rows whatever the file layout.

The hash covers ids, text (through row_id), tokens, masks and labels; not log-probs, not order, not how rows are cut
into files. It is the sum modulo 2**256 of one sha256 per row, so it is the same in any order.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.errors import UserError
from schemas import completions, pairs

BASE = {pairs.KIND: pairs.BASE, completions.KIND: completions.BASE}
REFERENCE = {pairs.KIND: pairs.REFERENCE, completions.KIND: completions.REFERENCE}
SIDES = {pairs.KIND: ("chosen", "rejected"), completions.KIND: ("completion",)}

_LABELS = (
    "chosen_score",
    "rejected_score",
    "score",
    "preference",
    "segment_start",
    "segment_end",
    "segment_source_end",
)
_LARGEST_LOGP = 1e-4  # a log-prob above 0 by more than rounding is an error


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
    for number, row_id in enumerate(table["row_id"].to_pylist()):
        tokens = b"\0".join(column[number] for column in lists)
        yield b"\0".join([row_id.encode(), tokens, repr([column[number] for column in labels]).encode()])


def _list_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """One byte string per row, its length first; None differs from empty."""
    found = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)
        offsets = chunk.offsets.to_numpy()
        valid = chunk.is_valid().to_pylist()
        for number, ok in enumerate(valid):
            part = np.ascontiguousarray(values[offsets[number] : offsets[number + 1]])
            found.append(len(part).to_bytes(4, "big") + part.tobytes() if ok else b"none")
    return found


def row_problems(kind: str, table: pa.Table) -> list[str]:
    """What is wrong with a table of rows: schema first, then lengths, then stored log-probs."""
    if kind not in BASE:
        return [f"unknown kind of rows {kind!r}"]
    wrong = _schema_problems(BASE[kind], table.schema)
    if wrong:
        return wrong
    found = []
    for name in ("prompt", *SIDES[kind]):
        found.extend(_token_problems(table, name))
    for side in SIDES[kind]:
        found.extend(_reference_problems(table, side))
    return found


def _schema_problems(expected: pa.Schema, found: pa.Schema) -> list[str]:
    problems = []
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            problems.append(f"column {field.name} is absent")
        elif found.field(index).type != field.type:
            problems.append(f"column {field.name} is {found.field(index).type}, expected {field.type}")
    return problems


def _token_problems(table: pa.Table, side: str) -> list[str]:
    lengths = pc.list_value_length(table[f"{side}_ids"])
    mask = f"{side}_loss_mask"
    scored = lengths
    if mask in table.column_names and table[mask].null_count < table.num_rows:
        sums = [None if row is None else sum(row) for row in table[mask].to_pylist()]
        scored = pc.coalesce(pa.array(sums, pa.int32()), lengths.combine_chunks())
    counted = table[f"{side}_tokens"]
    problems = []
    if not pc.all(pc.equal(scored, counted)).as_py():
        problems.append(f"{side}_tokens is not the number of scored tokens in {side}_ids")
    if side != "prompt" and pc.min(counted).as_py() is not None and pc.min(counted).as_py() < 1:
        problems.append(f"{side}_tokens is below 1")
    return problems


def _reference_problems(table: pa.Table, side: str) -> list[str]:
    name = f"ref_{side}_token_logps"
    if name not in table.column_names:
        return []
    problems = []
    lengths = pc.list_value_length(table[f"{side}_ids"])
    if not pc.all(pc.equal(pc.list_value_length(table[name]), lengths)).as_py():
        problems.append(f"{name} is not one value per token of {side}_ids")
    values = table[name].combine_chunks().flatten()
    if len(values) and not pc.all(pc.is_finite(values)).as_py():
        problems.append(f"{name} holds values that are not finite")
    if len(values) and pc.max(values).as_py() > _LARGEST_LOGP:
        problems.append(f"{name} holds a log-prob above 0")
    return problems


def schema_of(kind: str, *extras: pa.Schema) -> pa.Schema:
    """The row schema of a kind with further groups of columns."""
    if kind not in BASE:
        raise UserError(f"unknown kind of rows {kind!r}; there are: {', '.join(BASE)}")
    return pa.unify_schemas([BASE[kind], *extras])
