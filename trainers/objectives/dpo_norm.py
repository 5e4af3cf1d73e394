"""DPO on means per token."""

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.log_ratios import mean_margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha


@objective(
    ReferencedPair,
    source="Tulu 3, Lambert et al. 2024, arXiv:2411.15124; sigmoid_norm in TRL",
    lr=5e-7,
    rewards="means",
)
def dpo_norm(
    lp: ReferencedPair,
    *,
    beta: Beta = 5.0,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Length-normalised DPO: each side's log-ratio is a mean over its own tokens.

        h = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
        loss = -log sigmoid(beta h)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    nats per token; beta in tokens per nat, so not on dpo's scale.
    Params   beta: 5 in Tulu 3 [unconfirmed].
             divergence, divergence_alpha: how each side's log-ratio counts, before it is divided.
    Data     as dpo. Not what RSO's paper calls sigmoid-norm, which is on sums: rso_sigmoid.
    Anchor   with n tokens on both sides it is dpo at beta / n; where policy equals reference the loss is log 2.
    """
    return F.softplus(-beta * mean_margin(lp, divergence, divergence_alpha))
