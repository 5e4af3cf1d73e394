"""The two losses of Statistical Rejection Sampling Optimization, for pairs of answers that were accepted by it."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Divergence, DivergenceAlpha

Gamma = Annotated[float, Range(above=0, why="at 0 the loss is the same whatever the policy does")]


def within_hinge(
    lp: ReferencedPair, *, gamma: float, divergence: Divergence, divergence_alpha: float
) -> dict[str, Tensor]:
    """Which pairs are not yet far enough apart."""
    return {"rso/active": gamma * margin(lp, divergence, divergence_alpha) < 1}


@objective(ReferencedPair, source="Liu et al. 2023, arXiv:2309.06657, hinge-norm", lr=1e-6, diagnostics=within_hinge)
def rso_hinge(
    lp: ReferencedPair,
    *,
    gamma: Gamma = 0.05,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """RSO's hinge-norm: log-ratios apart by 1 / gamma, and no further.

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = max(0, 1 - gamma h)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo: sums over the scored tokens, in nats; gamma in 1/nat.
    Params   gamma: 0.05 in the paper, a margin of 20 nats.
             divergence, divergence_alpha: how each side's log-ratio counts in h.
    Data     as dpo; the paper's pairs are made of what build-rejection-samples accepts. TRL calls this loss hinge; SLiC's,
             without a reference, is slic.
    Anchor   where policy equals reference the loss is 1, its slope -gamma; from h = 1 / gamma on it is 0.
    """
    return F.relu(1 - gamma * margin(lp, divergence, divergence_alpha))


@objective(ReferencedPair, source="Liu et al. 2023, arXiv:2309.06657, sigmoid-norm", lr=1e-6)
def rso_sigmoid(
    lp: ReferencedPair,
    *,
    gamma: Gamma = 0.05,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """RSO's sigmoid-norm: DPO whose temperature is not the one that the answers were sampled at.

        loss = -log sigmoid(gamma h)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo.
    Params   gamma: 0.05 in the paper, beside a sampling beta of 0.5 in build-rejection-samples.
             divergence, divergence_alpha: how each side's log-ratio counts in h.
    Data     as dpo. TRL's sigmoid_norm is another loss, on means per token: dpo_norm.
    Anchor   it is dpo at beta = gamma.
    """
    return F.softplus(-gamma * margin(lp, divergence, divergence_alpha))
