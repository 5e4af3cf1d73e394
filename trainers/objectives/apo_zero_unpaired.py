"""Anchored Preference Optimization of judged rows."""

import torch
from torch import Tensor

from trainers.objectives.batch import Judged
from trainers.objectives.judged_ratios import saturated_from_zero, wrong_way
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


@objective(
    Judged,
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, each half by its label, as in TRL's apo_zero_unpaired",
    lr=2e-7,
    diagnostics=saturated_from_zero,
)
def apo_zero_unpaired(lp: Judged, *, beta: Beta = 0.1) -> Tensor:
    """Anchored Preference Optimization (zero) by label: KTO whose reference point is 0, so that no partner is needed.

        R = completion - ref_completion
        desirable: loss = weight (1 - sigmoid(beta R));   undesirable: loss = weight sigmoid(beta R)

    Shapes   every field of lp is (B,); returns (B,), one loss per row, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat.
    Params   beta: 0.1 unless set.
    Data     ref_completion_logps. For desirable rows that are better than what the model writes by itself.
    Anchor   where policy equals reference the loss is weight / 2, its slope in R -+ weight beta / 4. It saturates.
    """
    return lp.weight * torch.sigmoid(beta * wrong_way(lp))
