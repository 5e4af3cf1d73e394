"""Odds Ratio Preference Optimization."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import Pair
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective

# log-odds grow without bound as a completion becomes certain; here their slope stops growing, at 1e6
CERTAIN = -1e-6


def odds_ratio(lp: Pair, **_: float) -> dict[str, Tensor]:
    """The two numbers that ORPO's paper and code log: the log odds ratio, and its log sigmoid."""
    ratio = log_odds(lp.chosen / lp.chosen_tokens) - log_odds(lp.rejected / lp.rejected_tokens)
    return {"log_odds_chosen": ratio, "log_odds_ratio": F.logsigmoid(ratio)}


@objective(Pair, source="Hong et al. 2024, arXiv:2403.07691, eq. 6", lr=8e-6, diagnostics=odds_ratio)
def orpo(
    lp: Pair,
    *,
    lam: Annotated[float, Range(at_least=0, why="below 0 the rejected side would be preferred")] = 0.1,
) -> Tensor:
    """Odds Ratio Preference Optimization: likelihood of chosen, and odds of chosen over rejected.

        m = log-prob / tokens of a side;   log odds(m) = m - log(1 - exp(m))
        loss = -m_chosen - lam log sigmoid(log odds(m_chosen) - log odds(m_rejected))

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    nats per token: both terms use the mean over a side's scored tokens, and every pair weighs the same.
    Params   lam: 0.1 in the paper's Mistral runs, 0.2 to 0.25 for smaller models [unconfirmed].
    Data     no reference. The likelihood term covers the chosen completion only, not the prompt.
    Anchor   equal means on both sides give -m_chosen + lam log 2; lam = 0 is fine-tuning with a mean per sequence.
    """
    chosen, rejected = lp.chosen / lp.chosen_tokens, lp.rejected / lp.rejected_tokens
    return -chosen - lam * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean), for mean < 0: finite in value and gradient from certain to -1e4."""
    mean = mean.clamp(max=CERTAIN)
    return mean - log1mexp(mean)


def log1mexp(u: Tensor) -> Tensor:
    """log(1 - exp(u)) for u < 0.

    Each form is exact where the other cancels; each is fed a harmless value where it is not used, because an
    infinite gradient times the zero of `where` would be NaN.
    """
    near = u > -math.log(2)
    harmless = torch.full_like(u, -1.0)
    small = torch.where(near, u, harmless)
    large = torch.where(near, harmless, u)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
