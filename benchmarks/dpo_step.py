"""A DPO step with reference log-probs at hand, against TRL's: forward, backward, clipping, AdamW.

    python -m benchmarks.dpo_step

Both sides begin with the same weights, see the same pairs in the same order and log the same losses to 1e-4, or the
benchmark stops. The reference is another random model, so that the loss is not log 2. The step is also set against the
rate of the machine: matrix products that it needs, per second, of those that a large square product makes.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import operations
from benchmarks.measure import Pair, Taken, paired, spread, timed
from benchmarks.models import TOY, build, resized
from benchmarks.our_step import OurStep, batch
from benchmarks.results import Line, Report, command, faster, samples
from benchmarks.shapes import Shape, lengths, real_pairs
from benchmarks.trl_side import Example, TrlStep, examples
from prefdata import logprobs
from prefdata.errors import UserError
from prefdata.logprobs import Tree
from trainers.data import RowBatch

SHAPES = ((Shape(512, 128, rows=2), 5.0), (Shape(1792, 256, rows=1), 6.0))
RATE = 0.6
REAL = {"HH": "hh_helpful/train.jsonl", "UltraFeedback": "ultrafeedback_pairs/train.jsonl"}
LONGEST = 1024  # tokens of a real pair, as many as GPT-2's tokenizer is for
SAME = 1e-4  # nats, of a loss


class Sides:
    """Both sides on the same model, with the losses of every step so far."""

    def __init__(self, config: Any, *, device: str = "cpu", same: float = SAME, bfloat16: bool = False) -> None:
        """`same`: nats by which losses may differ."""
        self.reference, self.model = build(config, seed=1, device=device), build(config, device=device)
        self.rates: list[float] = []  # the machine's, after each of our measurements of the last run
        self._ours = OurStep(self.model, bfloat16=bfloat16)
        self._theirs = TrlStep(build(config, device=device), bfloat16=bfloat16)
        self._losses: tuple[list[float], list[float]] = ([], [])
        self._rows: tuple[list[RowBatch], list[list[Example]]] = ([], [])
        self._device, self._same = device, same

    def run(self, batches: Sequence[Sequence[Tree]], pairs: int) -> list[Pair]:
        """The batches through both sides so many times, and once before to warm up. UserError if losses differ."""
        sums = [_sums(self.reference, trees) for trees in batches]
        both = list(zip(batches, sums, strict=True))
        self._rows = [batch(*each) for each in both], [examples(*each) for each in both]

        def measured() -> Taken:
            taken = timed(self.repeat_ours)()
            self.rates.append(operations.matrix_rate(self._device))
            return taken

        list(paired(measured, timed(self.repeat_theirs), 1))
        self.rates.clear()
        found = list(paired(measured, timed(self.repeat_theirs), pairs))
        if not self.largest_gap < self._same:
            raise UserError(f"losses differ by {self.largest_gap:.2g}: both sides do not measure the same step")
        return found

    def repeat_ours(self) -> None:
        """The last run's batches once more."""
        self._losses[0].extend(map(self._ours, self._rows[0]))

    def repeat_theirs(self) -> None:
        """The same through TRL."""
        self._losses[1].extend(map(self._theirs, self._rows[1]))

    @property
    def largest_gap(self) -> float:
        """Of the losses of both sides; not a number if one is not."""
        return float(np.abs(np.subtract(*self._losses)).max())


def run(
    pairs: int = 5,
    config: Any = TOY,
    shapes: Sequence[tuple[Shape, float | None]] = SHAPES,
    real_steps: int = 4,
) -> Report:
    """Synthetic shapes, then `real_steps` steps of two real pairs each."""
    lines, details = [], []
    sides = Sides(config)
    parameters = sides.model.num_parameters() / 1e6
    for shape, reach in shapes:
        trees = shape.trees(config.vocab_size)
        measured = sides.run([trees], pairs)
        lines.append(faster(f"DPO step, {shape}, vocabulary {config.vocab_size:,}", "TRL", measured, reach))
        details.append(_needed(sides.model, shape, trees))
        lines.append(_share(sides, shape, trees, measured))
    details.insert(
        0, f"A Llama of {parameters:.0f} M parameters, float32; losses differ by {sides.largest_gap:.1g} at most."
    )
    if real_steps:
        for name in REAL:
            line, detail = _real(name, pairs, config, real_steps)
            lines.append(line)
            details.append(detail)
    return Report("DPO step", lines, ["\n".join(f"- {detail}" for detail in details)])


def _needed(model: Any, shape: Shape, trees: Sequence[Tree]) -> str:
    ours, theirs = operations.shared(model, trees), operations.padded(model, trees, every=True)
    return (
        f"{shape}: 10^9 operations of a forward: ours {ours.text()}; TRL's, whose head scores every place on a CPU, "
        f"{theirs.text()}: {theirs.total / ours.total:.2f} times as many"
    )


def _share(sides: Sides, shape: Shape, trees: Sequence[Tree], measured: Sequence[Pair]) -> Line:
    needed = operations.TRAINING * operations.shared(sides.model, trees).total
    shares = [needed / pair.ours.wall_s / rate for pair, rate in zip(measured, sides.rates, strict=True)]
    return Line(
        f"matrix products of our step, {shape}",
        "the machine's matrix rate",
        f"{spread(shares, 2)} of {np.median(sides.rates) / 1e9:,.0f} x 10^9 operations a second",
        f"at least {RATE}",
        float(np.median(shares)) >= RATE,
    )


def _real(name: str, pairs: int, config: Any, steps: int) -> tuple[Line, str]:
    folder = samples()
    trees = real_pairs(folder / REAL[name], folder / "tokenizers" / "gpt2", 4 * steps, LONGEST)[: 2 * steps]
    size = 1 + max(max(map(max, (tree.trunk, *tree.branches))) for tree in trees)
    sides = Sides(resized(config, vocab_size=max(size, 50_257)))
    batches = [trees[start : start + 2] for start in range(0, len(trees), 2)]
    line = faster(f"{len(batches)} DPO steps of 2 pairs of {name}", "TRL", sides.run(batches, max(1, pairs // 2)), None)
    return line, f"{name}: {lengths(trees)}; losses differ by {sides.largest_gap:.1g} at most"


def _sums(model: Any, trees: Sequence[Tree]) -> list[list[float]]:
    return [[float(branch.sum(dtype=np.float64)) for branch in tree] for tree in logprobs.score(model, trees)]


if __name__ == "__main__":
    sys.exit(command(run))
