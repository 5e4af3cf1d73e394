"""DiscoPOP, a loss that a language model found."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha


@objective(ReferencedPair, source="Lu et al. 2024, arXiv:2406.08414, eq. 5", lr=1e-6)
def discopop(
    lp: ReferencedPair,
    *,
    beta: Beta = 0.05,
    temperature: Annotated[
        float, Range(above=0, at_most=1, why="above 1 the loss of a misordered pair grows exponentially")
    ] = 0.05,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """DiscoPOP: a logistic loss for misordered pairs that turns into an exponential one for ordered ones.

        x = beta ((chosen - ref_chosen) - (rejected - ref_rejected));   m = sigmoid(x / temperature)
        loss = -(1 - m) log sigmoid(x) + m exp(-x)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo.
    Params   beta: 0.05 in the paper.
             temperature: 0.05 in the paper.
             divergence, divergence_alpha: how each side's log-ratio counts in x.
    Data     as dpo. The loss is not monotone: at temperature 0.05 it has a minimum at x = -0.1186 and a maximum at 0.0720, so
             from policy equal to reference a step without noise lowers the margin.
    Anchor   where policy equals reference the loss is (1 + log 2) / 2; far out it is exp(-x) and -x.
    """
    x = beta * margin(lp, divergence, divergence_alpha)
    # the product m exp(-x) written as one exponential: its factors would be 0 and infinite
    return torch.sigmoid(-x / temperature) * F.softplus(-x) + torch.exp(F.logsigmoid(x / temperature) - x)
