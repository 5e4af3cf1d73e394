"""Efficient Exact Optimization, on pairs."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha


@objective(ReferencedPair, source="Ji et al. 2024, arXiv:2402.00856, eq. 16; exo_pair in TRL", lr=1e-6)
def exo(
    lp: ReferencedPair,
    *,
    beta: Beta = 0.1,
    label_smoothing: Annotated[
        float, Range(above=0, below=0.5, why="at 0 the loss is infinite, and from 0.5 on the labels say nothing")
    ] = 1e-3,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """EXO on pairs: the reverse KL divergence from the policy's preference to the label's, softened by eps.

        x = beta ((chosen - ref_chosen) - (rejected - ref_rejected));   q = sigmoid(x)
        loss = q (log q - log(1 - eps)) + (1 - q) (log(1 - q) - log eps)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo.
    Params   beta: 0.1 is usual.
             label_smoothing: eps, 0.001 in the paper; it must be above 0.
             divergence, divergence_alpha: how each side's log-ratio counts in x.
    Data     as dpo. A pair that is far misordered has loss -log eps and no gradient.
    Anchor   the loss is 0 at x = log((1 - eps) / eps); where policy equals reference it is
             -log 2 - (log(1 - eps) + log eps) / 2.
    """
    x = beta * margin(lp, divergence, divergence_alpha)
    right = F.logsigmoid(x) - math.log1p(-label_smoothing)
    wrong = F.logsigmoid(-x) - math.log(label_smoothing)
    return torch.sigmoid(x) * right + torch.sigmoid(-x) * wrong
