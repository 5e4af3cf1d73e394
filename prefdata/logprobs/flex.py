"""Attention over a row of trees through FlexAttention: one compiled kernel for the whole row, for GPUs.

A token at place q sees the one at place k if k <= q < ends[k] (see `Layout.ends`). Which blocks of the row x row square
hold any such pair follows from the block's own numbers, so no mask of that size is made on the way.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from prefdata.logprobs.layout import Layout

if TYPE_CHECKING:
    from prefdata.logprobs.attention import TreePlan

BLOCK = 128


def attend(
    tree: "TreePlan", query: Tensor, key: Tensor, value: Tensor, scaling: float | None, cap: float | None
) -> Tensor:
    """(1, heads, L, size) to (1, L, heads, size)."""
    attended: Tensor = _compiled(query.device.type)(
        query,
        key,
        value,
        score_mod=None if cap is None else _capped(cap),
        block_mask=tree.blocks,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2)


def _capped(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def block_mask(layout: Layout, device: torch.device) -> BlockMask:
    """Which blocks of BLOCK x BLOCK are computed, which of them without asking for each pair."""
    length = len(layout.tokens)
    ends = torch.as_tensor(layout.ends, dtype=torch.int32, device=device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    full, partial = blocks(layout)
    return BlockMask.from_kv_blocks(
        *_listed(partial, device),
        *_listed(full, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def blocks(layout: Layout) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(blocks, blocks) bool, queries x keys: blocks in which every pair sees, and those in which some do."""
    length, ends = len(layout.tokens), layout.ends
    starts = np.arange(0, length, BLOCK)
    least, most = np.minimum.reduceat(ends, starts), np.maximum.reduceat(ends, starts)
    query, key = starts[:, None], starts[None, :]
    whole = starts + BLOCK <= length  # what hangs over the row's end is never whole
    full = (key + BLOCK <= query) & (query + BLOCK <= least[None, :]) & whole[:, None] & whole[None, :]
    some = (key < query) & (query < most[None, :]) | (key == query)
    return full, some & ~full


def _listed(chosen: np.ndarray[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """(1, 1, blocks) how many, and (1, 1, blocks, blocks) which, those that are chosen first."""
    order = np.argsort(~chosen, axis=1, kind="stable")
    counts = chosen.sum(axis=1)
    return tuple(  # type: ignore[return-value]
        torch.as_tensor(each[None, None], dtype=torch.int32, device=device) for each in (counts, order)
    )


@cache
def _compiled(device: str) -> Any:
    """FlexAttention is only worth it compiled; on a CPU, where it is for tests, its plain form gives the same."""
    return torch.compile(flex_attention) if device == "cuda" else flex_attention
