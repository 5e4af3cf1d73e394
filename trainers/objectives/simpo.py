"""Simple Preference Optimization."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import Pair
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


def beyond_margin(lp: Pair, *, beta: float, gamma: float) -> dict[str, Tensor]:
    """Which pairs are apart by more than the margin that SimPO asks for."""
    return {"simpo/beyond_margin": beta * mean_margin(lp) > gamma}


@objective(Pair, source="Meng et al. 2024, arXiv:2405.14734, eq. 6", lr=5e-7, diagnostics=beyond_margin)
def simpo(
    lp: Pair,
    *,
    beta: Beta = 2.0,
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
