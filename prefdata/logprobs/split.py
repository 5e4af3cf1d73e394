"""Attention run by run through SDPA: no mask of row x row, no compiler. What a CPU uses, and any device can."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from prefdata.logprobs.layout import Run

if TYPE_CHECKING:
    from prefdata.logprobs.attention import TreePlan

# Attention weights that the soft-capped product, which SDPA lacks, makes at a time (16 MiB of float32).
_CHUNK_WEIGHTS = 2**22


def attend(
    tree: "TreePlan", query: Tensor, key: Tensor, value: Tensor, scaling: float | None, cap: float | None
) -> Tensor:
    """(1, heads, L, size) to (1, L, heads, size)."""
    return _attend(tree, tree.layout.runs, query, key, value, scaling, cap)


def attend_read(
    tree: "TreePlan", query: Tensor, key: Tensor, value: Tensor, scaling: float | None, cap: float | None
) -> Tensor:
    """The same, and 0 where a run has not come to a predictor yet."""
    return _attend(tree, tree.runs_read, query, key, value, scaling, cap)


def _attend(
    tree: "TreePlan",
    runs: Sequence[Run | None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    cap: float | None,
) -> Tensor:
    """`runs`: of each run of the layout the end that is computed."""
    # split once, not sliced per run: the gradient of a slice is a whole row of zeros around it
    layout = tree.layout
    lengths = [
        (run.own - (left.own if left else 0), left.own if left else 0)
        for run, left in zip(layout.runs, runs, strict=True)
    ]
    queries = torch.split(query, [length for both in lengths for length in both], dim=2)[1::2]
    keys, values = (torch.split(each, list(layout.nodes), dim=2) for each in (key, value))
    parts = []
    for run, own, (skipped, _) in zip(runs, queries, lengths, strict=True):
        if skipped:
            parts.append(query.new_zeros(1, skipped, query.shape[1], value.shape[3]))
        if run is None:
            continue
        seen, read = _along(keys, run), _along(values, run)
        if cap is not None:
            found = capped(own, seen, read, scaling=scaling, cap=cap, past=run.past)
        else:
            found = _product(own, seen, read, tree.mask(run), scaling, causal=run.past == 0)
        parts.append(found.transpose(1, 2))
    return torch.cat(parts, dim=1)


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


def capped(
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
