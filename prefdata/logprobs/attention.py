"""Attention over a row of trees, registered with transformers under a name of ours.

Every run of the layout attends to its path and nothing else, and no mask of row x row ever exists. Without `tree=` the
function does what transformers' own SDPA does, masks included, so that a model set to it serves padded batches and
generation as before.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefdata.logprobs import flex, split, varlen
from prefdata.logprobs.layout import Layout, Run

NAME = "prefdata_tree"

# What other models hand to their attention and this one does not know.
_FOREIGN = ("s_aux", "position_bias")


# kernel -> attention of a row of trees: (plan, query, key, value, scaling, soft-cap) to (1, L, heads, size)
Kernel = Callable[["TreePlan", Tensor, Tensor, Tensor, float | None, float | None], Tensor]
KERNELS: dict[str, Kernel] = {"split": split.attend, "flex": flex.attend, "varlen": varlen.attend}


class TreePlan:
    """A layout as the layers need it; what a kernel needs beside it is made once for all of them.

    last: the number of the layer above which only predictors are read; None: read everywhere.
    """

    def __init__(self, layout: Layout, device: torch.device, kernel: str = "split", *, last: int | None = None) -> None:
        self.layout = layout
        self.kernel = kernel
        self.last = last
        self._device = device
        self._masks: dict[tuple[int, int], Tensor] = {}

    def mask(self, run: Run) -> Tensor | None:
        """(own, past + own) bool, true where a token of the run may look; None where causality or a single token says it."""
        if run.past == 0 or run.own == 1:
            return None
        shape = (run.own, run.past + run.own)
        if shape not in self._masks:
            self._masks[shape] = torch.ones(shape, dtype=torch.bool, device=self._device).tril(run.past)
        return self._masks[shape]

    @cached_property
    def predictors(self) -> Tensor:
        """(P,) places in the row."""
        return torch.as_tensor(self.layout.predictors, device=self._device)

    @cached_property
    def runs_read(self) -> list[Run | None]:
        """Of each run what is left of it from its first predictor on; None where it has none."""
        predictors = self.layout.predictors
        found: list[Run | None] = []
        for run in self.layout.runs:
            place = int(np.searchsorted(predictors, run.start))
            first = int(predictors[place]) if place < len(predictors) else run.end
            found.append(None if first >= run.end else replace(run, start=first, past=run.past + first - run.start))
        return found

    @cached_property
    def blocks(self) -> Any:
        """What FlexAttention computes and what it leaves out."""
        return flex.block_mask(self.layout, self._device)

    @cached_property
    def paths(self) -> varlen.Paths:
        """Where the keys of each run stand."""
        return varlen.paths(self.layout, self._device)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: TreePlan | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """(batch, heads, tokens, size) to (batch, tokens, heads, size). With `tree` the batch is its one row."""
    if tree is not None:
        _refuse_foreign(tree, dropout, other)
        if tree.last is not None and tree.last == getattr(module, "layer_idx", None) and tree.kernel == "split":
            return split.attend_read(tree, query, key, value, scaling, softcap), None
        return KERNELS[tree.kernel](tree, query, key, value, scaling, softcap), None
    if softcap is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **other
        )
    # no mask means what it means to SDPA: one query sees every key, and of several the first sees the first
    past = key.shape[2] - 1 if query.shape[2] == 1 else 0
    attended = split.capped(
        query, key, value, scaling=scaling, cap=softcap, past=past, mask=attention_mask, dropout=dropout
    )
    return attended.transpose(1, 2).contiguous(), None


def _refuse_foreign(tree: TreePlan, dropout: float, other: dict[str, Any]) -> None:
    """What `prefdata.logprobs.shared` keeps away from here; a layer that asks for it all the same must not be ignored."""
    window = other.get("sliding_window")
    asked = [name for name in _FOREIGN if other.get(name) is not None]
    asked += ["dropout"] if dropout else []
    asked += [f"a window of {window}"] if window is not None and window < tree.layout.depth else []
    asked += ["no causality"] if other.get("is_causal") is False else []
    if asked:
        raise RuntimeError(f"attention over a row of trees was asked for {', '.join(asked)}, which it cannot give")


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
