"""Reward models from comparisons."""

from collections.abc import Mapping
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import RewardPair
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective


def scores(lp: RewardPair, **_: float) -> Mapping[str, Tensor]:
    """Where the scores lie, how well their differences are calibrated, and whether length alone decides."""
    difference = lp.chosen - lp.rejected
    longer = (lp.chosen_tokens > lp.rejected_tokens).to(difference)
    shorter = (lp.chosen_tokens < lp.rejected_tokens).to(difference)
    right = (difference > 0).to(difference)
    return {
        "reward/score": (lp.chosen + lp.rejected) / 2,
        "reward/confidence": difference.sigmoid(),  # calibrated: its mean is the accuracy
        "reward/right_where_chosen_longer": right * longer,  # with those below, accuracy by which side is longer
        "reward/chosen_longer": longer,
        "reward/right_where_chosen_shorter": right * shorter,
        "reward/chosen_shorter": shorter,
    }


@objective(
    RewardPair,
    source="Bradley and Terry 1952; margin: Llama 2, Touvron et al. 2023, arXiv:2307.09288, eq. 2; centring: Eisenstein et"
    " al. 2023, arXiv:2312.09244",
    lr=1e-5,
    diagnostics=scores,
)
def reward(
    lp: RewardPair,
    *,
    margin_scale: Annotated[
        float, Range(at_least=0, why="below 0 clear preferences would be asked to be unclear")
    ] = 0.0,
    centring: Annotated[float, Range(at_least=0, why="below 0 scores would be driven apart without end")] = 0.0,
) -> Tensor:
    """Bradley-Terry reward model: the score of chosen above that of rejected.

        m = margin_scale * max(0, margin)
        loss = -log sigmoid(chosen - rejected - m) + centring * (chosen + rejected)^2

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    scores are plain numbers whose differences are log-odds: sigmoid(chosen - rejected) is the probability that
             chosen is preferred.
    Params   margin_scale: what one unit of the row's margin asks for; 0 asks for none. Llama 2's small margins are 1, 2/3,
             1/3 and 0 for four grades of strength, its large ones three times that [unconfirmed].
             centring: 0.01 keeps scores near 0; they are otherwise free up to a constant per prompt.
    Data     the head reads the last token of each completion, its end of turn included. margin: chosen_score minus
             rejected_score, or a strength that the source states; a row without one asks for no margin.
    Anchor   equal scores give log 2 (with margin m: log(1 + exp(m))); adding a constant to both scores changes the
             centring term alone.
    """
    margin = margin_scale * lp.margin.clamp(min=0)
    return F.softplus(-(lp.chosen - lp.rejected - margin)) + centring * (lp.chosen + lp.rejected) ** 2
