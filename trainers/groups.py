"""Completions of one prompt as one row: what losses on rankings read.

Which rows of a version belong together is worked out once, from their prompt ids; the rows themselves stay where they
are (see trainers.data).
"""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from torch.utils.data import Dataset

from trainers.data import Row, Rows

FEWEST = 2  # completions of which a ranking can be made


class Groups(Dataset[Row]):
    """Random access to groups. Prompts with fewer than two different scores rank nothing and are left out."""

    def __init__(self, rows: Rows) -> None:
        every = pl.DataFrame({"prompt_id": rows.column("prompt_id"), "score": rows.column("score")})
        found = (
            every.with_row_index("row")
            .group_by("prompt_id", maintain_order=True)
            .agg("row", scores=pl.col("score").n_unique())
        )
        ranked = found.filter(pl.col("scores") >= FEWEST)["row"]
        self.left_out = found.height - len(ranked)  # prompts
        self.longest, self.largest_id, self.reading = rows.longest, rows.largest_id, rows.reading
        self._rows = rows
        self._members = ranked.explode().to_numpy()
        self._ends = np.cumsum(ranked.list.len().to_numpy(), dtype=np.int64)
        totals = np.concatenate([[0], np.cumsum(rows.lengths[self._members])])
        self.lengths: np.ndarray[Any, np.dtype[np.int64]] = np.diff(totals[np.concatenate([[0], self._ends])])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows that the groups are made of, and those that stand in none."""
        return self._rows.column(name)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Row:
        start = int(self._ends[index - 1]) if index else 0
        members = [self._rows[int(place)] for place in self._members[start : self._ends[index]]]
        first = members[0]
        return Row(
            row_id=first.row_id,
            prompt_ids=first.prompt_ids,
            sides=tuple(side for member in members for side in member.sides),
            names=first.names,
            values={name: np.asarray([member.values[name] for member in members]) for name in first.values},
            is_group=True,
        )
