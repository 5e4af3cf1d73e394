"""Alignment via optimal transport on judged rows: the rows of a forward are compared as two distributions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import Judged
from trainers.objectives.judged_ratios import log_ratio
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, LabelSmoothing


@objective(Judged, source="Melnyk et al. 2024, arXiv:2406.05882", lr=5e-7, across_rows=True)
def aot_unpaired(
    lp: Judged,
    *,
    beta: Beta = 0.01,
    label_smoothing: LabelSmoothing = 0.0,
) -> Tensor:
    """Alignment via Optimal Transport: desirable log-ratios above undesirable ones, quantile by quantile.

        u = sorted log-ratios of the desirable rows, v = of the undesirable ones, of one forward
        loss = mean over quantiles of -(1 - eps) log sigmoid(beta (u - v)) - eps log sigmoid(-beta (u - v))

    Shapes   every field of lp is (B,); returns (B,), whose mean is the loss: half of each comparison goes to either row.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat.
    Params   beta: 0.01 unless set. The learning rate is a guess [?].
             label_smoothing: eps in [0, 0.5).
    Data     ref_completion_logps. Classes of unequal size, and the rows' weights within a class, are taken as the
             transport between two weighted distributions takes them: every quantile counts as long as it is. Rows are
             sorted within a forward of one process, so --batch-size is part of the loss; a forward that has rows of one
             class alone gives 0.
    Anchor   where policy equals reference the loss is log 2. One row of each class is DPO's loss of the two.
    """
    ratios = log_ratio(lp)
    if lp.label.all() or not lp.label.any():
        return 0 * ratios
    desirable, undesirable, width = transport(ratios.detach(), lp.label, lp.weight)
    apart = beta * (ratios[desirable] - ratios[undesirable])
    cost = -(1 - label_smoothing) * F.logsigmoid(apart) - label_smoothing * F.logsigmoid(-apart)
    share = cost * width * (len(ratios) / 2)
    return torch.zeros_like(ratios).index_add(0, desirable, share).index_add(0, undesirable, share)


def transport(values: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The optimal plan between two classes on a line: rows of one, rows of the other, and the mass that goes between.

    values, label, weight are (B,); each of the three is as long as the plan, and the mass adds up to 1.
    """
    order = torch.argsort(values, stable=True)
    sides = [order[label[order]], order[~label[order]]]
    ends = [weight[side].cumsum(0) / weight[side].sum() for side in sides]
    bounds = torch.cat(ends).sort().values
    width = torch.diff(bounds, prepend=bounds.new_zeros(1))
    middle = bounds - width / 2
    desirable, undesirable = (
        side[torch.searchsorted(end, middle).clamp(max=len(side) - 1)] for side, end in zip(sides, ends, strict=True)
    )
    return desirable, undesirable, width
