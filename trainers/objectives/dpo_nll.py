"""DPO with a likelihood term on chosen, normalised in two ways."""

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair, ReferencedPairOfStep
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha, LikelihoodWeight


@objective(ReferencedPair, source="IRPO, Pang et al. 2024, arXiv:2404.19733, eq. 1", lr=1e-6)
def dpo_nll(
    lp: ReferencedPair,
    *,
    beta: Beta = 0.1,
    alpha: LikelihoodWeight = 1.0,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """DPO plus the likelihood of chosen, a mean per sequence: every pair's likelihood term weighs the same.

        loss = dpo - alpha * chosen / chosen_tokens

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo in the first term, nats per token in the second.
    Params   alpha: 1 in IRPO; 0 is dpo. Llama 3.1 takes 0.2, and leaves formatting tokens out of the first term on both
             sides, which a loss mask in the data does here for both terms [unconfirmed].
             divergence, divergence_alpha: how each side's log-ratio counts in dpo's margin.
    Data     as dpo. Published under the name RPO too, which means three things, so nothing is called that here.
    Anchor   where policy equals reference the loss is log 2 + alpha * (mean NLL of chosen under the reference).
    """
    return _preference(lp, beta, divergence, divergence_alpha) - alpha * lp.chosen / lp.chosen_tokens


@objective(
    ReferencedPairOfStep,
    source="Llama 3.1, Grattafiori et al. 2024, arXiv:2407.21783, sec. 4.1.4; token means as in TRL's sigmoid and sft",
    lr=1e-6,
)
def dpo_nll_token(
    lp: ReferencedPairOfStep,
    *,
    beta: Beta = 0.1,
    alpha: LikelihoodWeight = 0.2,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """DPO plus the likelihood of chosen, a mean per token: every chosen token of a step weighs the same.

        loss = dpo - alpha * chosen / (mean chosen_tokens of the step's pairs)

    Shapes   fields of lp are (B,), mean_chosen_tokens is (); returns (B,), one loss per pair, not reduced.
    Units    as dpo in the first term, nats per token in the second, once losses are averaged over the step's pairs.
    Params   alpha: 0.2 in Llama 3.1 [unconfirmed]; arXiv:2405.16436, a theory of the same form, takes 0.005 with beta 0.01.
             divergence, divergence_alpha: how each side's log-ratio counts in dpo's margin.
    Data     as dpo. The mean is over all micro-batches and processes of a step, so how a step is cut changes nothing.
    Anchor   equal lengths make it dpo_nll; its mean over a step is that of dpo+sft with --weights 1,alpha.
    """
    return _preference(lp, beta, divergence, divergence_alpha) - alpha * lp.chosen / lp.mean_chosen_tokens


def _preference(lp: ReferencedPair, beta: float, divergence: Divergence, divergence_alpha: float) -> Tensor:
    return F.softplus(-beta * margin(lp, divergence, divergence_alpha))
