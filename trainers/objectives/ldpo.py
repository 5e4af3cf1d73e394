"""DPO that counts the tail of the longer side less."""

from dataclasses import replace
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import PartialPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha


@objective(PartialPair, source="LD-DPO, Liu et al. 2024, arXiv:2409.06411", lr=1e-6)
def ldpo(
    lp: PartialPair,
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Range(at_least=0, at_most=1, why="it is the share of a tail that counts")] = 0.5,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Length-desensitised DPO: tokens beyond the shorter side's length count alpha, in policy and reference alike.

        side' = head + alpha (side - head), where head is its sum over the first min(chosen_tokens, rejected_tokens)
        loss = dpo of those

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo.
    Params   alpha: 0.5 is of the size that the paper's models chose [unconfirmed]; 1 is dpo, 0 compares equal lengths.
             divergence, divergence_alpha: how each side's log-ratio counts in the margin.
    Data     per-token reference log-probs: a stored sum can't be cut. Not rdpo, which prices length itself.
    Anchor   equal lengths make it dpo; where policy equals reference the loss is log 2 for every alpha.
    """
    cut = replace(
        lp,
        **{
            name: getattr(lp, f"{name}_head") + alpha * (getattr(lp, name) - getattr(lp, f"{name}_head"))
            for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")
        },
    )
    return F.softplus(-beta * margin(cut, divergence, divergence_alpha))
