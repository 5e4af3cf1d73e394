"""What is measured beside the loss: once, for every objective, from the same forward.

Everything is kept as a sum and a count under the name it is logged by, so that averages over micro-batches, steps,
processes and a held-out split are right whatever their sizes; extremes and quantiles as what they are taken from.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers import diagnostics
from trainers.objectives import Batch, Demonstration, Objective, Pair, ReferencedPair
from trainers.objectives.batch import Judged, Ranked, ReferencedRanked, RewardPair
from trainers.objectives.registry import Reward
from trainers.precision import widest

Named = Iterator[tuple[str, Tensor, float | Tensor]]  # a metric, its values, and the count that their sum is taken over


class Tally:
    """Named sums with their counts, named extremes, and named values of which the lowest tenth is asked for."""

    @classmethod
    def joined(cls, tallies: Iterable["Tally"]) -> "Tally":
        """Everything that several tallies hold."""
        whole = cls()
        for tally in tallies:
            whole.update(tally)
        return whole

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._extremes: dict[str, float] = {}
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, total: float, count: float) -> None:
        """Add to one name."""
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def extreme(self, name: str, value: float) -> None:
        """Keep the lowest value of a name that ends in _min, the highest of one in _max; NaN counts as either."""
        further = np.maximum if name.endswith("_max") else np.minimum
        self._extremes[name] = float(further(self._extremes.get(name, value), value))

    def sample(self, name: str, values: Iterable[float]) -> None:
        """Add to the values of one name, of which the lowest tenth is asked for."""
        self._values.setdefault(name, []).extend(values)

    def update(self, other: "Tally") -> None:
        """Add everything that another tally holds."""
        for name, total in other._sums.items():
            self.add(name, total, other._counts[name])
        for name, value in other._extremes.items():
            self.extreme(name, value)
        for name, values in other._values.items():
            self.sample(name, values)

    def fill(self, other: "Tally") -> None:
        """Take what another tally holds under names that this one has not."""
        for own, theirs in zip(self._held(), other._held(), strict=True):
            own.update({name: value for name, value in theirs.items() if name not in own})

    def means(self) -> dict[str, float]:
        """Sum over count for every name; of some the lowest value, or what a tenth of the values lie below."""
        found = {name: total / max(self._counts[name], 1.0) for name, total in self._sums.items()}
        sides = [f"rewards/{side}" for side in ("chosen", "rejected")]
        if "rewards/margins" not in found and all(self._counts.get(side) for side in sides):
            found["rewards/margins"] = found[sides[0]] - found[sides[1]]  # of two classes, not of pairs
        return found | self._extremes | {name: float(np.quantile(each, 0.1)) for name, each in self._values.items()}

    def _held(self) -> tuple[dict[str, Any], ...]:
        return self._sums, self._counts, self._extremes, self._values

    def __bool__(self) -> bool:
        return bool(self._sums)


@torch.no_grad()
def measure(batch: Batch, objective: Objective, knobs: Mapping[str, Any]) -> Tally:
    """The metrics that a micro-batch's sums of log-probs give."""
    rows, tails = list(_rows(batch, objective, knobs)), list(diagnostics.tails(batch))
    dtype = widest(rows[0][1].device)
    sums = [values.max().to(dtype) if _is_extreme(name) else values.sum(dtype=dtype) for name, values, _ in rows]
    counts = [count.to(dtype) for name, _, count in rows if isinstance(count, Tensor) and not _is_extreme(name)]
    # one transfer from the device for all of them
    found = iter(torch.cat([torch.stack(sums + counts), *(values.to(dtype) for _, values in tails)]).tolist())
    totals = [next(found) for _ in rows]
    tally = Tally()
    for (name, _, count), total in zip(rows, totals, strict=True):
        if _is_extreme(name):
            tally.extreme(name, total)
        else:
            tally.add(name, total, next(found) if isinstance(count, Tensor) else count)
    for name, values in tails:
        tally.sample(name, islice(found, len(values)))
    return tally


def _is_extreme(name: str) -> bool:
    return name.endswith("_max")


def _rows(batch: Batch, objective: Objective, knobs: Mapping[str, Any]) -> Named:
    if isinstance(batch, Pair):
        yield from _pairs(batch, knobs, objective.rewards)
    elif isinstance(batch, RewardPair):
        rows = len(batch.chosen)
        yield "rewards/chosen", batch.chosen, rows
        yield "rewards/rejected", batch.rejected, rows
        yield "rewards/margins", batch.chosen - batch.rejected, rows
        yield "rewards/accuracies", batch.chosen > batch.rejected, rows
        yield "rewards/ties", batch.chosen == batch.rejected, rows
    elif isinstance(batch, Judged):
        yield from _judged(batch, knobs)
    elif isinstance(batch, Ranked):
        yield from _ranked(batch, knobs)
    elif isinstance(batch, Demonstration):
        tokens = batch.completion_tokens.sum()
        yield "nll_loss", -batch.completion, tokens
        yield "logps/completion", batch.completion, len(batch.completion)
    if objective.diagnostics is not None:
        for name, values in objective.diagnostics(batch, **knobs).items():
            yield name, values, len(values)


