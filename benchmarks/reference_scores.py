"""Reference log-probs, without gradients: of pairs against TRL's precomputing, and of many candidates of one prompt.

    python -m benchmarks.reference_scores

Candidates are also scored by our own padded forward, whose head reads completions only, and by a plain loop over batches of a
transformers model. Both are set against their ceiling: how many times as many operations they need.
All sides give the same sums to 1e-3 nats, or the benchmark stops.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import operations, plain
from benchmarks.measure import paired, timed
from benchmarks.models import TOY, build
from benchmarks.results import Line, Report, command, faster, of_ceiling
from benchmarks.shapes import Shape
from benchmarks.trl_side import TrlReference, examples
from prefdata import logprobs
from prefdata.errors import UserError
from prefdata.logprobs import Tree, padded

PAIRS = Shape(512, 128, rows=16)
CANDIDATES = Shape(1024, 128, branches=16)
TRL_BATCH = 8  # pairs: larger ones were no faster
ROWS = 4  # of a padded batch
REACH, OF_CEILING = 4.0, 0.85
SAME = 1e-3  # nats, of a sum over a completion's tokens


def run(pairs: int = 5, config: Any = TOY, of_pairs: Shape = PAIRS, candidates: Shape = CANDIDATES) -> Report:
    """Both shapes."""
    model = build(config).eval()
    measured = [_pairs(model, of_pairs, pairs), *_candidates(model, candidates, pairs)]
    return Report(
        "Reference log-probs", [line for line, _ in measured], ["\n".join(f"- {told}" for _, told in measured)]
    )


def _pairs(model: Any, shape: Shape, pairs: int) -> tuple[Line, str]:
    trees = shape.trees(model.config.vocab_size)
    rows, trl = examples(trees), TrlReference(model, TRL_BATCH)
    _check(_sums(logprobs.score(model, trees)), trl(rows))
    found = list(paired(timed(lambda: logprobs.score(model, trees)), timed(lambda: trl(rows)), pairs))
    ours, theirs = operations.shared(model, trees), operations.padded(model, trees, every=True)
    told = f"{shape}: TRL needs {theirs.total / ours.total:.2f} times as many operations ({theirs.text()}; ours {ours.text()})"
    return faster(f"reference log-probs, {shape}", f"TRL, {TRL_BATCH} pairs a batch", found, REACH), told


def _candidates(model: Any, shape: Shape, pairs: int) -> list[tuple[Line, str]]:
    trees = shape.trees(model.config.vocab_size)
    ours, every = operations.shared(model, trees), {}
    every["own padded path"] = (lambda: _padded(model, trees)), operations.padded(model, trees)
    every["plain loop"] = (lambda: plain.score(model, trees, ROWS)), operations.padded(model, trees, every=True)
    lines = []
    for name, (work, theirs) in every.items():
        _check(_sums(logprobs.score(model, trees)), _sums([work()]))
        found = list(paired(timed(lambda: logprobs.score(model, trees)), timed(work), pairs))
        ceiling = theirs.total / ours.total
        line = of_ceiling(f"reference log-probs, {shape}", f"{name}, {ROWS} rows a batch", found, ceiling, OF_CEILING)
        lines.append(
            (line, f"{shape}, {name}: {theirs.text()}; ours {ours.text()}: {ceiling:.2f} times as many operations")
        )
    return lines


@torch.no_grad()
def _padded(model: Any, trees: Sequence[Tree]) -> list[torch.Tensor]:
    rows = [Tree(tree.trunk, [branch]) for tree in trees for branch in tree.branches]
    return [
        found
        for start in range(0, len(rows), ROWS)
        for found in padded.forward(model, rows[start : start + ROWS]).logps
    ]


def _sums(logps: Sequence[Sequence[Any]]) -> list[list[float]]:
    return [[float(branch.sum()) for branch in tree] for tree in logps]


def _check(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
    gap = float(np.abs(np.subtract(ours, theirs)).max())
    if not gap < SAME:
        raise UserError(f"the sums of both sides differ by {gap:.2g} nats: they do not score the same tokens")


if __name__ == "__main__":
    sys.exit(command(run))
