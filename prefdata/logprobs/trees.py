"""What a forward takes and gives: token trees in, scores of their branches out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Tokens = Sequence[int] | np.ndarray[Any, np.dtype[Any]]  # ids, one-dimensional


@dataclass(frozen=True, eq=False)
class Tree:
    """Each token once: a trunk (prompt ids) and the branches that continue it (completion ids).

    Every branch token is predicted from the trunk and the branch before it. A trunk of no tokens predicts nothing,
    and a branch of no tokens has nothing to score, so both are refused.
    """

    trunk: Tokens
    branches: Sequence[Tokens]

    def __post_init__(self) -> None:
        if len(self.trunk) == 0:
            raise ValueError("a tree's trunk is empty: nothing predicts the first token of its branches")
        if len(self.branches) == 0:
            raise ValueError("a tree has no branch to score")
        if any(len(branch) == 0 for branch in self.branches):
            raise ValueError("a tree's branch is empty: it has no token to score")

    @property
    def depth(self) -> int:
        """Tokens on the longest path from the first trunk token to a branch's last."""
        return len(self.trunk) + max(len(branch) for branch in self.branches)


@dataclass(frozen=True)
class Scores:
    """What a model makes of the branches of some trees: one 1-D float32 tensor per branch, tree by tree.

    logps      nats, log-prob of every branch token; differentiable
    entropies  nats, entropy of the distribution each token was predicted from; detached; None unless asked for
    hits       1.0 where the token is the most likely one, else 0.0; detached; None unless asked for
    collisions nats, log of sum over the vocabulary of p^2: how probable it is that two tokens drawn from that distribution
               are the same, 0 where one is certain; detached; None unless asked for
    levels     mean over the vocabulary of the logits each token was predicted from; detached; None unless asked for
    """

    logps: tuple[Tensor, ...]
    entropies: tuple[Tensor, ...] | None = None
    hits: tuple[Tensor, ...] | None = None
    collisions: tuple[Tensor, ...] | None = None
    levels: tuple[Tensor, ...] | None = None


def nothing(*, extras: bool, collisions: bool) -> Scores:
    """The scores of no tree."""
    extra: tuple[Tensor, ...] | None = () if extras else None
    return Scores((), extra, extra, () if collisions else None, extra)
