"""Batches that depend only on what goes into them, and the halving of one that does not fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def run_halving(batches: Sequence[Sequence[Item]], run: Callable[[Sequence[Item]], Result]) -> Iterator[Result]:
    """Runs batch after batch. One that the GPU has no memory for is halved, and so are those after it.

    A single row too large for the memory raises.
    """
    waiting = list(batches)
    while waiting:
        try:
            result = run(waiting[0])
        except torch.OutOfMemoryError:
            if len(waiting[0]) == 1:
                raise
        else:
            waiting.pop(0)
            yield result
            continue
        # after the except clause, whose traceback keeps the failed batch's tensors alive
        torch.cuda.empty_cache()
        waiting = [half for batch in waiting for half in _halves(batch)]


def _halves(batch: Sequence[Item]) -> list[Sequence[Item]]:
    middle = (len(batch) + 1) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]
