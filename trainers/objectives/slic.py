"""SLiC-HF: a hinge on likelihoods, and a likelihood term that holds the policy near good answers."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import Pair
from trainers.objectives.knobs import Range
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import LikelihoodWeight


def hinge(lp: Pair, *, delta: float, **_: float) -> dict[str, Tensor]:
    """The two terms, and which pairs the hinge still moves."""
    short = F.relu(delta - lp.chosen + lp.rejected)
    return {"slic/hinge": short, "slic/cross_entropy": -lp.chosen, "slic/active": short > 0}


@objective(Pair, source="Zhao et al. 2023, arXiv:2305.10425, eq. 1", lr=1e-5, diagnostics=hinge)
def slic(
    lp: Pair,
    *,
    delta: Annotated[float, Range(at_least=0, why="below 0 a rejected side likelier than chosen would do")] = 1.0,
    lam: LikelihoodWeight = 0.1,
) -> Tensor:
    """SLiC-HF with its cross-entropy regulariser: chosen likelier than rejected by a margin, and likely by itself.

        loss = max(0, delta - chosen + rejected) - lam * chosen

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens (not means), in both terms; delta in nats.
    Params   delta: 1 in the paper.
             lam: a matter of tuning; 0.1 in public code [unconfirmed].
    Data     no reference. The likelihood term is of chosen; the paper also takes the answer that the policy was fine-tuned on,
             which a pair does not hold.
    Anchor   equal sums give delta - lam * chosen; beyond the margin the likelihood term alone trains. At the margin itself
             the hinge has no gradient.
    """
    return F.relu(delta - lp.chosen + lp.rejected) - lam * lp.chosen
