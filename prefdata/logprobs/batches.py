"""Batches that depend only on what goes into them, and the halving of those that do not fit into memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# so many parts run well before larger ones are tried again; twice as many each time that this was too early
_CALM = 32


def pack(widths: Sequence[int], budget: int) -> list[list[int]]:
    """Cuts rows, in the order given, into batches of at most `budget` tokens, each row as wide as its batch's widest.

    Returns indices. A row wider than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    widest = 0
    for index, width in enumerate(widths):
        widest = max(widest, width)
        if batches and widest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            widest = width
    return batches


def run_halving(batches: Iterable[Sequence[Item]], run: Callable[[Sequence[Item]], Result]) -> Iterator[Result]:
    """Runs batch after batch. One that the device has no memory for is halved, and so are those after it, until enough
    of them ran well: then the parts grow again, up to whole batches.

    A single row too large for the memory raises.
    """
    halvings, calm, enough, grew = 0, 0, _CALM, False
    for batch in batches:
        waiting = deque(_parts(batch, halvings))
        while waiting:
            try:
                result = run(waiting[0])
            except torch.OutOfMemoryError:
                if len(waiting[0]) == 1:
                    raise
            else:
                waiting.popleft()
                yield result
                calm += 1
                if halvings and calm >= enough:
                    halvings, calm, grew = halvings - 1, 0, True
                continue
            # after the except clause, whose traceback keeps the failed batch's tensors alive
            torch.cuda.empty_cache()
            enough = 2 * enough if grew else enough
            halvings, calm, grew = halvings + 1, 0, False
            waiting = deque(half for part in waiting for half in _parts(part, 1))


def _parts(batch: Sequence[Item], halvings: int) -> list[Sequence[Item]]:
    """The batch cut in halves so many times; none of the parts is empty."""
    parts = [batch]
    for _ in range(halvings):
        parts = [half for part in parts for half in _halves(part)]
    return parts


def _halves(batch: Sequence[Item]) -> list[Sequence[Item]]:
    middle = (len(batch) + 1) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]
