"""Binary Classifier Optimization of judged rows."""

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import JudgedWithMeans
from trainers.objectives.judged_ratios import wrong_way
from trainers.objectives.log_ratios import SATURATED
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


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
        # judged well alone: a misjudged row has all of its gradient
        "saturation/beyond_6": beta * wrong_way(lp, midpoint(lp)) < -SATURATED,
    }


@objective(JudgedWithMeans, source="Jung et al. 2024, arXiv:2404.04656", lr=5e-7, diagnostics=bco_diagnostics)
def bco(lp: JudgedWithMeans, *, beta: Beta = 0.1) -> Tensor:
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
