"""Batches of any contract, made of random numbers that its fields may hold."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from trainers.objectives import Batch, ReferencedPair

LARGEST_GROUP = 4


def random_batch(kind: type[Batch], rows: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Log-probs below 0, counts from 1, truth values of both kinds, chosen scored higher, pooled means without a row.

    Groups are of two to four completions with different scores.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, LARGEST_GROUP) if kind.grouped else (rows,)
    made = {field.name: _values(kind, field.name, shape, generator, dtype) for field in fields(kind)}
    return kind(**_absent(made) if kind.grouped else made)


def _absent(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """The places of groups that have fewer than the most hold 0 nats and 1 token."""
    rows, most = made["present"].shape
    sizes = 2 + torch.arange(rows) % (most - 1)
    present = torch.arange(most) < sizes[:, None]
    made = {name: values * present for name, values in made.items()}
    return made | {"present": present, "completion_tokens": made["completion_tokens"].clamp(min=1)}


def random_pairs(**options: Any) -> ReferencedPair:
    """Pairs with a reference."""
    batch = random_batch(ReferencedPair, **options)
    assert isinstance(batch, ReferencedPair)
    return batch


def _values(
    kind: type[Batch], name: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    if name.endswith("_tokens") and name not in kind.per_step:
        return torch.randint(1, 9, shape, generator=generator)
    if name == kind.both:
        return torch.arange(shape[0]) % 3 != 1
    if name == "present":
        return torch.ones(shape, dtype=torch.bool)
    if name == "prompt_embedding":
        return torch.randn(*shape, 5, generator=generator, dtype=torch.float64).to(dtype)
    scalar = name in (*kind.pools, *kind.per_step)
    numbers = torch.rand(() if scalar else shape, generator=generator, dtype=torch.float64).to(dtype)
    above = {"weight": 0.5, "preference": 0.1, "chosen_score": 1.2, "rejected_score": 0.0, "mean_chosen_tokens": 4.0}
    if name in above:
        return numbers * (0.8 if name == "preference" else 1.0) + above[name]
    return -5 * numbers - 0.5


def policy_fields(batch: Batch) -> list[str]:
    """What carries a gradient."""
    data = {*batch.values, *batch.pools, "present"}
    names = [f.name for f in fields(batch) if not f.name.endswith("_tokens") and not f.name.startswith("ref_")]
    return [name for name in names if name not in data]


def picked(batch: Any, places: Tensor) -> Any:
    """The rows at these places; scalars stay as they are."""
    rows = {f.name: getattr(batch, f.name) for f in fields(batch) if getattr(batch, f.name).ndim}
    return replace(batch, **{name: values[places] for name, values in rows.items()})


def swapped(lp: ReferencedPair) -> ReferencedPair:
    """The pair with its labels the other way round."""
    return replace(
        lp,
        chosen=lp.rejected,
        rejected=lp.chosen,
        chosen_tokens=lp.rejected_tokens,
        rejected_tokens=lp.chosen_tokens,
        ref_chosen=lp.ref_rejected,
        ref_rejected=lp.ref_chosen,
    )


def at_reference(batch: Any) -> Any:
    """The same rows where the policy is the reference."""
    given = {f.name for f in fields(batch)}
    return replace(
        batch, **{name: getattr(batch, name.removeprefix("ref_")) for name in given if name.startswith("ref_")}
    )


def at_margin(kind: type[Any], a: float, b: float, **values: Any) -> Any:
    """One row of one token a side whose log-ratios are a and b, with gradients in both."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    made = {f.name: one if f.name.endswith("_tokens") else zero for f in fields(kind)}
    made["chosen"] = torch.tensor([a], dtype=torch.float64, requires_grad=True)
    made["rejected"] = torch.tensor([b], dtype=torch.float64, requires_grad=True)
    return kind(**made | {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()})
