"""Attention over a row of trees through a flash kernel for sequences of many lengths, for GPUs in half precision.

Each run is a sequence of its own: its queries are its own tokens, its keys those of its whole path, gathered behind one
another. The kernel's causality is aligned at the end, as a run is at the end of its path.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prefdata.logprobs.layout import Layout

if TYPE_CHECKING:
    from prefdata.logprobs.attention import TreePlan


@dataclass(frozen=True)
class Paths:
    """Where each run's queries and keys stand, for N runs whose paths hold K tokens together."""

    keys: Tensor  # (K,) places in the row, run by run
    query_ends: Tensor  # (N + 1,) int32, where the queries of each run begin and end in the row
    key_ends: Tensor  # (N + 1,) int32, where its keys begin and end in `keys`
    longest_query: int
    longest_key: int


def paths(layout: Layout, device: torch.device) -> Paths:
    """Those of a layout."""
    bounds = np.cumsum([0, *layout.nodes])
    keys = [np.arange(bounds[node], bounds[node + 1]) for run in layout.runs for node in run.nodes]
    own, whole = [run.own for run in layout.runs], [run.past + run.own for run in layout.runs]
    return Paths(
        keys=torch.as_tensor(np.concatenate(keys), device=device),
        query_ends=torch.as_tensor(np.cumsum([0, *own]), dtype=torch.int32, device=device),
        key_ends=torch.as_tensor(np.cumsum([0, *whole]), dtype=torch.int32, device=device),
        longest_query=max(own),
        longest_key=max(whole),
    )


def attend(
    tree: "TreePlan", query: Tensor, key: Tensor, value: Tensor, scaling: float | None, cap: float | None
) -> Tensor:
    """(1, heads, L, size) to (1, L, heads, size). ValueError for what the kernel does not have."""
    from torch.nn.attention.varlen import varlen_attn

    if cap is not None:
        raise ValueError("the flash kernel has no soft-cap")
    own = tree.paths
    queries, keys, values = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))
    attended = varlen_attn(
        queries.contiguous(),
        keys.index_select(0, own.keys),
        values.index_select(0, own.keys),
        own.query_ends,
        own.key_ends,
        own.longest_query,
        own.longest_key,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)
