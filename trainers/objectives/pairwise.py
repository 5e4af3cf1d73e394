"""Losses of a pair and its stored reference log-probs."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective


@objective(
    ReferencedPair,
    source="Rafailov et al. 2023, arXiv:2305.18290, eq. 7; label_smoothing: Mitchell 2023, cDPO note",
    lr=1e-6,
)
def dpo(
    lp: ReferencedPair,
    *,
    beta: Annotated[float, Range(above=0, why="at 0 the loss is log 2 whatever the policy does")] = 0.1,
    label_smoothing: Annotated[
        float, Range(at_least=0, below=0.5, why="from 0.5 on the labels would say nothing, or the opposite")
    ] = 0.0,
) -> Tensor:
    """Direct Preference Optimization.

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat.
    Params   beta: 0.1 to 0.5 is usual; smaller lets the policy move further from the reference.
             label_smoothing: eps in [0, 0.5), the share of pairs thought to be labelled backwards (cDPO).
    Data     ref_chosen_logps, ref_rejected_logps: same tokens, template and mask as the policy's sums.
    Anchor   where policy equals reference, h = 0 and the loss is log 2 for every beta and eps.
    """
    h = (lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected)
    agree, flipped = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return -(1 - label_smoothing) * agree - label_smoothing * flipped
