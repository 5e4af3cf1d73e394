"""Losses that lead a pair's margin to a target: IPO, per completion and per token, and Psi-PO."""

from collections.abc import Callable, Mapping
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from trainers.objectives.batch import PreferredPair, ReferencedPair, Rule, preference_of
from trainers.objectives.log_ratios import margin, mean_margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Divergence, DivergenceAlpha, Tau

PsiName = Literal["identity", "logit"]


def towards_target(
    margin: Callable[[ReferencedPair, Divergence, float], Tensor],
) -> Callable[..., Mapping[str, Tensor]]:
    """The diagnostics of IPO: the margins, how far they are from the target, and which are beyond it, pulled back."""

    def diagnostics(
        lp: ReferencedPair, *, tau: float, divergence: Divergence, divergence_alpha: float
    ) -> dict[str, Tensor]:
        return _around(margin(lp, divergence, divergence_alpha), 1 / (2 * tau))

    return diagnostics


def _around(d: Tensor, target: float | Tensor) -> dict[str, Tensor]:
    return {
        "ipo/margin": d,
        "ipo/abs_margin_max": d.abs(),  # the loss is quadratic: one broken pair outweighs many
        "ipo/distance_to_target": (d - target).abs(),
        "ipo/beyond_target": d > target,
    }


@objective(
    ReferencedPair,
    source="Azar et al. 2023, arXiv:2310.12036, eq. 17",
    lr=1e-6,
    diagnostics=towards_target(margin),
)
def ipo(
    lp: ReferencedPair,
    *,
    tau: Tau = 0.1,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Identity Preference Optimization, as in the paper: the margin is led to a target, not pushed without end.

        d = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = (d - 1 / (2 tau))^2

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means); tau in 1/nat; the loss in nat^2.
    Params   tau: 0.1 to 1 is usual, a target of 5 to 0.5 nats per pair of completions. It is not on the scale of DPO's
             beta, nor on that of ipo_mean's tau, which is this one times the number of tokens.
             divergence, divergence_alpha: how each side's log-ratio counts in d.
    Data     ref_chosen_logps, ref_rejected_logps: same tokens, template and mask as the policy's sums. The loss is
             quadratic, so a few long or broken pairs can outweigh the rest.
    Anchor   where policy equals reference, d = 0 and the loss is 1 / (4 tau^2), its slope in d -1 / tau; loss and
             gradient are 0 at d = 1 / (2 tau).
    """
    return (margin(lp, divergence, divergence_alpha) - 1 / (2 * tau)) ** 2


@objective(
    ReferencedPair,
    source="Azar et al. 2023, arXiv:2310.12036, with token means in place of sums, as in TRL's DPOTrainer",
    lr=1e-6,
    diagnostics=towards_target(mean_margin),
)
def ipo_mean(
    lp: ReferencedPair,
    *,
    tau: Tau = 0.1,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Identity Preference Optimization per token: another objective than the paper's, with a target per token.

        d = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
        loss = (d - 1 / (2 tau))^2

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    nats per token: each side's log-ratio is averaged over its scored tokens; tau in tokens per nat.
    Params   tau: 0.1 is TRL's default, a target of 5 nats per token, which long answers hardly reach, so that the loss
             acts as a steady push. For the target that ipo has, take its tau times the number of tokens.
             divergence, divergence_alpha: how each side's log-ratio counts, before it is divided.
    Data     ref_chosen_logps, ref_rejected_logps, chosen_tokens, rejected_tokens: same tokens, template and mask as the
             policy's sums.
    Anchor   where policy equals reference, d = 0 and the loss is 1 / (4 tau^2); with n tokens on both sides it is
             ipo at tau / n, divided by n^2.
    """
    return (mean_margin(lp, divergence, divergence_alpha) - 1 / (2 * tau)) ** 2


def psi_target(lp: PreferredPair, psi: PsiName, tau: float) -> Tensor:
    """Where the margin is led: (Psi(p) - Psi(1 - p)) / (2 tau)."""
    p = lp.preference
    return (2 * p - 1 if psi == "identity" else 2 * p.logit()) / (2 * tau)


def towards_psi(
    lp: PreferredPair, *, psi: PsiName, tau: float, divergence: Divergence, divergence_alpha: float
) -> dict[str, Tensor]:
    """IPO's diagnostics, with a target for every pair."""
    target = psi_target(lp, psi, tau)
    return {"psi_po/target": target, **_around(margin(lp, divergence, divergence_alpha), target)}


def unsure(*, psi: PsiName, **_: object) -> tuple[Rule, ...]:
    """The logit of a certain preference is not finite."""
    certain = Rule(
        lambda rows: pc.is_in(preference_of(rows), value_set=pa.array([0.0, 1.0])),
        "preference is 0 or 1, or not stated, which is 1",
        "the logit of a certain preference is no number, and the margin would be driven apart without end; train with"
        " --set psi=identity, or give preferences that were estimated",
    )
    return (certain,) if psi == "logit" else ()


@objective(
    PreferredPair,
    source="Azar et al. 2023, arXiv:2310.12036, eq. 6, as a regression on pairs",
    lr=1e-6,
    diagnostics=towards_psi,
    rules=unsure,
)
def psi_po(
    lp: PreferredPair,
    *,
    tau: Tau = 0.1,
    psi: PsiName = "identity",
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """Psi-PO on pairs: the margin is led to what the pair's preference probability asks for.

        d = (chosen - ref_chosen) - (rejected - ref_rejected);   p = preference
        loss = (d - (Psi(p) - Psi(1 - p)) / (2 tau))^2

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as ipo; p is a probability.
    Params   tau: as ipo's.
             psi: identity, which is ipo with soft labels; or logit, whose target logit(p) / tau is the optimum that DPO
             has at beta = tau. Both make Psi(q) + Psi(1 - q) constant, without which a pair's regression would be no
             Psi-PO.
             divergence, divergence_alpha: how each side's log-ratio counts in d.
    Data     preference: the probability that chosen is better, from votes, a judge or a difference of scores; 1 where
             unsaid. With logit, preferences of 0 or 1 are refused.
    Anchor   identity with p = 1 is ipo; p = 1/2 leads both sides' log-ratios to each other.
    """
    return (margin(lp, divergence, divergence_alpha) - psi_target(lp, psi, tau)) ** 2
