"""How many operations a forward needs, by hand: of the trunk's matrices, of attention, of the head.

One product of a number with a weight and its sum are two operations. Backward needs twice as many as forward. What a
kernel computes in vain (masked pairs) or again (chunks of the head) is not counted: this is what cannot be left out.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from prefdata.logprobs import Tree
from prefdata.logprobs.layout import lay_out
from prefdata.logprobs.wrappers import unwrapped

TRAINING = 3  # forward and backward, in forwards
SQUARE = 2048  # the product that the machine's rate is measured with


@dataclass(frozen=True)
class Operations:
    """Of one forward."""

    trunk: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """Of all three."""
        return self.trunk + self.attention + self.head

    def text(self) -> str:
        """In words, 10^9 operations."""
        parts = {"trunk": self.trunk, "attention": self.attention, "head": self.head}
        return ", ".join(f"{name} {count / 1e9:,.1f}" for name, count in parts.items())


def shared(model: Any, trees: Sequence[Tree]) -> Operations:
    """Every token of a tree once, the head at places that predict a scored token.

    What the last layer leaves out where nothing is read is counted all the same, as it is of padded forwards: a ceiling is of
    the shared prompt alone.
    """
    row = lay_out(trees)
    seen = sum(run.own * run.past + run.own * (run.own + 1) / 2 for run in row.runs)
    return _operations(model, tokens=len(row.tokens), seen=seen, predictors=len(row.predictors))


def padded(model: Any, trees: Sequence[Tree], *, every: bool = False) -> Operations:
    """Every branch behind a prompt of its own, the head at its completion. `every`: the head at every place."""
    widths = [len(tree.trunk) + len(branch) for tree in trees for branch in tree.branches]
    scored = [len(branch) for tree in trees for branch in tree.branches]
    return _operations(
        model,
        tokens=sum(widths),
        seen=sum(width * (width + 1) / 2 for width in widths),
        predictors=sum(widths if every else scored),
    )


def _operations(model: Any, *, tokens: int, seen: float, predictors: int) -> Operations:
    """`seen`: pairs of a token and one that it attends to."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    linear = [module for module in inner.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    config = inner.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # each pair: query by key, and weight by value
    per_pair = 2 * 2 * config.num_hidden_layers * config.num_attention_heads * size
    return Operations(
        trunk=2.0 * tokens * sum(module.weight.numel() for module in linear),
        attention=float(seen * per_pair),
        head=2.0 * predictors * head.weight.numel(),
    )


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 5) -> float:
    """Operations per second of the product of two square matrices: the machine's measured matrix rate."""
    square = SQUARE if device == "cpu" else 4 * SQUARE
    left, right = (torch.randn(square, square, device=device, dtype=dtype) for _ in range(2))
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    rate: float = 2 * square**3 / median(taken[1:])
    return rate
