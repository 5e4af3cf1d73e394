"""The shared prompt on and off: forward and backward of trees, against our own padded forward.

    python -m benchmarks.shared_prompt

The head reads completions only on both sides. The ceiling is how many times as many operations the padded side needs;
it is computed from the shapes and printed. Losses are equal to 1e-4 of their size, or the benchmark stops.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import operations
from benchmarks.measure import paired, timed
from benchmarks.models import HALF_B_LIKE, TOY, build
from benchmarks.results import Line, Report, command, of_ceiling
from benchmarks.shapes import Shape
from prefdata import logprobs
from prefdata.errors import UserError
from prefdata.logprobs import Scores, Tree, padded

SHAPES = (
    Shape(128, 128, rows=4),
    Shape(512, 128, rows=2),
    Shape(1792, 256),
    Shape(256, 512),
    Shape(512, 64, branches=8),
)
MODELS = {"35 M": TOY, "0.5 B-like": HALF_B_LIKE}
REACH = 0.85


def run(pairs: int = 3, models: Any = None, shapes: Sequence[Shape] = SHAPES) -> Report:
    """Every shape with every model."""
    measured = [
        _measured(name, build(config).train(), shape, pairs)
        for name, config in (models or MODELS).items()
        for shape in shapes
    ]
    return Report("Shared prompt", [line for line, _ in measured], ["\n".join(f"- {told}" for _, told in measured)])


def _measured(name: str, model: Any, shape: Shape, pairs: int) -> tuple[Line, str]:
    trees = shape.trees(model.config.vocab_size)
    logprobs.forward(model, trees[:1])  # prepares the model
    on, off = _work(model, trees, logprobs.forward), _work(model, trees, padded.forward)
    ours, theirs = on(), off()
    if not abs(ours - theirs) <= 1e-4 * abs(theirs):
        raise UserError(f"{name}, {shape}: the shared forward gives {ours} and the padded one {theirs}")
    found = list(paired(timed(on), timed(off), pairs))
    needed, padding = operations.shared(model, trees), operations.padded(model, trees)
    ceiling = padding.total / needed.total
    line = of_ceiling(f"shared prompt, {name}, {shape}", "own padded path", found, ceiling, REACH)
    told = f"{name}, {shape}: ceiling {ceiling:.2f}; padded {padding.text()}; shared {needed.text()}"
    return line, told


def _work(model: Any, trees: Sequence[Tree], forward: Callable[..., Scores]) -> Callable[[], float]:
    """Forward and backward of the mean log-prob."""

    def work() -> float:
        logps = forward(model, trees).logps
        loss = sum((each.sum() for each in logps), start=logps[0].new_zeros(())) / sum(map(len, logps))
        loss.backward()
        model.zero_grad()
        return float(loss.detach())

    return work


if __name__ == "__main__":
    sys.exit(command(run))
