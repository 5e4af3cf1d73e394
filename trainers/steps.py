"""Which rows make up each optimiser step, and how one process cuts its share of them into micro-batches.

A step is the rows of batch-size x accumulate x processes, whatever the cut: micro-batches only bound what is in memory at
a time. They hold a number of rows each, or as many rows as a budget of tokens allows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from prefdata import draws
from trainers.data import Row, RowBatch, Rows, collate
from trainers.groups import Groups

Lengths = np.ndarray[Any, np.dtype[np.int64]]
Cut = list[list[int]]  # micro-batches of row numbers


@dataclass(frozen=True)
class Step:
    """What one process computes of an optimiser step: its micro-batches, of which some may be empty."""

    batches: tuple[RowBatch, ...]


class EpochOrder(Sampler[int]):
    """A new order of the rows for every epoch, drawn from (seed, epoch) alone, so that a resumed run sees the same.

    Within the rows of one optimiser step the longest come first: if memory runs out, it does so at the start.
    """

    def __init__(self, lengths: Sequence[int] | Lengths, seed: int, rows_per_step: int) -> None:
        self.lengths = np.asarray(lengths)
        self.seed = seed
        self.rows_per_step = rows_per_step
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.steps())

    def steps(self) -> Iterator[list[int]]:
        """The rows of each optimiser step."""
        generator = draws.generator(draws.row_seed(self.seed, "all rows", "order", round_=self.epoch))
        order = generator.permutation(len(self.lengths))
        for start in range(0, len(order), self.rows_per_step):
            step = order[start : start + self.rows_per_step]
            yield step[np.argsort(-self.lengths[step], kind="stable")].tolist()


class MicroBatches(Sampler[Cut]):
    """What one process of a run reads of every step: its rows, in micro-batches.

    All processes have equally many micro-batches in a step, since they wait for each other; those at the end may be
    empty: no row is read twice to fill them.
    """

    def __init__(
        self, order: EpochOrder, batch_size: int, *, batch_tokens: int | None = None, rank: int = 0, size: int = 1
    ) -> None:
        """`batch_tokens`, where given, bounds a micro-batch in the place of `batch_size` rows."""
        self.order = order
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.rank = rank
        self.size = size

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop when an epoch begins."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.order) // self.order.rows_per_step)

    def __iter__(self) -> Iterator[Cut]:
        for step in self.order.steps():
            shares = [self._cut(step[rank :: self.size]) for rank in range(self.size)]
            most = max(map(len, shares))
            own = shares[self.rank]
            yield own + [[] for _ in range(most - len(own))]

    def _cut(self, rows: list[int]) -> Cut:
        if self.batch_tokens is None:
            return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        cut: Cut = []
        room = 0
        for row in rows:
            needed = int(self.order.lengths[row])
            if needed > room:
                cut.append([])
                room = self.batch_tokens
            cut[-1].append(row)
            room -= needed
        return cut


class Loader(DataLoader[Any]):
    """Steps of rows, in an order of their own for every epoch."""

    def __init__(self, rows: Rows | Groups, batches: MicroBatches) -> None:
        super().__init__(_Picked(rows), batch_sampler=batches, collate_fn=_step)  # type: ignore[arg-type]
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop when an epoch begins."""
        self.batches.set_epoch(epoch)


class _Picked(Dataset[list[Row]]):
    """The rows of a micro-batch."""

    def __init__(self, rows: Rows | Groups) -> None:
        self._rows = rows

    def __getitem__(self, places: Sequence[int]) -> list[Row]:
        return [self._rows[place] for place in places]


def _step(micro_batches: Sequence[Sequence[Row]]) -> Step:
    return Step(tuple(collate(rows) for rows in micro_batches))
