"""How near the prompts of two groups of rows are, as weights of their contrasts."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nearness(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """(M, N) W_ij = exp(-D_ij / T) / sum over k of exp(-D_ik / T), with D_ij = 1 - cos(rows_i, columns_j).

    rows, columns: (M, size) and (N, size) embeddings of prompts, of any length above 0. Each row of W adds up to 1.
    """
    cosine = F.normalize(rows, dim=1) @ F.normalize(columns, dim=1).T
    return torch.softmax((cosine - 1) / temperature, dim=1)


def effective_number(weights: Tensor) -> Tensor:
    """(M,) how many columns a row of weights stands for: exp of its entropy, 1 to N."""
    entropy: Tensor = torch.special.entr(weights).sum(dim=1)
    return entropy.exp()
