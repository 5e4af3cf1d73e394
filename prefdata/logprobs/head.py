"""The language-model head on the positions that are read, chunk by chunk in both directions.

No tensor of all scored tokens x vocabulary exists at any time, neither of logits nor of their gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Logits that exist at a time, as float32 (64 MiB); their gradient takes as much again.
_CHUNK_LOGITS = 2**24


def target_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: Tensor,
    targets: Tensor,
    *,
    cap: float | None = None,
    extras: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probs of targets (S,) where target i is predicted from hidden[read[i]]; `read` ascends.

    hidden (P, size), weight (vocabulary, size). `cap`: the model's final soft-cap. `extras` adds what `Scores` calls
    entropies and hits. Matrix products run in the precision of autocast or else of `hidden`, all else in float32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    step = max(1, _CHUNK_LOGITS // len(weight))
    found: tuple[Tensor, Tensor | None, Tensor | None] = _Head.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, _Reads(read, targets, len(hidden), step), cap, dtype, extras
    )
    return found


class _Reads:
    """Which targets are read from which rows, cut into chunks of `step` rows."""

    def __init__(self, read: Tensor, targets: Tensor, rows: int, step: int) -> None:
        self.read = read
        self.targets = targets
        starts = range(0, rows, step)
        edges = torch.searchsorted(read, torch.tensor([*starts, rows], device=read.device)).tolist()
        self.chunks = [
            (slice(start, min(start + step, rows)), slice(*edges[i : i + 2])) for i, start in enumerate(starts)
        ]

    def places(self, rows: slice, items: slice) -> tuple[Tensor, Tensor]:
        """Row within the chunk and column of each of its targets."""
        return self.read[items] - rows.start, self.targets[items]


class _Head(torch.autograd.Function):
    """Forward keeps the log of each row's normaliser; backward makes the logits again, but for the last chunk's."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reads: _Reads,
        cap: float | None,
        dtype: torch.dtype,
        extras: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        norms = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logps = torch.empty_like(reads.targets, dtype=torch.float32)
        entropies, hits = (torch.empty_like(logps), torch.empty_like(logps)) if extras else (None, None)
        head, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
        for rows, items in reads.chunks:
            logits = _logits(hidden[rows].to(dtype), head, shift, cap)
            norms[rows] = logits.logsumexp(1)
            row, target = reads.places(rows, items)
            logps[items] = logits[row, target] - norms[rows][row]
            if entropies is not None and hits is not None:
                entropies[items] = _entropies(logits, norms[rows])[row]
                hits[items] = (logits.argmax(1)[row] == target).float()
        ctx.save_for_backward(hidden, weight, bias, norms, logits)
        ctx.reads, ctx.cap, ctx.dtype = reads, cap, dtype
        ctx.mark_non_differentiable(*(extra for extra in (entropies, hits) if extra is not None))
        return logps, entropies, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, norms, last = ctx.saved_tensors
        reads, cap, dtype = ctx.reads, ctx.cap, ctx.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # sums over chunks are kept in float32: they would lose what is small in bfloat16
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        for rows, items in reads.chunks:
            inputs = hidden[rows].to(dtype)
            logits = last if rows == reads.chunks[-1][0] else _logits(inputs, head, shift, cap)
            row, target = reads.places(rows, items)
            slope = _slope(logits, norms[rows], row, target, grad[items], cap).to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (slope @ head).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, slope.t(), inputs)
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=torch.float32)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 4,
        )


def _logits(inputs: Tensor, head: Tensor, shift: Tensor | None, cap: float | None) -> Tensor:
    logits = linear(inputs, head, shift).float()
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _slope(logits: Tensor, norms: Tensor, row: Tensor, target: Tensor, grad: Tensor, cap: float | None) -> Tensor:
    """Gradient of the chunk's logits: d logp[target] / d logit[v] = [v = target] - softmax[v]."""
    total = torch.zeros_like(norms).index_add_(0, row, grad)
    slope = (logits - norms[:, None]).exp_().mul_(-total[:, None])
    slope.index_put_((row, target), grad, accumulate=True)
    if cap is not None:  # d cap tanh(x / cap) / dx = 1 - tanh^2
        slope -= slope * (logits / cap).square_()
    return slope


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _entropies(logits: Tensor, norms: Tensor) -> Tensor:
    # entr(p) = -p log p, and 0 where p is 0
    entropies: Tensor = torch.special.entr((logits - norms[:, None]).exp_()).sum(1)
    return entropies
