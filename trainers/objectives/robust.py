"""DPO that undoes label noise of a known rate."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha


@objective(ReferencedPair, source="Chowdhury et al. 2024, arXiv:2403.00409", lr=1e-6)
def robust(
    lp: ReferencedPair,
    *,
    beta: Beta = 0.1,
    label_noise: Annotated[
        float, Range(at_least=0, below=0.5, why="at 0.5 labels are coin flips, and the loss divides by 0")
    ] = 0.1,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Robust DPO: under labels flipped at a known rate, its mean is that of DPO under the true ones.

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = (-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)) / (1 - 2 eps)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo: sums over the scored tokens, in nats.
    Params   label_noise: eps in [0, 0.5), the rate of flips; 0 is dpo. Not dpo's label_smoothing, whose second term has the
             other sign.
             divergence, divergence_alpha: how each side's log-ratio counts in h.
    Data     as dpo. The loss has no lower bound: it falls by beta eps / (1 - 2 eps) for every nat of a large margin, so
             a negative one is no mistake.
    Anchor   where policy equals reference the loss is log 2 for every eps.
    """
    logit = beta * margin(lp, divergence, divergence_alpha)
    clean, flipped = F.softplus(-logit), F.softplus(logit)
    return ((1 - label_noise) * clean - label_noise * flipped) / (1 - 2 * label_noise)
