"""All scored completions of a prompt as a ranking: fields are (B, K), absent places marked by `present`."""

import torch
from torch import Tensor

from trainers.objectives.batch import Ranked


def outranks(lp: Ranked) -> Tensor:
    """(B, K, K) bool: [b, i, j] where completion i of prompt b has a higher score than completion j. Ties rank nothing."""
    there = lp.present[:, :, None] & lp.present[:, None, :]
    return there & (lp.score[:, :, None] > lp.score[:, None, :])


def best(lp: Ranked) -> Tensor:
    """(B, K): which completions have their prompt's highest score, as shares that add up to 1."""
    top = lp.score.masked_fill(~lp.present, -torch.inf).amax(dim=1, keepdim=True)
    highest = (lp.present & (lp.score == top)).to(lp.completion.dtype)
    return highest / highest.sum(dim=1, keepdim=True)
