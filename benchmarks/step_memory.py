"""Peak memory of a DPO step as the vocabulary grows: ours, TRL's, and one that makes the full logits.

    python -m benchmarks.step_memory

Every step runs in a process of its own. What is counted is the largest resident size during the second step (the first
makes the optimiser's moments), above what the process held before it had a model. Growth from the smallest to the
largest vocabulary is measured for one and for two pairs: what grows with the weights alone does not care how many.
Linux only: the peak is read from /proc.
"""

import gc
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import plain
from benchmarks.models import TOY, build, resized
from benchmarks.our_step import OurStep, batch
from benchmarks.results import Line, Report, all_cores, command
from benchmarks.shapes import Shape
from benchmarks.stepping import BETA, LR
from benchmarks.trl_side import TrlStep, examples
from prefdata.errors import UserError
from prefdata.logprobs import Tree

SMALL = resized(
    TOY,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=64,
)
VOCABULARIES = (8_000, 32_000, 128_000)
SHAPES = (Shape(256, 256, rows=1), Shape(256, 256, rows=2))
# what twice the tokens may add to the growth: the allocator's noise
REACH = 1.1
_STATUS = Path("/proc/self/status")
MIB = 2**20

Work = Callable[[], object]


def run(
    config: Any = SMALL,
    vocabularies: Sequence[int] = VOCABULARIES,
    shapes: Sequence[Shape] = SHAPES,
    sides: Sequence[str] = ("ours", "TRL", "full logits"),
) -> Report:
    """Every side, with every vocabulary and shape. UserError if this is not Linux."""
    if not _STATUS.exists():
        raise UserError("peak memory is read from /proc, which this system does not have")
    peaks = {
        (side, shape, size): peak(side, resized(config, vocab_size=size), shape)
        for side in sides
        for shape in shapes
        for size in vocabularies
    }
    held = [weights(resized(config, vocab_size=size)) for size in vocabularies]
    grown = {
        (side, shape): peaks[side, shape, vocabularies[-1]] - peaks[side, shape, vocabularies[0]]
        for side in sides
        for shape in shapes
    }
    lines = [_line(side, [grown[side, shape] for shape in shapes], held[-1] - held[0]) for side in sides]
    heads = ["peak, MiB", *(f"vocabulary {size:,}" for size in vocabularies)]
    rows = [["weights", *(f"{weight / MIB:,.0f}" for weight in held)]]
    for side in sides:
        rows += [
            [f"{side}, {shape}", *(f"{peaks[side, shape, size] / MIB:,.0f}" for size in vocabularies)]
            for shape in shapes
        ]
    cells = [heads, ["---"] * len(heads), *rows]
    return Report("Memory of a step", lines, ["\n".join(f"| {' | '.join(row)} |" for row in cells)])


def _line(side: str, grown: Sequence[float], weights: float) -> Line:
    few, many = grown[0], grown[-1]
    return Line(
        f"growth of a step's peak memory with the vocabulary, {side}",
        "the growth of the weights",
        f"{few / weights:.1f} times it; with twice the tokens {many / weights:.1f} times",
        f"twice the tokens add less than {REACH - 1:.0%}" if side == "ours" else "as measured",
        many <= REACH * few if side == "ours" else None,
    )


def weights(config: Any) -> int:
    """Bytes of a model's float32 weights, without making it."""
    with torch.device("meta"):
        return 4 * int(build(config, device="meta").num_parameters())


def peak(side: str, config: Any, shape: Shape) -> int:
    """Bytes that a step takes at most, above what a process without a model holds; in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_peak, side, config, shape).result()


def _peak(side: str, config: Any, shape: Shape) -> int:
    """Bytes."""
    all_cores()
    SIDES[side](build(resized(config, vocab_size=100)), Shape(2, 2).trees(100))()  # loads what is loaded once
    gc.collect()
    before = _status("VmRSS")
    work = SIDES[side](build(config), shape.trees(config.vocab_size))
    work()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _sums(trees: Sequence[Tree]) -> list[list[float]]:
    """Of a reference that finds all tokens equally likely or so: no matter here."""
    return [[-float(len(branch)) for branch in tree.branches] for tree in trees]


def _ours(model: Any, trees: Sequence[Tree]) -> Work:
    step, rows = OurStep(model), batch(trees, _sums(trees))
    return lambda: step(rows)


def _theirs(model: Any, trees: Sequence[Tree]) -> Work:
    step, rows = TrlStep(model), examples(trees, _sums(trees))
    return lambda: step(rows)


def _full_logits(model: Any, trees: Sequence[Tree]) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def work() -> None:
        sums = torch.stack([each.sum() for each in plain.logps(model, trees)]).view(-1, 2)
        chosen, rejected = (sums - torch.tensor(_sums(trees))).unbind(1)
        (-F.logsigmoid(BETA * (chosen - rejected))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


SIDES: dict[str, Callable[[Any, Sequence[Tree]], Work]] = {
    "ours": _ours,
    "TRL": _theirs,
    "full logits": _full_logits,
}

if __name__ == "__main__":
    sys.exit(command(run))
