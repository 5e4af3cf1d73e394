"""Binary Classifier Optimization, on pairs."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import PairWithMeans
from trainers.objectives.log_ratios import log_ratios
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta

Shift = Literal["midpoint", "none"]


def shifted(lp: PairWithMeans, *, beta: float, shift: Shift) -> dict[str, Tensor]:
    """Where the classifier's threshold is."""
    return {"bco_pair/shift": threshold(lp, beta, shift).expand(len(lp.chosen))}


def threshold(lp: PairWithMeans, beta: float, shift: Shift) -> Tensor:
    """The midpoint of both sides' mean rewards, or 0."""
    midpoint = beta * (lp.chosen_mean + lp.rejected_mean) / 2
    return midpoint if shift == "midpoint" else midpoint * 0


@objective(PairWithMeans, source="Jung et al. 2024, arXiv:2404.04656, on pairs", lr=5e-7, diagnostics=shifted)
def bco_pair(lp: PairWithMeans, *, beta: Beta = 0.1, shift: Shift = "midpoint") -> Tensor:
    """BCO on pairs: a classifier whose logit is the reward tells chosen sides from rejected ones.

        r = beta * log-ratio of a side;   delta = (mean r_chosen + mean r_rejected) / 2
        loss = -log sigmoid(r_chosen - delta) - log sigmoid(-(r_rejected - delta))

    Shapes   fields of lp are (B,), the means (); returns (B,), one loss per pair, not reduced.
    Units    as dpo: sums over the scored tokens, in nats; beta in 1/nat.
    Params   beta: 0.1, as in TRL.
             shift: midpoint is the paper's delta, from moving averages over the run without gradient, 0 at its start; none
             leaves it at 0, the paper's ablation and what TRL's bco_pair does.
    Data     as dpo. A pair of equal sides is pulled back to the reference.
    Anchor   where policy equals reference and delta is 0 the loss is 2 log 2; for every delta it is above dpo's.
    """
    chosen, rejected = log_ratios(lp)
    delta = threshold(lp, beta, shift)
    return F.softplus(-(beta * chosen - delta)) + F.softplus(beta * rejected - delta)
