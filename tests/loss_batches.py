"""Batches of any contract, made of random numbers that its fields may hold."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from trainers.objectives import Batch


def random_batch(kind: type[Batch], rows: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Log-probs below 0, counts from 1, truth values of both kinds, pooled means without a row."""
    generator = torch.Generator().manual_seed(seed)
    return kind(**{field.name: _values(kind, field.name, rows, generator, dtype) for field in fields(kind)})


def _values(kind: type[Batch], name: str, rows: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    if name.endswith("_tokens"):
        return torch.randint(1, 9, (rows,), generator=generator)
    if name == kind.both:
        return torch.arange(rows) % 3 != 1
    numbers = torch.rand(() if name in kind.pools else (rows,), generator=generator, dtype=torch.float64).to(dtype)
    return numbers + 0.5 if name == "weight" else -5 * numbers - 0.5


def policy_fields(batch: Batch) -> list[str]:
    """What carries a gradient."""
    data = {*batch.values, *batch.pools}
    names = [f.name for f in fields(batch) if not f.name.endswith("_tokens") and not f.name.startswith("ref_")]
    return [name for name in names if name not in data]


def picked(batch: Any, places: Tensor) -> Any:
    """The rows at these places; pooled means stay as they are."""
    return replace(
        batch, **{f.name: getattr(batch, f.name)[places] for f in fields(batch) if f.name not in batch.pools}
    )
