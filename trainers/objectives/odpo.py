"""DPO with an offset: how much better chosen is decides how far apart the sides should be."""

from typing import Annotated, Literal

import pyarrow.compute as pc
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import Rule, ScoredPair
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import margin
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, Divergence, DivergenceAlpha

OffsetOf = Literal["log", "difference"]

# a difference of scores below this counts as this, so that the logarithm of one that rounding left stays finite
SMALLEST = 1e-6


def offset(lp: ScoredPair, alpha: float, of: OffsetOf) -> Tensor:
    """What beta h is asked to exceed."""
    difference = lp.chosen_score - lp.rejected_score
    return alpha * (difference.clamp(min=SMALLEST).log() if of == "log" else difference)


def beyond_offset(
    lp: ScoredPair, *, beta: float, alpha: float, offset_of: OffsetOf, divergence: Divergence, divergence_alpha: float
) -> dict[str, Tensor]:
    """The offsets, and which pairs are further apart than theirs."""
    asked = offset(lp, alpha, offset_of)
    return {"odpo/offset": asked, "odpo/beyond_offset": beta * margin(lp, divergence, divergence_alpha) > asked}


def ordered(*, offset_of: OffsetOf, **_: object) -> tuple[Rule, ...]:
    """Scores that contradict the labels are refused; ties too, where the offset would be the logarithm of 0."""
    inverted = Rule(
        lambda rows: pc.less(rows["chosen_score"], rows["rejected_score"]),
        "chosen_score is below rejected_score",
        "scores and labels contradict each other, and an offset would be below none; order the pairs by their scores",
        flow="build_paired",
    )
    tied = Rule(
        lambda rows: pc.equal(rows["chosen_score"], rows["rejected_score"]),
        "chosen_score equals rejected_score",
        "the logarithm of their difference is not finite, and such a pair would teach nothing; train with --set"
        " offset_of=difference, or leave ties out",
        flow="build_paired",
    )
    return (inverted, tied) if offset_of == "log" else (inverted,)


@objective(ScoredPair, source="Amini et al. 2024, arXiv:2402.10571", lr=1e-6, diagnostics=beyond_offset, rules=ordered)
def odpo(
    lp: ScoredPair,
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Range(at_least=0, why="below 0 clearer preferences would be asked to be less clear")] = 1.0,
    offset_of: OffsetOf = "log",
    divergence: Divergence = "reverse_kl",
    divergence_alpha: DivergenceAlpha = 0.5,
) -> Tensor:
    """DPO with an offset: pairs that are further apart by their scores are driven further apart.

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        delta = alpha * log(chosen_score - rejected_score), or without the log
        loss = -log sigmoid(beta h - delta)

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    as dpo; scores in the scorer's own unit, so alpha too is of that unit.
    Params   beta: 0.5 in the paper's summaries, 0.7 for sentiment, 0.05 for toxicity; 0.1 here as for dpo.
             alpha: 0.5 for sentiment, 1 elsewhere in the paper; 0 is dpo.
             offset_of: log, of the difference of scores, as in the experiments, or difference itself. A difference
             below 1 has a negative log, so such a pair may stay unordered.
             divergence, divergence_alpha: how each side's log-ratio counts in h.
    Data     chosen_score above rejected_score; published code silently ignores ties and gives NaN for the rest.
    Anchor   where policy equals reference the loss is log(1 + exp(delta)); it is dpo with h moved by delta / beta.
    """
    return F.softplus(offset(lp, alpha, offset_of) - beta * margin(lp, divergence, divergence_alpha))
