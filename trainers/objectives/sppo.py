"""Self-Play Preference Optimization: log-ratios led to win probabilities."""

from typing import Annotated

from torch import Tensor

from trainers.objectives.batch import ReferencedPair, ScoredPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import log_ratios
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


def won(lp: ScoredPair, *, score_scale: float, **_: float) -> dict[str, Tensor]:
    """The win probabilities that scores stand for."""
    return {"sppo/win_probability": win_probability(lp, score_scale)}


def win_probability(lp: ScoredPair, score_scale: float) -> Tensor:
    """Of chosen, by Bradley and Terry."""
    return (score_scale * (lp.chosen_score - lp.rejected_score)).sigmoid()


@objective(ReferencedPair, source="Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with win probabilities 1 and 0", lr=5e-7)
def sppo_hard(lp: ReferencedPair, *, beta: Beta = 0.001) -> Tensor:
    """SPPO with hard labels: chosen always wins.

        loss = (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2, a and b the log-ratios of chosen and rejected

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens; beta in 1/nat, the paper's 1 / eta; the loss in nat^2.
    Params   beta: 0.001 in the paper, targets of 500 nats on either side, so losses start at 500,000.
    Data     as dpo; the reference is the previous round's policy, so score the version again for every round.
    Anchor   where policy equals reference the loss is 1 / (2 beta^2); it is 0 at a = -b = 1 / (2 beta).
    """
    chosen, rejected = log_ratios(lp)
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


@objective(ScoredPair, source="Wu et al. 2024, arXiv:2405.00675, eq. 4.7", lr=5e-7, diagnostics=won)
def sppo(
    lp: ScoredPair,
    *,
    beta: Beta = 0.001,
    score_scale: Annotated[float, Range(above=0, why="at 0 no answer would be better than another")] = 1.0,
) -> Tensor:
    """SPPO with win probabilities from scores.

        p = sigmoid(score_scale (chosen_score - rejected_score))
        loss = (a - (p - 1/2) / beta)^2 + (b + (p - 1/2) / beta)^2, a and b the log-ratios of chosen and rejected

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens; beta in 1/nat, the paper's 1 / eta; the loss in nat^2.
    Params   beta: 0.001 in the paper.
             score_scale: log-odds per unit of score; 1 for a Bradley-Terry reward model.
    Data     chosen_score, rejected_score. Each side's win probability against the previous policy is estimated by that
             against the other side; the paper averages over several samples. As for sppo_hard, the reference is the previous
             round's policy. A tie pulls both sides to the reference, and an inversion turns the pair around.
    Anchor   scores far apart make it sppo_hard; exchanging the sides with their scores changes nothing.
    """
    chosen, rejected = log_ratios(lp)
    target = (win_probability(lp, score_scale) - 0.5) / beta
    return (chosen - target) ** 2 + (rejected + target) ** 2
