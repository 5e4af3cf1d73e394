"""Losses of a pair and its stored reference log-probs."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective

TAU = Range(above=0, why="the target is 1 / (2 tau)")


def log_ratio_margin(lp: ReferencedPair) -> Tensor:
    """How much more the policy has moved towards chosen than towards rejected: nats, over whole completions."""
    return (lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected)


def mean_log_ratio_margin(lp: ReferencedPair) -> Tensor:
    """The same of the means over each side's scored tokens: nats per token."""
    return (lp.chosen - lp.ref_chosen) / lp.chosen_tokens - (lp.rejected - lp.ref_rejected) / lp.rejected_tokens


def towards_target(margin: Callable[[ReferencedPair], Tensor]) -> Callable[..., Mapping[str, Tensor]]:
    """The diagnostics of IPO: the margins, how far they are from the target, and which are beyond it, pulled back."""

    def diagnostics(lp: ReferencedPair, *, tau: float) -> dict[str, Tensor]:
        d, target = margin(lp), 1 / (2 * tau)
        return {
            "ipo/margin": d,
            "ipo/distance_to_target": (d - target).abs(),
            "ipo/beyond_target": d > target,
        }

    return diagnostics


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
    h = log_ratio_margin(lp)
    agree, flipped = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return -(1 - label_smoothing) * agree - label_smoothing * flipped


@objective(
    ReferencedPair,
    source="Azar et al. 2023, arXiv:2310.12036, eq. 17",
    lr=1e-6,
    diagnostics=towards_target(log_ratio_margin),
)
def ipo(lp: ReferencedPair, *, tau: Annotated[float, TAU] = 0.1) -> Tensor:
    """Identity Preference Optimization, as in the paper: the margin is led to a target, not pushed without end.

        d = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = (d - 1 / (2 tau))^2

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means); tau in 1/nat; the loss in nat^2.
    Params   tau: 0.1 to 1 is usual, a target of 5 to 0.5 nats per pair of completions. It is not on the scale of DPO's
             beta, nor on that of ipo_mean's tau, which is this one times the number of tokens.
    Data     ref_chosen_logps, ref_rejected_logps: same tokens, template and mask as the policy's sums. The loss is
             quadratic, so a few long or broken pairs can outweigh the rest.
    Anchor   where policy equals reference, d = 0 and the loss is 1 / (4 tau^2), its slope in d -1 / tau; loss and
             gradient are 0 at d = 1 / (2 tau).
    """
    return (log_ratio_margin(lp) - 1 / (2 * tau)) ** 2


@objective(
    ReferencedPair,
    source="Azar et al. 2023, arXiv:2310.12036, with token means in place of sums, as in TRL's DPOTrainer",
    lr=1e-6,
    diagnostics=towards_target(mean_log_ratio_margin),
)
def ipo_mean(lp: ReferencedPair, *, tau: Annotated[float, TAU] = 0.1) -> Tensor:
    """Identity Preference Optimization per token: another objective than the paper's, with a target per token.

        d = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
        loss = (d - 1 / (2 tau))^2

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    nats per token: each side's log-ratio is averaged over its scored tokens; tau in tokens per nat.
    Params   tau: 0.1 is TRL's default, a target of 5 nats per token, which long answers hardly reach, so that the loss
             acts as a steady push. For the target that ipo has, take its tau times the number of tokens.
    Data     ref_chosen_logps, ref_rejected_logps, chosen_tokens, rejected_tokens: same tokens, template and mask as the
             policy's sums.
    Anchor   where policy equals reference, d = 0 and the loss is 1 / (4 tau^2); with n tokens on both sides it is
             ipo at tau / n, divided by n^2.
    """
    return (mean_log_ratio_margin(lp) - 1 / (2 * tau)) ** 2
