"""AlphaPO: SimPO with a reward that bends."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import Pair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import HIGHEST_EXPONENT
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


def bent(mean: Tensor, alpha: float) -> Tensor:
    """(1 - exp(-alpha m)) / alpha of a mean log-prob, which is m at alpha = 0."""
    if alpha == 0:
        return mean
    return -torch.expm1((-alpha * mean).clamp(max=HIGHEST_EXPONENT)) / alpha


@objective(Pair, source="Gupta et al. 2025, arXiv:2501.03884, eq. 5", lr=5e-7)
def alphapo(
    lp: Pair,
    *,
    beta: Beta = 2.0,
    gamma: Annotated[float, Range(at_least=0, why="below 0 a rejected side likelier than chosen would do")] = 1.0,
    alpha: Annotated[float, Range(at_least=-10, at_most=10, why="beyond, the rewards of usual text overflow")] = 0.25,
) -> Tensor:
    """AlphaPO: SimPO whose reward is a power of the mean probability in the place of its logarithm.

        m = log-prob / tokens of a side;   r(m) = (1 - exp(-alpha m)) / alpha
        loss = -log sigmoid(beta (r(m_chosen) - r(m_rejected)) - gamma)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    nats per token, as simpo; alpha in tokens per nat.
    Params   beta, gamma: as simpo's.
             alpha: 0 is simpo; above 0 a pair counts more the less likely its sides are, below 0 the less. 0.25 is of the
             size that the paper uses [unconfirmed].
    Data     no reference. On means only: of sums the exponential would overflow. It is held at exp(40), beyond which a
             side has no gradient.
    Anchor   equal means on both sides give log(1 + exp(gamma)).
    """
    chosen, rejected = lp.chosen / lp.chosen_tokens, lp.rejected / lp.rejected_tokens
    return F.softplus(gamma - beta * (bent(chosen, alpha) - bent(rejected, alpha)))
