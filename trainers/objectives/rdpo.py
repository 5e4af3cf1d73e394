"""DPO with a price on length."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha


def length_term(lp: ReferencedPair, *, alpha: float, **_: object) -> dict[str, Tensor]:
    """What length adds to the logit."""
    return {"rdpo/length_term": alpha * longer(lp)}


def longer(lp: ReferencedPair) -> Tensor:
    """By how many tokens chosen is longer, in the precision of the log-probs: counts times a number are float32."""
    return (lp.chosen_tokens - lp.rejected_tokens).to(lp.chosen.dtype)


@objective(ReferencedPair, source="Park et al. 2024, arXiv:2403.19159", lr=1e-6, diagnostics=length_term)
def rdpo(
    lp: ReferencedPair,
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Range(at_least=0, why="below 0 length would be rewarded")] = 0.01,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Length-regularised DPO: a reward less alpha per token, so a longer chosen is learnt from less.

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = -log sigmoid(beta h + alpha (chosen_tokens - rejected_tokens))

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo; alpha in reward per token.
    Params   alpha: 0.01 is of the size that is usual, and 0.05 to 1 were tried in SimPO's comparison [unconfirmed]; 0 is
             dpo. The sign is that of the derivation: the reward of an answer is beta * log-ratio + alpha * tokens.
             divergence, divergence_alpha: how each side's log-ratio counts in h.
    Data     as dpo. Not ldpo, which counts the tail of the longer side less; TRL's ld_alpha is that one.
    Anchor   equal lengths make it dpo; where policy equals reference the loss is
             log(1 + exp(-alpha (chosen_tokens - rejected_tokens))).
    """
    return F.softplus(-(beta * margin(lp, divergence, divergence_alpha) + alpha * longer(lp)))
