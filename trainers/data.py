"""A version's rows as batches of token trees: read once, kept as Arrow, never as Python objects for all rows.

The rows of a split are copied to an uncompressed Arrow file beside the run and memory-mapped, so that memory does not
grow with the version. The file is unlinked as soon as it is open: nothing is left behind, however the run ends.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prefdata.logprobs import Tree
from prefdata.versions import Version
from trainers import contract
from trainers.loss import Reading
from trainers.objectives.batch import Value
from trainers.precision import widest
from trainers.runs import SPOOL

ROWS_PER_BATCH = 4096

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Side:
    """One completion of a row: its tokens, which of them are scored, and the reference's log-prob of it."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    scored: np.ndarray[Any, np.dtype[np.bool_]]
    tokens: int
    reference: float | None  # nats, summed over the scored tokens in float64; None: not read
    token_reference: np.ndarray[Any, np.dtype[np.float32]] | None = None  # nats; None: not read


@dataclass(frozen=True)
class Row:
    """One row: a prompt, the completions that the loss reads, and what else it reads of the row."""

    row_id: str
    prompt_ids: np.ndarray[Any, np.dtype[np.int32]]
    sides: tuple[Side, ...]
    names: tuple[str, ...]  # of the sides
    values: Mapping[str, Any]  # by column: numbers, truth values, vectors
    is_group: bool = False  # whether the sides are rows of the version themselves, and values hold one of each


