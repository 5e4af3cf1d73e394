"""From per-token log-probs to losses: each term's batch of the type that it reads, and its losses, not reduced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainers.data import RowBatch
from trainers.loss import Loss, Term
from trainers.objectives import Batch, weighting
from trainers.precision import widest

# a contract, and the sums and counts of its means over all processes' rows -> the means
Pooling = Callable[[type[Batch], Tensor, Tensor], Tensor]


def alone(contract: type[Batch], sums: Tensor, counts: Tensor) -> Tensor:
    """The means of this process's rows; 0 where there are none."""
    return sums / counts.clamp(min=1)


@dataclass(frozen=True)
class Part:
    """What one term makes of a micro-batch."""

    term: Term
    batch: Batch
    losses: Tensor  # (B,) with gradient
    items: int  # what their sum is counted in: rows, or scored tokens
    weights: Tensor | None = None  # (B,) that the losses were multiplied by


@dataclass(frozen=True)
class Task:
    """What is minimised, on rows of which kind."""

    loss: Loss
    kind: str

    def parts(self, rows: RowBatch, measured: "Measured", pooling: Pooling = alone) -> list[Part]:
        """Every term's batch and losses."""
        made = []
        for term in self.loss.terms:
            batch = self._batch(term, rows, measured, pooling)
            losses = term.objective.loss(batch, **term.knobs)
            weights = self._weights(term, rows, measured)
            if weights is not None:
                losses = losses * weights
            made.append(Part(term, batch, losses, self.items(term, rows), weights))
        return made

    def batch(self, rows: RowBatch, measured: "Measured", pooling: Pooling = alone) -> Batch:
        """The first term's batch."""
        return self._batch(self.loss.terms[0], rows, measured, pooling)

    def items(self, term: Term, rows: RowBatch) -> int:
        """What a term's summed losses of a micro-batch are counted in."""
        if term.objective.reduction == "rows":
            return len(rows)
        sides = [rows.names.index(side) for side in self._sides(term).values()] if len(rows) else []
        return int(rows.side_tokens[:, sides].sum()) if sides else 0

    def wait(self, pooling: Pooling, device: torch.device) -> None:
        """What a process without rows in a micro-batch gives to those means."""
        for term in self.loss.terms:
            contract = term.objective.batch
            if contract.pools:
                nothing = torch.zeros(len(contract.pools), dtype=widest(device), device=device)
                pooling(contract, nothing, nothing)

    def total(self, means: Mapping[str, float]) -> dict[str, float]:
        """Logged means with the loss among them: of several terms their weighted sum, each logged beside it."""
        if len(self.loss.terms) == 1:
            return dict(means)
        whole = sum(term.weight * means[f"loss/{term.objective.name}"] for term in self.loss.terms)
        return {"loss": whole, **means}

    def _sides(self, term: Term) -> Mapping[str, str]:
        return term.objective.batch.sides[self.kind]

    def _weights(self, term: Term, rows: RowBatch, measured: "Measured") -> Tensor | None:
        if term.weighting == "none":
            return None
        assert measured.logps is not None
        assert measured.collisions is not None
        found = weighting.aligned(measured.logps, measured.collisions, rows.scored)
        sides = {name: measured.side(rows, side, grouped=False)(found) for name, side in self._sides(term).items()}
        return weighting.weights(**sides)

    def _batch(self, term: Term, rows: RowBatch, measured: "Measured", pooling: Pooling) -> Batch:
        contract = term.objective.batch
        fields: dict[str, Tensor] = {}
        for name, side in self._sides(term).items():
            column = measured.side(rows, side, grouped=contract.grouped)
            fields[name], fields[f"{name}_tokens"] = column(measured.sums), column(rows.tokens, absent=1)
            if contract.referenced:
                assert rows.reference is not None, "the contract check lets no such version through"
                fields[f"ref_{name}"] = column(rows.reference)
            if contract.partial:
                assert rows.token_reference is not None
                assert measured.logps is not None
                heads = measured.heads(rows)
                fields[f"{name}_head"] = column(_summed(measured.logps, heads))
                fields[f"ref_{name}_head"] = column(_summed(rows.token_reference, heads))
            if contract.grouped:
                fields |= {name: column(rows.values[value.column]) for name, value in contract.values.items()}
                fields["present"] = column(torch.ones_like(rows.tokens, dtype=torch.bool))
        if not contract.grouped:
            fields |= {name: rows.values[value.column] for name, value in contract.values.items()}
        if contract.per_step:
            lengths = rows.step_tokens
            if lengths is None:
                lengths = mean_tokens(summed_tokens([rows], len(rows.names)).to(rows.tokens.device))
            fields |= {name: lengths[rows.names.index(side)] for name, side in contract.per_step.items()}
        return contract(**fields, **_pooled(contract, fields, pooling))


