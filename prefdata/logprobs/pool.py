"""Scoring on several devices: a process for each, with a copy of the model, that trees are dealt to.

How trees are dealt depends on them alone, never on how many devices there are, so that their number changes no log-prob.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

import torch

from prefdata.engines import EngineDied
from prefdata.logprobs.score import BATCH_TOKENS_CPU, BATCH_TOKENS_GPU, Logps, score
from prefdata.logprobs.trees import Tree
from prefdata.models import load_model

# budgets of tokens that are dealt at a time: few, so that no device waits long for the last, and enough to fill batches
_DEALT_BUDGETS = 2


def gpus() -> list[str]:
    """Every GPU that this process may use."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


class Pool:
    """Processes that score, started at the first call and ended by `close`; they never outlive this one."""

    def __init__(self, loading: Mapping[str, Any], devices: Sequence[str]) -> None:
        """`loading` of prefdata.models.load_model, and the device of each process."""
        self._loading, self._devices = dict(loading), list(devices)
        self._processes: ProcessPoolExecutor | None = None

    def score(self, trees: Sequence[Tree], *, tell: Callable[[float], None] | None = None) -> Logps:
        """As `prefdata.logprobs.score`. EngineDied if a process ends; the next call starts them anew."""
        budget = BATCH_TOKENS_CPU if self._devices[0].startswith("cpu") else BATCH_TOKENS_GPU
        found: list[Any] = [None] * len(trees)
        done = 0
        try:
            pool = self._started()
            dealt: dict[Future[Logps], list[int]] = {}
            for numbers in deal(trees, _DEALT_BUDGETS * budget):
                dealt[pool.submit(_score, [trees[number] for number in numbers])] = numbers
            for future in as_completed(dealt):
                for number, logps in zip(dealt[future], future.result(), strict=True):
                    found[number] = logps
                done += len(dealt[future])
                if tell is not None:
                    tell(done / len(trees))
        except BrokenProcessPool as problem:
            self.close()
            raise EngineDied(f"a process that scores on {', '.join(self._devices)} ended") from problem
        return found

    def close(self) -> None:
        """End the processes."""
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)
        self._processes = None

    def _started(self) -> ProcessPoolExecutor:
        if self._processes is None:
            context = multiprocessing.get_context("spawn")  # CUDA allows no fork
            devices = context.SimpleQueue()
            for device in self._devices:
                devices.put(device)
            threads = max(1, torch.get_num_threads() // len(self._devices))
            self._processes = ProcessPoolExecutor(
                len(self._devices), context, initializer=_begin, initargs=(self._loading, devices, threads)
            )
        return self._processes


def deal(trees: Sequence[Tree], budget: int) -> Iterator[list[int]]:
    """Numbers of trees in runs of about `budget` tokens, the deepest first."""
    run: list[int] = []
    room = budget
    for number in sorted(range(len(trees)), key=lambda number: (-trees[number].depth, number)):
        tokens = len(trees[number].trunk) + sum(len(branch) for branch in trees[number].branches)
        if run and tokens > room:
            yield run
            run, room = [], budget
        run.append(number)
        room -= tokens
    if run:
        yield run


_model: Any = None  # a process's own


def _begin(loading: dict[str, Any], devices: Any, threads: int) -> None:
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that deals decides when to end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = devices.get()
    torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    _model = load_model(**loading, device=device)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _score(trees: Sequence[Tree]) -> Logps:
    return score(_model, trees)
