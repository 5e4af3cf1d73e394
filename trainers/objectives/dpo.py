"""Direct Preference Optimization."""

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha, LabelSmoothing


@objective(
    ReferencedPair,
    source="Rafailov et al. 2023, arXiv:2305.18290, eq. 7; label_smoothing: Mitchell 2023, cDPO note; divergence: Wang et"
    " al. 2023, arXiv:2309.16240",
    lr=1e-6,
)
def dpo(
    lp: ReferencedPair,
    *,
    beta: Beta = 0.1,
    label_smoothing: LabelSmoothing = 0.0,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Direct Preference Optimization.

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat.
    Params   beta: 0.1 to 0.5 is usual; smaller lets the policy move further from the reference.
             label_smoothing: eps in [0, 0.5), the share of pairs thought to be labelled backwards (cDPO).
             divergence, divergence_alpha: how each side's log-ratio counts in h; see trainers.objectives.log_ratios.
    Data     ref_chosen_logps, ref_rejected_logps: same tokens, template and mask as the policy's sums.
    Anchor   where policy equals reference, h = 0 and the loss is log 2 for every beta and eps.
    """
    return smoothed(beta * margin(lp, divergence, divergence_alpha), label_smoothing)


def smoothed(logit: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid of the logit, with a share of labels taken to be backwards."""
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)
