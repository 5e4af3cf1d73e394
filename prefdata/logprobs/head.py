"""The language-model head on the positions that are read, chunk by chunk in both directions.

No tensor of all scored tokens x vocabulary exists at any time, neither of logits nor of their gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Rows of logits that are made at a time, enough for a matrix product to be worth reading the whole head.
_CHUNK_ROWS = 256
_CHUNK_ROWS_GPU = 512
# Rows that a CPU goes through at a time where it works element by element: what it wrote is then still in a cache.
_BLOCK_ROWS = 32
# Logits that forward leaves for backward, as float32 (128 MiB); the others are made again.
_KEPT_LOGITS = 2**25

# log-probs, entropies, hits, collisions, levels
Found = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def target_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: Tensor,
    targets: Tensor,
    *,
    cap: float | None = None,
    extras: bool = False,
    collisions: bool = False,
) -> Found:
    """Log-probs of targets (S,) where target i is predicted from hidden[read[i]]; `read` ascends.

    hidden (P, size), weight (vocabulary, size). `cap`: the model's final soft-cap. `extras` adds what `Scores` calls
    entropies, hits and levels, `collisions` what it calls so. Matrix products run in the precision of autocast or else of `hidden`,
    all else in float32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    step = _CHUNK_ROWS if device == "cpu" else _CHUNK_ROWS_GPU
    reads = _Reads(read, targets, len(hidden), step)
    kept = _KEPT_LOGITS // (reads.step * len(weight)) if torch.is_grad_enabled() else 0
    found: Found = _Head.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, reads, cap, dtype, extras, collisions, kept
    )
    return found


class _Reads:
    """Which targets are read from which rows, cut into chunks of `step` rows."""

    def __init__(self, read: Tensor, targets: Tensor, rows: int, step: int) -> None:
        self.read, self.step = read, min(step, rows)
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
    """Forward keeps the log of each row's normaliser and the first chunks' logits; backward makes the others again."""

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
        collisions: bool,
        kept_chunks: int,
    ) -> Found:
        norms = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logps = torch.empty_like(reads.targets, dtype=torch.float32)
        entropies, hits, levels = (torch.empty_like(logps) if extras else None for _ in range(3))
        agreed = torch.empty_like(logps) if collisions else None
        head, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
        kept: list[Tensor] = []
        room = _Room(reads.step, weight)
        for rows, items in reads.chunks:
            again = len(kept) == kept_chunks
            logits = _logits(hidden[rows].to(dtype), head, shift, cap, room if again else None)
            if not again:
                kept.append(logits)
            torch.cat([block.logsumexp(1) for block in _blocks(logits)], out=norms[rows])
            row, target = reads.places(rows, items)
            logps[items] = logits[row, target] - norms[rows][row]
            if entropies is not None and hits is not None and levels is not None:
                entropies[items] = _entropies(logits, norms[rows])[row]
                hits[items] = (logits.argmax(1)[row] == target).float()
                levels[items] = logits.mean(1)[row]
            if agreed is not None:
                agreed[items] = _collisions(logits, norms[rows])[row]
        ctx.save_for_backward(hidden, weight, bias, norms, *kept)
        ctx.reads, ctx.cap, ctx.dtype = reads, cap, dtype
        ctx.mark_non_differentiable(*(extra for extra in (entropies, hits, agreed, levels) if extra is not None))
        return logps, entropies, hits, agreed, levels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, norms, *kept = ctx.saved_tensors
        reads, cap, dtype = ctx.reads, ctx.cap, ctx.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # sums over chunks are kept in float32: they would lose what is small in bfloat16
        grad_weight = torch.empty_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        room, slopes = _Room(reads.step, weight), _Room(reads.step, weight)
        for number, (rows, items) in enumerate(reads.chunks):
            inputs = hidden[rows].to(dtype)
            logits = kept[number] if number < len(kept) else _logits(inputs, head, shift, cap, room)
            row, target = reads.places(rows, items)
            slope = _slope(logits, norms[rows], row, target, grad[items], cap, out=slopes.rows(len(logits))).to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (slope @ head).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, slope.t(), inputs, first=number == 0)
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=torch.float32)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 6,
        )


class _Room:
    """Memory for the numbers of one chunk after the other: new memory costs a CPU about as much as what is done with it."""

    def __init__(self, step: int, weight: Tensor) -> None:
        self._shape, self._device = (step, len(weight)), weight.device
        self._held: Tensor | None = None

    def rows(self, count: int) -> Tensor:
        """(count, vocabulary) float32, holding what was there before."""
        if self._held is None:
            self._held = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        return self._held[:count]


def _logits(inputs: Tensor, head: Tensor, shift: Tensor | None, cap: float | None, room: _Room | None) -> Tensor:
    """In `room` if one is given and the product comes in float32, else in memory of their own."""
    if room is None or inputs.dtype != torch.float32:
        logits = linear(inputs, head, shift).float()
    else:
        logits = torch.mm(inputs, head.t(), out=room.rows(len(inputs)))
        if shift is not None:
            logits += shift
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _slope(
    logits: Tensor, norms: Tensor, row: Tensor, target: Tensor, grad: Tensor, cap: float | None, *, out: Tensor
) -> Tensor:
    """Gradient of the chunk's logits: d logp[target] / d logit[v] = [v = target] - softmax[v]."""
    total = torch.zeros_like(norms).index_add_(0, row, grad)
    for block, norm, weight, slope in zip(*map(_blocks, (logits, norms, total, out)), strict=True):
        torch.sub(block, norm[:, None], out=slope).exp_().mul_(-weight[:, None])
    out.index_put_((row, target), grad, accumulate=True)
    if cap is not None:  # d cap tanh(x / cap) / dx = 1 - tanh^2
        out -= out * (logits / cap).square_()
    return out


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, _BLOCK_ROWS) if rows.device.type == "cpu" else (rows,)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """`first`: nothing stands in the total yet."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right


def _entropies(logits: Tensor, norms: Tensor) -> Tensor:
    # entr(p) = -p log p, and 0 where p is 0
    entropies: Tensor = torch.special.entr((logits - norms[:, None]).exp_()).sum(1)
    return entropies


def _collisions(logits: Tensor, norms: Tensor) -> Tensor:
    # log sum p^2 = logsumexp(2 log p)
    parts = zip(_blocks(logits), _blocks(norms), strict=True)
    return torch.cat([torch.sub(block, norm[:, None]).mul_(2).logsumexp(1) for block, norm in parts])
