"""Several scores as one: their weighted mean, in whatever units they are."""

import math
from collections.abc import Sequence

import polars as pl

from prefdata.errors import UserError


def weighted_mean(scores: Sequence[pl.Series], weights: Sequence[float]) -> pl.Series:
    """sum(w * s) / sum(w), row by row; null where a score is null. UserError for weights that have no mean.

    Nothing is put to a common scale: a scorer whose numbers spread more counts more at equal weights.
    """
    total = math.fsum(weights)
    if not all(math.isfinite(weight) for weight in weights) or total <= 0:
        raise UserError(
            f"the weights {', '.join(f'{weight:g}' for weight in weights)} must be finite, with a sum above 0."
        )
    if not scores:
        return pl.Series(dtype=pl.Float64)
    parts = [score.cast(pl.Float64) * (weight / total) for score, weight in zip(scores, weights, strict=True)]
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found