@dataclass(frozen=True)
class Measured:
    """What the model gives for a micro-batch: log-probs of tokens and their sums over scored ones, or scores."""

    sums: Tensor  # (S,)
    logps: Tensor | None = None  # (S, longest)
    collisions: Tensor | None = None  # (S, longest), as `Scores` has them

    @classmethod
    def of(cls, rows: RowBatch, logps: Sequence[Tensor], collisions: Sequence[Tensor] | None = None) -> "Measured":
        """From what a forward gives for the tokens of every branch."""
        padded = pad_sequence(list(logps), batch_first=True)
        agreed = None if collisions is None else pad_sequence(list(collisions), batch_first=True)
        return cls(_summed(padded, rows.scored), padded, agreed)

    def side(self, rows: RowBatch, side: str, *, grouped: bool) -> Callable[..., Tensor]:
        """Takes what is kept per branch, (S,), to what a field holds: (B,) of one side, or (B, K) of groups."""
        if grouped:
            return lambda values, absent=0: pad_sequence(
                list(torch.split(values, rows.counts)), batch_first=True, padding_value=absent
            )
        place = rows.names.index(side)
        return lambda values, absent=0: values.reshape(len(rows), len(rows.names))[:, place]

    def heads(self, rows: RowBatch) -> Tensor:
        """(S, longest) bool: the first scored tokens of each side, as many as the shortest of its row has."""
        shortest = rows.tokens.reshape(len(rows), -1).min(dim=1).values.repeat_interleave(len(rows.names))
        return rows.scored & (rows.scored.cumsum(dim=1) <= shortest[:, None])


def _pooled(contract: type[Batch], fields: Mapping[str, Tensor], pooling: Pooling) -> dict[str, Tensor]:
    """The contract's means over the rows of all processes."""
    if not contract.pools:
        return {}
    given = _Fields(fields)
    pairs = [pool(given) for pool in contract.pools.values()]
    sums, counts = (torch.stack([pair[place].detach().to(pairs[0][0].dtype) for pair in pairs]) for place in (0, 1))
    return dict(zip(contract.pools, pooling(contract, sums, counts), strict=True))


class _Fields:
    """The fields of a batch before those that are pooled from them."""

    def __init__(self, fields: Mapping[str, Tensor]) -> None:
        self.__dict__.update(fields)


def _summed(values: Tensor, kept: Tensor) -> Tensor:
    """Sums over each branch's kept tokens, in float64 where the device has it.

    Two sums of a thousand nats each are subtracted later; in float32 that alone would cost 1e-4.
    """
    return torch.where(kept, values, 0.0).sum(dim=1, dtype=widest(values.device))


def sum_scored(logps: Sequence[Tensor], scored: Tensor) -> Tensor:
    """(S,) sums over each branch's scored tokens, in float64 where the device has it."""
    return _summed(pad_sequence(list(logps), batch_first=True), scored)


def count_items(task: Task, batches: Sequence[RowBatch]) -> list[int]:
    """By term, what the summed losses of these micro-batches are counted in."""
    return [sum(task.items(term, rows) for rows in batches) for term in task.loss.terms]


def summed_tokens(batches: Sequence[RowBatch], sides: int) -> Tensor:
    """(sides + 1,) scored tokens of each side over these micro-batches, and how many rows they are of."""
    counts = torch.zeros(sides + 1, dtype=torch.int64)
    for rows in batches:
        if len(rows):
            counts[:-1] += rows.side_tokens.sum(0).cpu()
            counts[-1] += len(rows)
    return counts


def mean_tokens(summed: Tensor) -> Tensor:
    """(sides,) means of what `summed_tokens` gives."""
    return summed[:-1].to(widest(summed.device)) / summed[-1].clamp(min=1)
