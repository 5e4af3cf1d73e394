"""Attention over a row of trees, registered with transformers under a name of ours.

Every run of the layout attends to its path and nothing else: the first of a tree is plainly causal and needs no mask, a
later one takes a mask of (own, past + own), and no mask of row x row ever exists. Without `tree=` the function does what
transformers' own SDPA does, masks included, so that a model set to it serves padded batches and generation as before.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefdata.logprobs.layout import Layout, Run

NAME = "prefdata_tree"

# Attention weights that the soft-capped product, which SDPA lacks, makes at a time (16 MiB of float32).
_CHUNK_WEIGHTS = 2**22
# What other models hand to their attention and this one does not know.
_FOREIGN = ("s_aux", "position_bias")


class TreePlan:
    """A layout as the layers need it; its masks are made once for all of them."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
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
        runs = _runs(tree, query, key, value, scaling, softcap)
        return torch.cat([part.transpose(1, 2) for part in runs], dim=1), None
    if softcap is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **other
        )
    # no mask means what it means to SDPA: one query sees every key, and of several the first sees the first
    past = key.shape[2] - 1 if query.shape[2] == 1 else 0
    attended = _capped(query, key, value, scaling=scaling, cap=softcap, past=past, mask=attention_mask, dropout=dropout)
    return attended.transpose(1, 2).contiguous(), None


def _runs(
    tree: TreePlan, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, cap: float | None
) -> Iterator[Tensor]:
    # split once, not sliced per run: the gradient of a slice is a whole row of zeros around it
    layout = tree.layout
    queries = torch.split(query, [run.own for run in layout.runs], dim=2)
    keys, values = (torch.split(each, list(layout.nodes), dim=2) for each in (key, value))
    for run, own in zip(layout.runs, queries, strict=True):
        seen, read = _along(keys, run), _along(values, run)
        if cap is not None:
            yield _capped(own, seen, read, scaling=scaling, cap=cap, past=run.past)
        else:
            yield _product(own, seen, read, tree.mask(run), scaling, causal=run.past == 0)


def _along(nodes: tuple[Tensor, ...], run: Run) -> Tensor:
    return nodes[run.nodes[0]] if len(run.nodes) == 1 else torch.cat([nodes[node] for node in run.nodes], dim=2)


def _product(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, causal: bool
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1 and (mask is None or query.device.type == "cpu")
    if groups > 1 and not grouped:  # on CUDA a mask and grouped heads together leave only the slowest kernel
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal and query.shape[2] > 1, scale=scaling, enable_gqa=grouped
    )


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    cap: float,
    past: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(cap tanh(q k / cap)) v, some queries at a time; each sees `past` keys more than queries up to itself.

    A `mask` (batch, 1, queries, keys), bool, stands in for that rule.
    """
    batch, heads, tokens, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    step = max(1, _CHUNK_WEIGHTS // (batch * heads * key.shape[2]))
    parts = []
    for start in range(0, tokens, step):
        own = query[:, :, start : start + step]
        count = own.shape[2]
        width = past + start + count if mask is None else key.shape[2]  # what lies behind the last query is not read
        if mask is None:
            seen = torch.ones(count, width, dtype=torch.bool, device=query.device).tril(past + start)
        else:
            seen = mask[:, :, None, start : start + step]
        # heads that share keys stand below one another, so that no key is copied
        grouped = own.reshape(batch, key.shape[1], -1, size) @ key[:, :, :width].transpose(2, 3)
        scores = (grouped * (scaling / cap)).tanh() * cap
        scores = scores.view(batch, key.shape[1], -1, count, width)
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout)
        parts.append((weights.flatten(2, 3) @ value[:, :, :width]).reshape(batch, heads, count, -1))
    return torch.cat(parts, dim=2)


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
