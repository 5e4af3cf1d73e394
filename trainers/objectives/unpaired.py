"""Losses of a completion that was judged by itself, and its stored reference log-prob.

The mean over a step is taken over rows of both classes together; a row's stored weight, which is 1 unless the version says
otherwise, multiplies its loss.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import Judged, JudgedWithMeans, JudgedWithPartner
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective

BETA = Range(above=0, why="at 0 the loss is the same whatever the policy does")
WEIGHT = Range(above=0, why="a class that weighs nothing is not learnt from")
# beyond so many, a sigmoid's slope is below a hundredth of its largest
SATURATED = 6.0


def log_ratio(lp: Judged) -> Tensor:
    """How far the policy has moved towards the completion: nats, over the whole of it."""
    return lp.completion - lp.ref_completion


def wrong_way(lp: Judged, above: Tensor | float = 0.0) -> Tensor:
    """How far the log-ratio is on the wrong side of a bar: below it for a desirable row, above it for an undesirable one."""
    below = above - log_ratio(lp)
    return torch.where(lp.label, below, -below)


def reference_point(lp: JudgedWithPartner) -> Tensor:
    """KTO's z0: the estimate over all devices, and only then what is below 0 made 0. No gradient."""
    return lp.divergence.clamp(min=0)


def kto_diagnostics(lp: JudgedWithPartner, *, beta: float, **_: float) -> dict[str, Tensor]:
    """The reference point before and after it is clamped, and how many rows are too far from it to be learnt from."""
    far = beta * wrong_way(lp, reference_point(lp)).abs() > SATURATED
    return {
        "kto/kl_estimate": lp.divergence.expand(len(far)),
        "kto/kl": reference_point(lp).expand(len(far)),
        "kto/saturated": far,
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
    beta: Annotated[float, BETA] = 0.1,
    desirable_weight: Annotated[float, WEIGHT] = 1.0,
    undesirable_weight: Annotated[float, WEIGHT] = 1.0,
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
    weight = lp.weight * torch.where(lp.label, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(beta * wrong_way(lp, reference_point(lp)))


@objective(
    Judged,
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, each half by its label, as in TRL's apo_zero_unpaired",
    lr=2e-7,
)
def apo_zero_unpaired(lp: Judged, *, beta: Annotated[float, BETA] = 0.1) -> Tensor:
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


def midpoint(lp: JudgedWithMeans) -> Tensor:
    """Between the two classes' mean log-ratios: nats."""
    return (lp.desirable_mean + lp.undesirable_mean) / 2


def bco_diagnostics(lp: JudgedWithMeans, *, beta: float) -> dict[str, Tensor]:
    """BCO's shift, and the rewards of the two classes that it lies between."""
    rows = len(lp.completion)
    return {
        "bco/delta": (beta * midpoint(lp)).expand(rows),
        "bco/desirable_mean": (beta * lp.desirable_mean).expand(rows),
        "bco/undesirable_mean": (beta * lp.undesirable_mean).expand(rows),
    }


@objective(JudgedWithMeans, source="Jung et al. 2024, arXiv:2404.04656", lr=5e-7, diagnostics=bco_diagnostics)
def bco(lp: JudgedWithMeans, *, beta: Annotated[float, BETA] = 0.1) -> Tensor:
    """Binary Classifier Optimization: desirable or not, by a classifier whose logit is the reward minus a shift.

        r = beta (completion - ref_completion)
        delta = (mean r of desirable rows + mean r of undesirable rows) / 2, as moving averages without a gradient
        desirable: loss = -weight log sigmoid(r - delta);   undesirable: loss = -weight log sigmoid(delta - r)

    Shapes   every field of lp is (B,), the two means (); returns (B,), one loss per row, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat.
    Params   beta: 0.1 unless set, TRL's; learning rate 5e-7 is TRL's too.
    Data     ref_completion_logps. The paper adds up the expectations of the two classes; here the mean is over all rows, so
             classes of unequal size are balanced by the stored weights, as build-unpaired sets them. Its weights for
             prompts that differ between the classes would stand there as well; none are computed here.
    Anchor   where policy equals reference, delta = 0 and the loss is weight log 2. For a pair, the two terms together are
             above DPO's loss whatever delta is. Unlike KTO's, the gradient of a misjudged row does not vanish.
    Departs  TRL's older BCOTrainer has for delta the mean of all rewards since the start, which leans to the larger class.
    """
    return lp.weight * F.softplus(beta * wrong_way(lp, midpoint(lp)))
