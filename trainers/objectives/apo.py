"""Anchored Preference Optimization: where both sides should go, not only how far apart."""

import torch
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.log_ratios import log_ratios
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


@objective(ReferencedPair, source="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7", lr=2e-7)
def apo_zero(lp: ReferencedPair, *, beta: Beta = 0.1) -> Tensor:
    """APO-zero: chosen up, rejected down. For answers of which chosen is better than the policy's own.

        loss = 1 - sigmoid(beta a) + sigmoid(beta b), a and b the log-ratios of chosen and rejected

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo: sums over the scored tokens, in nats; beta in 1/nat.
    Params   beta: 0.1 is usual.
    Data     as dpo. Both terms saturate: a side far on either side has no gradient.
    Anchor   where policy equals reference the loss is 1, its slopes -beta / 4 in a and beta / 4 in b. A constant added to
             both references changes it, unlike dpo.
    """
    chosen, rejected = log_ratios(lp)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


@objective(ReferencedPair, source="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8", lr=2e-7)
def apo_down(lp: ReferencedPair, *, beta: Beta = 0.1) -> Tensor:
    """APO-down: both down, rejected further. For answers that are worse than the policy's own.

        loss = sigmoid(beta a) + 1 - sigmoid(beta (a - b)), a and b the log-ratios of chosen and rejected

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo: sums over the scored tokens, in nats; beta in 1/nat.
    Params   beta: 0.1 is usual.
    Data     as dpo. The constant 1 is TRL's; the paper drops it.
    Anchor   where policy equals reference the loss is 1, its slopes 0 in a and beta / 4 in b.
    """
    chosen, rejected = log_ratios(lp)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
