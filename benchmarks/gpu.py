"""On a GPU: a DPO step against TRL's, and scoring of many candidates against our own padded path, in bfloat16.

    python -m benchmarks.gpu

Random models with the proportions of 0.5 and 1.5 billion parameters. TRL runs in its best settings there: its head
reads completions only, no gradient checkpointing, reference log-probs at hand. Steps have float32 weights and bfloat16
products on both sides; scoring has bfloat16 weights. Ceilings are how many times as many operations the other side needs.
"""

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from benchmarks import operations
from benchmarks.dpo_step import Sides
from benchmarks.measure import Pair, paired, timed
from benchmarks.models import HALF_B, ONE_AND_A_HALF_B, build
from benchmarks.operations import Operations
from benchmarks.results import Line, Report, command, of_ceiling
from benchmarks.shapes import Shape
from prefdata import logprobs
from prefdata.errors import UserError
from prefdata.logprobs import Tree, padded

MODELS = {"0.5 B": HALF_B, "1.5 B": ONE_AND_A_HALF_B}
STEP = Shape(1792, 256, rows=2)
SCORING = Shape(1024, 256, rows=8, branches=8)
REACH = 0.9
SAME = 0.05  # nats, of a loss: both sides round to bfloat16


def run(
    pairs: int = 10, device: str = "cuda", models: Any = None, step: Shape = STEP, scoring: Shape = SCORING
) -> Report:
    """Steps and scoring of every model. UserError without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "torch finds no GPU on this machine; the benchmarks of a CPU are run by python -m benchmarks.all"
        )
    rate = operations.matrix_rate(device, torch.bfloat16)
    measured = []
    for name, config in (models or MODELS).items():
        measured.append(_step(name, config, step, pairs, device, rate))
        measured.append(_scoring(name, config, scoring, pairs, device, rate))
    details = [f"the machine's matrix rate: {rate / 1e12:,.0f} x 10^12 bfloat16 operations a second"]
    details += [told for _, several in measured for told in several]
    return Report("On a GPU", [line for line, _ in measured], ["\n".join(f"- {told}" for told in details)])


def _step(name: str, config: Any, shape: Shape, pairs: int, device: str, rate: float) -> tuple[Line, list[str]]:
    sides = Sides(config, device=device, same=SAME, bfloat16=True)
    trees = shape.trees(config.vocab_size)
    found = sides.run([trees], pairs)
    needed, theirs = operations.shared(sides.model, trees), operations.padded(sides.model, trees)
    line = of_ceiling(f"DPO step, {name}, {shape}", "TRL", found, theirs.total / needed.total, REACH)
    told = _told(f"DPO step, {name}", trees, found, needed, theirs, rate / operations.TRAINING)
    return line, [*told, *_memory(sides, name)]


def _scoring(name: str, config: Any, shape: Shape, pairs: int, device: str, rate: float) -> tuple[Line, list[str]]:
    model = build(config, device=device, dtype=torch.bfloat16).eval()
    trees = shape.trees(config.vocab_size)

    @torch.no_grad()
    def apart() -> None:
        for tree in trees:  # the candidates of a prompt are a batch
            padded.forward(model, [tree])

    on, off = timed(lambda: logprobs.score(model, trees)), timed(apart)
    on()
    off()
    found = list(paired(on, off, pairs))
    needed, theirs = operations.shared(model, trees), operations.padded(model, trees)
    line = of_ceiling(f"scoring, {name}, {shape}", "own padded path", found, theirs.total / needed.total, REACH)
    return line, _told(f"scoring, {name}", trees, found, needed, theirs, rate)


def _told(
    what: str, trees: Sequence[Tree], found: Sequence[Pair], ours: Operations, theirs: Operations, rate: float
) -> list[str]:
    """Tokens per second, prompts counted once per completion on both sides, and shares of the machine's rate."""
    tokens = sum(len(tree.trunk) + len(branch) for tree in trees for branch in tree.branches)
    sides = {
        "ours": (median(pair.ours.wall_s for pair in found), ours),
        "theirs": (median(pair.theirs.wall_s for pair in found), theirs),
    }
    return [
        f"{what}, {side}: {tokens / taken_s:,.0f} tokens/s, {needed.total / taken_s / rate:.2f} of the matrix rate"
        f" (10^9 operations of a forward: {needed.text()})"
        for side, (taken_s, needed) in sides.items()
    ]


def _memory(sides: Sides, name: str) -> list[str]:
    if not torch.cuda.is_available():
        return []
    peaks = []
    for side in (sides.repeat_ours, sides.repeat_theirs):
        torch.cuda.reset_peak_memory_stats()
        side()
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
    return [
        f"DPO step, {name}: peak memory with both models on the GPU: {peaks[0]:.1f} GiB ours, {peaks[1]:.1f} GiB TRL"
    ]


if __name__ == "__main__":
    sys.exit(command(run))
