"""DPO of rankings."""

import torch
from torch import Tensor

from trainers.objectives.batch import ReferencedRanked
from trainers.objectives.rankings import outranks
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta


@objective(ReferencedRanked, source="Rafailov et al. 2023, arXiv:2305.18290, appendix A.3 (Plackett-Luce)", lr=1e-6)
def dpo_pl(
    lp: ReferencedRanked,
    *,
    beta: Beta = 0.1,
) -> Tensor:
    """DPO under the Plackett-Luce model: the whole ranking, each completion chosen before all that rank below it.

        u_k = beta (completion - ref_completion), k = 1 the best
        loss = -sum over k < K of (u_k - log sum over j >= k of exp(u_j))

    Shapes   fields of lp are (B, K), K the most completions that a prompt of the batch has; returns (B,), one loss per
             prompt, not reduced: prompts with more completions count more.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat.
    Params   beta: as for dpo, 0.1 to 0.5 is usual.
    Data     scores of several completions of a prompt, of which only the order counts; ref_completion_logps. Completions of
             one score do not compete with each other: each is chosen before those below both (the paper has no ties).
    Anchor   where policy equals reference, log K! for K different scores. Two completions give dpo. A constant added to
             every log-ratio of a prompt changes nothing.
    """
    u = beta * (lp.completion - lp.ref_completion)
    itself = torch.eye(u.shape[1], dtype=torch.bool, device=u.device)
    among = u[:, None, :].expand(-1, u.shape[1], -1).masked_fill(~(outranks(lp) | itself), -torch.inf)
    return (among.logsumexp(dim=2) - u).sum(dim=1)
