"""Rows of a version by their ids, wherever they stand: answers are joined to what was said of them by id alone."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata.errors import UserError
from prefdata.versions import Version

_FILES_HELD = 4


class RowsById:
    """Finds rows through an index of (row_id, file, position), and keeps the files that were read last."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._entries = [entry for split in version.splits for entry in version.files(split)]
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self.index = pl.concat(
            [_places(version.read(entry, ["row_id"]), number) for number, entry in enumerate(self._entries)]
        )
        if self.index["row_id"].n_unique() < self.index.height:
            raise UserError(f"{version.name} holds a row_id twice: look with `prefdata verify {version.name}`")

    def take(self, row_ids: Sequence[str] | pl.Series) -> pa.Table:
        """The rows of these ids, in their order; an id may stand there twice."""
        wanted = pl.DataFrame({"row_id": pl.Series(row_ids, dtype=pl.String)})
        found = wanted.join(self.index, on="row_id", how="left", maintain_order="left")
        if found["file"].null_count():
            raise KeyError(f"{found.filter(pl.col('file').is_null())['row_id'][0]} is no row of {self._version.name}")
        files, positions = found["file"].to_numpy(), found["position"].to_numpy()
        order = np.argsort(files, kind="stable")
        parts = [self._file(int(number)).take(positions[order[here]]) for number, here in _runs(files[order])]
        joined = pa.concat_tables(parts) if parts else self._version.schema.empty_table()
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return joined.take(back).combine_chunks()

    def _file(self, number: int) -> pa.Table:
        if number not in self._held:
            self._held[number] = self._version.read(self._entries[number])
            while len(self._held) > _FILES_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


def _places(table: pa.Table, file: int) -> pl.DataFrame:
    return pl.DataFrame({"row_id": table["row_id"]}).with_columns(
        file=pl.lit(file, pl.Int32), position=pl.int_range(pl.len(), dtype=pl.Int64)
    )


def _runs(files: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each file in a sorted list, and where it stands."""
    bounds = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(files)]
    for start, end in pairwise(bounds):
        if end > start:
            yield int(files[start]), slice(start, end)
