"""Log-probs of many trees without gradients: sorted by length, packed to a token budget, in the order they came."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefdata.errors import UserError
from prefdata.logprobs import layout, shared
from prefdata.logprobs.batches import pack, run_halving
from prefdata.logprobs.layout import Layout
from prefdata.logprobs.route import forward
from prefdata.logprobs.trees import Tree
from prefdata.models import config_positions

# tokens of one batch: those of its row, or where nothing is shared those of its rows with their padding
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 8192

Logps = list[list[np.ndarray]]
Place = tuple[int, int]  # tree and branch, by number
Scored = list[tuple[Place, np.ndarray]]


def score(
    model: Any,
    trees: Sequence[Tree],
    *,
    batch_tokens: int | None = None,
    tell: Callable[[float], None] | None = None,
) -> Logps:
    """Per-token log-probs in nats, float32, one array per branch of each tree.

    Batches depend only on the trees given, and on the memory there is. `tell` is told after each what share of the
    branches is done. A log-prob that is not finite is returned as it is.
    """
    return gathered(stream(model, trees, batch_tokens=batch_tokens), trees, tell)


def gathered(scored: Iterator[Scored], trees: Sequence[Tree], tell: Callable[[float], None] | None) -> Logps:
    """What a stream gives, tree by tree."""
    found: dict[Place, np.ndarray] = {}
    branches = sum(len(tree.branches) for tree in trees)
    for batch in scored:
        found.update(batch)
        if tell is not None:
            tell(len(found) / branches)
    return [[found[number, branch] for branch in range(len(tree.branches))] for number, tree in enumerate(trees)]


def logps(model: Any, trees: Sequence[Tree], row: Layout) -> Sequence[Tensor]:
    """Log-probs of every branch's tokens."""
    return forward(model, trees, layout=row).logps


def stream(
    model: Any,
    trees: Sequence[Tree],
    *,
    batch_tokens: int | None = None,
    run: Callable[[Any, Sequence[Tree], Layout], Sequence[Tensor]] = logps,
    whole: bool = False,
) -> Iterator[Scored]:
    """Batch by batch, as they are done: the places of branches and what `run` gives for each, a 1-D tensor.

    While the device computes a batch, the next is laid out and the one before is fetched from it. `whole`: `run` reads
    layouts in which the last tokens of branches stand too.
    """
    check(model, trees)
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    batch_tokens = batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
    training = model.training
    model.eval()
    try:
        batches = list(_batches(model, trees, batch_tokens))
        with _Ahead(trees, batches, whole=whole) as taken:
            yield from _fetched(run_halving(batches, lambda batch: _run(model, batch, *taken(batch), run)))
    finally:
        model.train(training)


def check(model: Any, trees: Sequence[Tree]) -> None:
    """Stops before the run if a tree is longer than the model or holds ids that it does not know."""
    if not trees:
        return
    longest, limit = max(tree.depth for tree in trees), config_positions(model.config)
    if limit is not None and longest > limit:
        raise UserError(
            f"the longest row has {longest} tokens and the model takes {limit}: "
            f"build the version with a maximum length of at most {limit}, or take another model."
        )
    known = model.get_input_embeddings().weight.shape[0]
    parts = [ids for tree in trees for ids in (tree.trunk, *tree.branches)]
    lowest, highest = min(int(np.min(ids)) for ids in parts), max(int(np.max(ids)) for ids in parts)
    if lowest < 0 or highest >= known:
        raise UserError(
            f"the rows hold token ids from {lowest} to {highest} and the model knows 0 to {known - 1}: "
            "they were tokenised for another model."
        )


def _batches(model: Any, trees: Sequence[Tree], batch_tokens: int) -> Iterator[list[Place]]:
    """Trees that can be shared, packed as rows, and the branches of the others, packed as padded rows."""
    # long first: if memory runs out, it does so at the start
    order = sorted(range(len(trees)), key=lambda number: (-trees[number].depth, number))
    sharing = shared.prepare(model)
    together: list[int] = []
    apart: list[int] = []
    for number in order:
        (apart if sharing.obstacle(model, [trees[number]]) else together).append(number)
    for batch in layout.pack([trees[number] for number in together], batch_tokens):
        yield [(together[place], branch) for place, branch in batch]
    rows = [(number, branch) for number in apart for branch in range(len(trees[number].branches))]
    widths = [len(trees[number].trunk) + len(trees[number].branches[branch]) for number, branch in rows]
    by_width = sorted(range(len(rows)), key=lambda row: (-widths[row], rows[row]))
    for packed in pack([widths[row] for row in by_width], batch_tokens):
        yield [rows[by_width[place]] for place in packed]


Taken = tuple[list[Tree], Layout]
Computed = tuple[Sequence[Place], Tensor, list[int]]


class _Ahead:
    """Lays out the batch after the one that is asked for, in a thread."""

    def __init__(self, trees: Sequence[Tree], batches: Sequence[Sequence[Place]], *, whole: bool) -> None:
        self._trees, self._whole = trees, whole
        self._waiting = iter(batches)
        self._made: dict[int, Future[Taken]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="layout")
        self._advance()

    def __enter__(self) -> Callable[[Sequence[Place]], Taken]:
        return self._take

    def __exit__(self, *problem: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _take(self, batch: Sequence[Place]) -> Taken:
        made = self._made.pop(id(batch), None)
        if made is None:  # a part of one that did not fit
            return _taken(self._trees, batch, self._whole)
        self._advance()
        return made.result()

    def _advance(self) -> None:
        following = next(self._waiting, None)
        if following is not None:
            self._made[id(following)] = self._pool.submit(_taken, self._trees, following, self._whole)


def _taken(trees: Sequence[Tree], batch: Sequence[Place], whole: bool) -> Taken:
    """The batch's branches, those that stand together in one tree, and their layout."""
    parts = [list(group) for _, group in groupby(batch, key=itemgetter(0))]
    taken = [
        Tree(trees[part[0][0]].trunk, [trees[number].branches[branch] for number, branch in part]) for part in parts
    ]
    return taken, layout.lay_out(taken, whole=whole)


@torch.no_grad()
def _run(model: Any, batch: Sequence[Place], trees: Sequence[Tree], row: Layout, run: Any) -> Computed:
    """What the branches get, one after the other, and how many numbers each."""
    found = run(model, trees, row)
    return batch, torch.cat(tuple(found)), [len(each) for each in found]


def _fetched(computed: Iterator[Computed]) -> Iterator[Scored]:
    """Each batch's numbers on the host; those of a GPU once its next batch is under way."""
    before: _Copy | None = None
    for places, numbers, lengths in computed:
        copy = _Copy(places, numbers, lengths)
        if not numbers.is_cuda:
            yield copy.result()
            continue
        if before is not None:
            yield before.result()
        before = copy
    if before is not None:
        yield before.result()


class _Copy:
    """A batch's numbers on their way to the host."""

    def __init__(self, places: Sequence[Place], numbers: Tensor, lengths: Sequence[int]) -> None:
        self._places, self._host, self._ends = places, numbers, np.cumsum(lengths)[:-1]
        self._done: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def result(self) -> Scored:
        """The places and their numbers."""
        if self._done is not None:
            self._done.synchronize()
        return list(zip(self._places, np.split(self._host.numpy(), self._ends), strict=True))
