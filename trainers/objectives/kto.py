"""Kahneman-Tversky Optimization, with a reference point from partners that are frozen in the data."""

from typing import Annotated

import torch
from torch import Tensor

from trainers.objectives.batch import JudgedWithPartner
from trainers.objectives.judged_ratios import saturated, wrong_way
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta

ClassWeight = Annotated[float, Range(above=0, why="a class that weighs nothing is not learnt from")]


def reference_point(lp: JudgedWithPartner) -> Tensor:
    """KTO's z0: the estimate over all devices, and only then what is below 0 made 0. No gradient."""
    return lp.divergence.clamp(min=0)


def kto_diagnostics(lp: JudgedWithPartner, *, beta: float, **_: float) -> dict[str, Tensor]:
    """The reference point before and after it is clamped, and how many rows are too far from it to be learnt from."""
    rows = len(lp.completion)
    return {
        "kto/kl_estimate": lp.divergence.expand(rows),
        "kto/kl": reference_point(lp).expand(rows),
        **saturated(lp, reference_point(lp), beta=beta),
    }


@objective(
    JudgedWithPartner,
    source="Ethayarajh et al. 2024, arXiv:2402.01306; the mismatched completions are frozen in the data",
    lr=5e-6,
    diagnostics=kto_diagnostics,
)
def kto(
    lp: JudgedWithPartner,
    *,
    beta: Beta = 0.1,
    desirable_weight: ClassWeight = 1.0,
    undesirable_weight: ClassWeight = 1.0,
) -> Tensor:
    """Kahneman-Tversky Optimization: gains and losses against how far the policy has moved on any answer.

        R = completion - ref_completion
        z0 = max(0, mean over all devices' rows of partner - ref_partner), without a gradient
        desirable:    loss = weight desirable_weight (1 - sigmoid(beta (R - z0)))
        undesirable:  loss = weight undesirable_weight (1 - sigmoid(beta (z0 - R)))

    Shapes   every field of lp is (B,), divergence (); returns (B,), one loss per row, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat.
    Params   beta: 0.1 unless set; 0.01 to 1 was tried, smaller for a large model after much fine-tuning.
             desirable_weight, undesirable_weight: the paper wants desirable_weight n_desirable / (undesirable_weight
             n_undesirable) in [1, 3/2] (its first version: [1, 4/3]) and one of them 1. build-unpaired stores weights with
             which that ratio is 1 already, so that these stay 1 on what it makes.
    Data     ref_completion_logps; partner_ids and ref_partner_logps: another prompt's completion behind this row's prompt,
             frozen, so that a stored reference serves it, in any order of the rows and from one row a forward on.
    Anchor   where policy equals reference, z0 = 0 and the loss is weight / 2, its slope in R -+ weight beta / 4. It
             saturates: a row with |beta (R - z0)| above 6 is hardly learnt from.
    """
    # tensors of the weight's own precision: `where` of two numbers would be float32
    weight = torch.where(lp.label, desirable_weight * lp.weight, undesirable_weight * lp.weight)
    return weight * torch.sigmoid(beta * wrong_way(lp, reference_point(lp)))
