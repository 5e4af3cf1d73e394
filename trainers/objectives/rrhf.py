"""Rank Responses to align Human Feedback."""

from typing import Literal

import torch
from torch import Tensor

from trainers.objectives.batch import Ranked
from trainers.objectives.rankings import best, outranks
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import LikelihoodWeight


@objective(Ranked, source="Yuan et al. 2023, arXiv:2304.05302", lr=2e-5)
def rrhf(
    lp: Ranked,
    *,
    nll_weight: LikelihoodWeight = 1.0,
    nll: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Rank Responses to align Human Feedback: mean log-probs in the order of the scores, and likelihood of the best answer.

        m_i = completion / tokens of completion i, r_i its score
        loss = sum over r_i < r_j of max(0, m_i - m_j) + nll_weight NLL(best)

    Shapes   fields of lp are (B, K), K the most completions that a prompt of the batch has; returns (B,), one loss per
             prompt, not reduced.
    Units    nats per token in the first term; NLL in nats, over the whole answer or per token.
    Params   nll_weight: 1 in the paper; 0 leaves the ranking alone.
             nll: sum, over the best answer's tokens, is the paper's formula; mean, per token, is what its code does [?].
             The learning rate is the published one [?].
    Data     scores of several completions of a prompt, in any unit: only their order counts, and equal scores make no term.
             Of several best answers the likelihoods are averaged. No reference.
    Anchor   in the right order only the likelihood is left; of two completions without it, max(0, m_worse - m_better).
    """
    means = lp.completion / lp.completion_tokens
    behind = (means[:, None, :] - means[:, :, None]).clamp(min=0)  # [b, i, j]: how far j is ahead of i
    ranking = torch.where(outranks(lp), behind, 0.0).sum(dim=(1, 2))
    likelihood = lp.completion if nll == "sum" else means
    return ranking - nll_weight * (best(lp) * likelihood).sum(dim=1)
