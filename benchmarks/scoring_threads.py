"""Scoring with every core against one thread.

python -m benchmarks.scoring_threads
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Taken, paired, timed
from benchmarks.models import TOY, build
from benchmarks.results import Report, command, faster
from benchmarks.shapes import Shape
from prefdata import logprobs

SHAPE = Shape(512, 128, rows=16)
REACH = 1.6


def run(pairs: int = 5, config: Any = TOY, shape: Shape = SHAPE, reach: float = REACH) -> Report:
    """Reference log-probs of pairs."""
    model, threads = build(config).eval(), len(os.sched_getaffinity(0))
    trees = shape.trees(config.vocab_size)

    def scored(count: int) -> Callable[[], Taken]:
        def work() -> Taken:
            torch.set_num_threads(count)
            return timed(lambda: logprobs.score(model, trees))()

        return work

    before = torch.get_num_threads()
    try:
        scored(threads)()
        found = list(paired(scored(threads), scored(1), pairs))
    finally:
        torch.set_num_threads(before)
    return Report("Threads", [faster(f"scoring with {threads} threads, {shape}", "one thread", found, reach)])


if __name__ == "__main__":
    sys.exit(command(run))