@dataclass(frozen=True)
class RowBatch:
    """A micro-batch: what the forward reads, and what the loss is made from beside it.

    The S branches run tree by tree (row 0's sides, row 1's sides, ...).
    """

    row_ids: tuple[str, ...]
    trees: tuple[Tree, ...]
    names: tuple[str, ...]  # of the sides of every row
    scored: Tensor  # (S, longest) bool, which tokens of each branch are scored
    tokens: Tensor  # (S,) int64, how many those are
    reference: Tensor | None  # (S,) float64, nats
    token_reference: Tensor | None = None  # (S, longest) float64, nats
    values: Mapping[str, Tensor] = field(default_factory=dict)  # by column, (B,) or (B, size); of groups (S,)
    step_tokens: Tensor | None = None  # (names,) scored tokens of a side, a mean over the step's rows; None: over these

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def side_tokens(self) -> Tensor:
        """(B, names) scored tokens of the sides of each row, where all rows have the same sides."""
        return self.tokens.reshape(len(self), -1)

    @property
    def counts(self) -> list[int]:
        """Branches of each row."""
        return [len(tree.branches) for tree in self.trees]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RowBatch":
        """The same batch with its tensors on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: moved(each) for name, each in value.items()}
            if not isinstance(value, Tensor):
                return value
            dtype = widest(device) if value.is_floating_point() else value.dtype
            return value.to(dtype).to(device, non_blocking=non_blocking)

        return replace(self, **{each.name: moved(getattr(self, each.name)) for each in fields(self)})

    @property
    def all_tokens(self) -> int:
        """Tokens of the trees, prompts counted once."""
        return sum(len(tree.trunk) + sum(map(len, tree.branches)) for tree in self.trees)


class Rows(Dataset[Row]):
    """Random access to rows held in Arrow record batches."""

    def __init__(self, batches: Sequence[pa.RecordBatch], reading: Reading) -> None:
        self.reading = reading
        self._hold([_Chunk(batch, reading) for batch in batches if batch.num_rows])

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, one after another."""
        whole = cls((), parts[0].reading)
        whole._hold(list(chain.from_iterable(part._chunks for part in parts)))
        return whole

    def _hold(self, chunks: Sequence["_Chunk"]) -> None:
        self._chunks = chunks
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self.lengths = np.concatenate([chunk.lengths for chunk in chunks] or [np.zeros(0, np.int64)])
        self.longest = max((chunk.longest for chunk in chunks), default=0)
        self.largest_id = max((chunk.largest_id for chunk in chunks), default=0)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows."""
        return pa.chunked_array([chunk.batch[name] for chunk in self._chunks])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._chunks else 0

    def __getitem__(self, index: int) -> Row:
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[chunk - 1]) if chunk else 0
        return self._chunks[chunk].row(index - start)


def load(
    version: Version, split: str, reading: Reading, folder: str | os.PathLike[str], *, keep: Mask | None = None
) -> Rows:
    """The rows of a split as a loss reads them, every one checked; spooled through `folder`.

    `keep` says of each row of the split whether it is read at all.
    """
    tables = _kept(version, split, columns(version.columns(), reading), keep)
    return Rows(_spool(_checked(tables, reading, version), folder), reading)


def columns(present: Sequence[str], reading: Reading) -> list[str]:
    """The columns to read: required ones by name, optional ones if present."""
    names = ["row_id", "prompt_ids"]
    if reading.grouped:
        names.append("prompt_id")
    for side in reading.sides:
        names += [f"{side}_ids", f"{side}_tokens"]
        optional = [f"{side}_loss_mask"]
        if reading.referenced:
            optional += [f"ref_{side}_token_logps", f"ref_{side}_logps"]
        names += [name for name in optional if name in present]
    names += [name for name, value in reading.values.items() if value.default is None or name in present]
    return names


def collate(rows: Sequence[Row]) -> RowBatch:
    """Rows to a micro-batch, which may be empty."""
    branches = [side for row in rows for side in row.sides]
    longest = max((len(side.ids) for side in branches), default=0)
    scored = np.zeros((len(branches), longest), np.bool_)
    for place, side in enumerate(branches):
        scored[place, : len(side.ids)] = side.scored
    reference = [side.reference for side in branches if side.reference is not None]
    return RowBatch(
        row_ids=tuple(row.row_id for row in rows),
        trees=tuple(Tree(row.prompt_ids, [side.ids for side in row.sides]) for row in rows),
        names=rows[0].names if rows else (),
        scored=torch.from_numpy(scored),
        tokens=torch.tensor([side.tokens for side in branches], dtype=torch.int64),
        reference=torch.tensor(reference, dtype=torch.float64) if reference else None,
        token_reference=_padded([side.token_reference for side in branches], longest),
        values=_values(rows),
    )


def _padded(parts: Sequence[np.ndarray[Any, Any] | None], longest: int) -> Tensor | None:
    if not parts or parts[0] is None:
        return None
    padded = np.zeros((len(parts), longest), np.float64)
    for place, part in enumerate(parts):
        assert part is not None
        padded[place, : len(part)] = part
    return torch.from_numpy(padded)


def _values(rows: Sequence[Row]) -> dict[str, Tensor]:
    names = rows[0].values if rows else ()
    found = {name: np.asarray([row.values[name] for row in rows]) for name in names if not rows[0].is_group}
    found |= {name: np.concatenate([row.values[name] for row in rows]) for name in names if rows[0].is_group}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def each_row(batch: pa.RecordBatch, reading: Reading) -> Iterator[Row]:
    """The rows of one record batch, in order."""
    chunk = _Chunk(batch, reading)
    return map(chunk.row, range(len(chunk)))


def _kept(version: Version, split: str, names: Sequence[str], keep: Mask | None) -> Iterator[pa.Table]:
    start = 0
    for table in version.batches(split, columns=names, rows=ROWS_PER_BATCH):
        yield table if keep is None else table.filter(pa.array(keep[start : start + len(table)]))
        start += len(table)


def _checked(tables: Iterator[pa.Table], reading: Reading, version: Version) -> Iterator[pa.Table]:
    for table in tables:
        contract.check_rows(table, reading, version)
        yield table


def _spool(tables: Iterator[pa.Table], folder: str | os.PathLike[str]) -> list[pa.RecordBatch]:
    """The tables as record batches that live in a memory-mapped file without a name."""
    handle, path = tempfile.mkstemp(prefix=SPOOL, suffix=".arrow", dir=folder)
    os.close(handle)
    try:
        writer: pa.ipc.RecordBatchFileWriter | None = None
        for table in tables:
            writer = writer or pa.ipc.new_file(path, table.schema.remove_metadata())
            for batch in table.combine_chunks().to_batches():
                writer.write_batch(batch.replace_schema_metadata(None))
        if writer is None:
            return []
        writer.close()
        reader = pa.ipc.open_file(pa.memory_map(path))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    finally:
        os.unlink(path)


class _Lists:
    """A list column without Python objects: the values of row i are values[offsets[i]:offsets[i + 1]]."""

    def __init__(self, column: pa.ListArray) -> None:
        self.offsets = column.offsets.to_numpy()
        values = column.values
        self.values = values.to_numpy(zero_copy_only=values.type != pa.bool_())
        self.present = column.is_valid().to_numpy(zero_copy_only=False)

    def __getitem__(self, row: int) -> Any:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Any:
        return np.diff(self.offsets).astype(np.int64)


class _Chunk:
    """One record batch."""

    def __init__(self, batch: pa.RecordBatch, reading: Reading) -> None:
        self.batch = batch
        self._reading = reading
        self._prompts = _Lists(batch["prompt_ids"])
        self._sides = [_Column(batch, side, tokenwise=reading.partial) for side in reading.sides]
        self._values = {name: _numbers(batch, value) for name, value in reading.values.items()}
        prompts = self._prompts.lengths
        self.lengths = prompts + sum(column.ids.lengths for column in self._sides)
        self.longest = max(int((prompts + column.ids.lengths).max()) for column in self._sides)
        self.largest_id = max(
            int(ids.values.max(initial=0)) for ids in (self._prompts, *(column.ids for column in self._sides))
        )

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def row(self, place: int) -> Row:
        return Row(
            row_id=self.batch["row_id"][place].as_py(),
            prompt_ids=self._prompts[place],
            sides=tuple(column.side(place) for column in self._sides),
            names=self._reading.sides,
            values={name: values[place] for name, values in self._values.items()},
        )


def _numbers(batch: pa.RecordBatch, value: Value) -> np.ndarray[Any, Any]:
    """A column of numbers as float64, of truth values as bool, of vectors as float32 (rows, size)."""
    if value.column not in batch.schema.names:
        return np.full(batch.num_rows, value.default, np.float64)
    column = batch[value.column]
    if pa.types.is_list(column.type):
        flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
        return flat.reshape(batch.num_rows, -1)
    if pa.types.is_boolean(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), np.bool_)
    filled = column if value.default is None else pc.fill_null(column, value.default)
    return np.asarray(filled.cast(pa.float64()).to_numpy(zero_copy_only=False))


class _Column:
    """The columns of one side."""

    def __init__(self, batch: pa.RecordBatch, side: str, *, tokenwise: bool) -> None:
        names = batch.schema.names

        def lists(name: str) -> _Lists | None:
            return _Lists(batch[name]) if name in names else None

        self.ids = _Lists(batch[f"{side}_ids"])
        self.tokens = batch[f"{side}_tokens"].to_numpy()
        self.mask = lists(f"{side}_loss_mask")
        self.token_logps = lists(f"ref_{side}_token_logps")
        self.tokenwise = tokenwise
        sums = f"ref_{side}_logps"
        self.logps = batch[sums].to_numpy(zero_copy_only=False) if sums in names else None

    def side(self, place: int) -> Side:
        ids = self.ids[place]
        masked = self.mask is not None and self.mask.present[place]
        scored = self.mask[place] if self.mask is not None and masked else np.ones(len(ids), np.bool_)
        by_token = self.token_logps[place] if self.token_logps is not None else None
        return Side(
            ids=ids,
            scored=scored,
            tokens=int(self.tokens[place]),
            reference=self._reference(place, scored, by_token),
            token_reference=by_token if self.tokenwise else None,
        )

    def _reference(self, place: int, scored: Any, by_token: Any) -> float | None:
        """The per-token values summed in float64, as the policy's are, so that the difference cancels exactly."""
        if by_token is not None:
            return float(by_token[scored].sum(dtype=np.float64))
        return None if self.logps is None else float(self.logps[place])
