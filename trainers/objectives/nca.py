"""Noise Contrastive Alignment, on pairs."""

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.log_ratios import log_ratios
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


@objective(ReferencedPair, source="Chen et al. 2024, arXiv:2402.05369, NCA on pairs; nca_pair in TRL", lr=5e-6)
def nca(lp: ReferencedPair, *, beta: Beta = 0.01) -> Tensor:
    """Noise Contrastive Alignment on pairs: rewards by themselves, not only their difference.

        r = beta * log-ratio of a side
        loss = -log sigmoid(r_chosen) - log sigmoid(-r_chosen) / 2 - log sigmoid(-r_rejected) / 2

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo: sums over the scored tokens, in nats; beta in 1/nat.
    Params   beta: 0.01 in the paper.
    Data     as dpo. A pair of equal sides is pulled back to the reference.
    Anchor   where policy equals reference the loss is 2 log 2; chosen rests at r_chosen = log 2.
    """
    chosen, rejected = log_ratios(lp)
    chosen, rejected = beta * chosen, beta * rejected
    return F.softplus(-chosen) + 0.5 * F.softplus(chosen) + 0.5 * F.softplus(rejected)
