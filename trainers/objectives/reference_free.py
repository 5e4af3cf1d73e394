"""Losses of a pair under the policy alone."""

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
    Params   lam: 0.1 in the paper's Mistral runs, 0.2 to 0.25 for smaller models.
    Data     no reference. The likelihood term covers the chosen completion only, not the prompt.
    Anchor   equal means on both sides give -m_chosen + lam log 2; lam = 0 is fine-tuning with a mean per sequence.
    """
    chosen, rejected = lp.chosen / lp.chosen_tokens, lp.rejected / lp.rejected_tokens
    return -chosen - lam * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def beyond_margin(lp: Pair, *, beta: float, gamma: float) -> dict[str, Tensor]:
    """Which pairs are apart by more than the margin that SimPO asks for."""
    return {"simpo/beyond_margin": beta * mean_margin(lp) > gamma}


@objective(Pair, source="Meng et al. 2024, arXiv:2405.14734, eq. 6", lr=5e-7, diagnostics=beyond_margin)
def simpo(
    lp: Pair,
    *,
    beta: Annotated[float, Range(above=0, why="at 0 the loss is the same whatever the policy does")] = 2.0,
    gamma: Annotated[float, Range(at_least=0, why="below 0 a rejected side likelier than chosen would do")] = 1.0,
) -> Tensor:
    """Simple Preference Optimization: the mean log-prob of chosen above that of rejected, by a margin.

        m = log-prob / tokens of a side
        loss = -log sigmoid(beta (m_chosen - m_rejected) - gamma)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    nats per token: a mean over each side's scored tokens; beta in tokens per nat; gamma is a plain number, the
             paper's margin. Published code takes the ratio gamma / beta instead, here 0.5: the margin in nats per token.
    Params   beta: 2 to 2.5 in the paper, 10 in later runs.
             gamma: 0.1 to 0.8 times beta, first tried at half of it; set it again whenever beta is changed.
    Data     no reference, so nothing holds the policy near its start: a small learning rate does. A token of a short
             answer gets a larger share of the gradient than one of a long answer.
    Anchor   equal means on both sides give log(1 + exp(gamma)), so log 2 at gamma = 0.
    """
    return -F.logsigmoid(beta * mean_margin(lp) - gamma)


def mean_margin(lp: Pair) -> Tensor:
    """How much likelier chosen is than rejected: nats per token."""
    return lp.chosen / lp.chosen_tokens - lp.rejected / lp.rejected_tokens


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