def _pairs(pair: Pair, knobs: Mapping[str, Any], of: Reward | None) -> Named:
    rows = len(pair.chosen)
    chosen_mean, rejected_mean = pair.chosen / pair.chosen_tokens, pair.rejected / pair.rejected_tokens
    yield "logps/chosen", pair.chosen, rows
    yield "logps/rejected", pair.rejected, rows
    yield "logps/chosen_per_token", pair.chosen, pair.chosen_tokens.sum()
    yield "logps/rejected_per_token", pair.rejected, pair.rejected_tokens.sum()
    yield "logps/accuracies", chosen_mean > rejected_mean, rows
    yield "nll_loss", -pair.chosen, pair.chosen_tokens.sum()
    chosen, rejected = rewards(pair, knobs, of)
    yield "rewards/chosen", chosen, rows
    yield "rewards/rejected", rejected, rows
    yield "rewards/margins", chosen - rejected, rows
    yield "rewards/accuracies", chosen > rejected, rows
    yield "rewards/ties", chosen == rejected, rows
    for name, values in diagnostics.of_pairs(pair, chosen - rejected, knobs):
        yield name, values, rows


def _judged(batch: Judged, knobs: Mapping[str, Any]) -> Named:
    """By class: chosen are the desirable rows, rejected the others, as TRL logs them. A class that is absent counts 0."""
    rows = len(batch.completion)
    moved = batch.completion - batch.ref_completion
    reward = float(knobs.get("beta", 1.0)) * moved
    for side, own in (("chosen", batch.label), ("rejected", ~batch.label)):
        count, tokens = own.sum(), (batch.completion_tokens * own).sum()
        yield f"rewards/{side}", reward * own, count
        yield f"logps/{side}", batch.completion * own, count
        yield f"logps/{side}_per_token", batch.completion * own, tokens
        yield f"logratios/{side}", moved * own, count
        yield f"logratios/{side}_per_token", moved / batch.completion_tokens * own, count
        if side == "chosen":
            yield "nll_loss", -batch.completion * own, tokens
    yield "labels/desirable", batch.label, rows


def _ranked(batch: Ranked, knobs: Mapping[str, Any]) -> Named:
    """Of all pairs in a group whose scores differ; the likelihood is that of each group's best."""
    there, rows = batch.present, len(batch.completion)
    better = (batch.score[:, :, None] > batch.score[:, None, :]) & there[:, :, None] & there[:, None, :]
    pairs = better.sum()

    def apart(values: Tensor) -> Tensor:
        return values[:, :, None] - values[:, None, :]

    best = batch.score.masked_fill(~there, -torch.inf).argmax(dim=1, keepdim=True)
    yield "nll_loss", -batch.completion.gather(1, best), batch.completion_tokens.gather(1, best).sum()
    yield "logps/completion", batch.completion * there, there.sum()
    yield "logps/accuracies", (apart(batch.completion / batch.completion_tokens) > 0) & better, pairs
    yield "groups/size", there, rows
    if isinstance(batch, ReferencedRanked):
        moved = batch.completion - batch.ref_completion
        margins = float(knobs.get("beta", 1.0)) * apart(moved)
        yield "logratios/completion", moved * there, there.sum()
        yield "rewards/margins", margins * better, pairs
        yield "rewards/accuracies", (margins > 0) & better, pairs
        yield "rewards/ties", (margins == 0) & better, pairs


def rewards(pair: Pair, knobs: Mapping[str, Any], of: Reward | None = None) -> tuple[Tensor, Tensor]:
    """The implicit rewards of both sides; never comparable between objectives.

    beta (log pi - log pi_ref), on sums, where a reference is read; otherwise beta times the mean log-prob per token; a
    loss that reads the other of the two says so in `of`. A loss without a beta counts as 1.
    """
    beta, chosen, rejected = float(knobs.get("beta", 1.0)), pair.chosen, pair.rejected
    if isinstance(pair, ReferencedPair):
        chosen, rejected = chosen - pair.ref_chosen, rejected - pair.ref_rejected
    if (of or ("sums" if isinstance(pair, ReferencedPair) else "means")) == "means":
        chosen, rejected = chosen / pair.chosen_tokens, rejected / pair.rejected_tokens
    return beta * chosen, beta * rejected
