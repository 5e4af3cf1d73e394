"""Where the time of a training step and of scoring goes, operation by operation.

    python -m benchmarks.profile_step

What was done about the largest costs stands in docs/benchmarks.md.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import TOY, build
from benchmarks.our_step import OurStep, batch
from benchmarks.results import Report, command
from benchmarks.shapes import Shape
from prefdata import logprobs

STEP = Shape(512, 128, rows=2)
SCORING = Shape(512, 128, rows=8)
SHOWN = 12


def run(config: Any = TOY, step: Shape = STEP, scoring: Shape = SCORING) -> Report:
    """The largest costs of both."""
    trees, model = step.trees(config.vocab_size), build(config)
    ours, rows = OurStep(model), batch(trees, [[-1000.0, -1001.0] for _ in trees])
    others = scoring.trees(config.vocab_size)
    details = []
    for title, work in (
        (f"a DPO step, {step}", lambda: ours(rows)),
        (f"scoring, {scoring}", lambda: logprobs.score(model, others)),
    ):
        work()
        details += [f"Of {title}:", costs(work)]
    return Report("Profile", [], details)


def costs(work: Callable[[], object]) -> str:
    """A table of the operations that took most of the time themselves, without what they called."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        work()

    def taken(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(found.key_averages(), key=taken, reverse=True)
    total = sum(map(taken, events))
    shown = [f"| {event.key} | {event.count:,} | {taken(event) / total:.1%} |" for event in events[:SHOWN]]
    rest = sum(map(taken, events[SHOWN:]))
    return "\n".join(
        [
            f"| operation, of {total / 1e6:.2f} s | calls | share |",
            "| --- | --- | --- |",
            *shown,
            f"| all others | {sum(event.count for event in events[SHOWN:]):,} | {rest / total:.1%} |",
        ]
    )


if __name__ == "__main__":
    sys.exit(command(run))
