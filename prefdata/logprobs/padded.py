"""The plain forward: every branch is a row of its own behind a copy of its trunk, padded on the right.

It assumes nothing about a model beyond causal attention, so it is what other forwards are measured against.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefdata.logprobs.trees import Scores, Tree, nothing
from prefdata.logprobs.wrappers import arguments

# Log-softmax runs in float32 over this many logits at a time (256 MiB).
_CHUNK_LOGITS = 2**26


@dataclass(frozen=True)
class _Rows:
    """Trees as one padded batch. Scored token i is `target[i]`, predicted at row `row[i]`, position `position[i]`."""

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    position: Tensor
    target: Tensor
    branch_lengths: list[int]


def forward(model: Any, trees: Sequence[Tree], *, extras: bool = False, collisions: bool = False) -> Scores:
    """Scores every branch of every tree in one call of the model; `extras` adds entropies, hits and levels, `collisions` those."""
    if not trees:
        return nothing(extras=extras, collisions=collisions)
    rows = _rows(trees, next(model.parameters()).device)
    kept, column = torch.unique(rows.position, return_inverse=True)
    logits = _logits(model, rows, kept)
    index = rows.row * logits.shape[1] + column
    logits = logits.flatten(0, 1)
    flat = {"logps": _TargetLogps.apply(logits, index, rows.target)}  # type: ignore[no-untyped-call]
    if extras:
        flat["entropies"], flat["hits"], flat["levels"] = _extras(logits.detach(), index, rows.target)
    if collisions:
        flat["collisions"] = _collisions(logits.detach(), index)
    return Scores(**{name: torch.split(values, rows.branch_lengths) for name, values in flat.items()})


def _rows(trees: Sequence[Tree], device: torch.device) -> _Rows:
    paths = [(tree.trunk, branch) for tree in trees for branch in tree.branches]
    width = max(len(trunk) + len(branch) for trunk, branch in paths)
    input_ids = np.zeros((len(paths), width), np.int64)
    attention_mask = np.zeros((len(paths), width), np.int64)
    scored = np.zeros((len(paths), width), bool)
    for i, (trunk, branch) in enumerate(paths):
        start, end = len(trunk), len(trunk) + len(branch)
        input_ids[i, :start], input_ids[i, start:end] = trunk, branch
        attention_mask[i, :end] = 1
        scored[i, start:end] = True
    row, column = scored.nonzero()

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return _Rows(
        input_ids=tensor(input_ids),
        attention_mask=tensor(attention_mask),
        row=tensor(row),
        position=tensor(column - 1),  # a token is predicted one position before it
        target=tensor(input_ids[row, column]),
        branch_lengths=[len(branch) for _, branch in paths],
    )


def _logits(model: Any, rows: _Rows, kept: Tensor) -> Tensor:
    """Logits (rows, kept positions, vocabulary); the head skips all other positions if the model lets it."""
    accepted = arguments(model)
    optional: dict[str, Any] = {}
    if "position_ids" in accepted:
        width = rows.input_ids.shape[1]
        optional["position_ids"] = torch.arange(width, device=kept.device).expand_as(rows.input_ids)
    if "logits_to_keep" in accepted:
        optional["logits_to_keep"] = kept
    output = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **optional)
    logits: Tensor = output.logits
    return logits if "logits_to_keep" in accepted else logits[:, kept]


class _TargetLogps(torch.autograd.Function):
    """log_softmax(logits[index])[target] in float32, chunk by chunk in both directions.

    `index` names each row of logits at most once. No float32 copy of all logits is ever made.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, target: Tensor) -> Tensor:
        logps, norms = torch.empty_like(index, dtype=torch.float32), torch.empty_like(index, dtype=torch.float32)
        for part in _chunks(index, logits.shape[1]):
            chunk = logits[index[part]].float()
            norms[part] = chunk.logsumexp(1)
            logps[part] = chunk.gather(1, target[part, None]).squeeze(1) - norms[part]
        ctx.save_for_backward(logits, index, target, norms)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, index, target, norms = ctx.saved_tensors
        grad_logits = torch.zeros_like(logits)
        for part in _chunks(index, logits.shape[1]):
            # d logp[target] / d logit[v] = [v = target] - softmax[v]
            chunk = logits[index[part]].float().sub_(norms[part, None]).exp_().mul_(-grad[part, None])
            chunk.scatter_add_(1, target[part, None], grad[part, None])
            grad_logits[index[part]] = chunk.to(logits.dtype)
        return grad_logits, None, None


@torch.no_grad()
def _extras(logits: Tensor, index: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    entropies, hits, levels = (torch.empty_like(index, dtype=torch.float32) for _ in range(3))
    for part in _chunks(index, logits.shape[1]):
        chunk = logits[index[part]].float()
        levels[part] = chunk.mean(1)
        logps = chunk.log_softmax(1)
        # entr(p) = -p log p, and 0 where p is 0
        entropies[part] = torch.special.entr(logps.exp()).sum(1)
        hits[part] = (logps.argmax(1) == target[part]).float()
    return entropies, hits, levels


@torch.no_grad()
def _collisions(logits: Tensor, index: Tensor) -> Tensor:
    found = torch.empty_like(index, dtype=torch.float32)
    for part in _chunks(index, logits.shape[1]):
        found[part] = logits[index[part]].float().softmax(1).square().sum(1).log()
    return found


def _chunks(index: Tensor, vocabulary: int) -> list[slice]:
    size = max(1, _CHUNK_LOGITS // vocabulary)
    return [slice(start, start + size) for start in range(0, len(index), size)]
