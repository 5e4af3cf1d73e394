"""Log-probs of many trees without gradients: sorted by length, packed to a token budget, in the order they came."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from prefdata.errors import UserError
from prefdata.logprobs import layout, shared
from prefdata.logprobs.batches import pack, run_halving
from prefdata.logprobs.route import forward
from prefdata.logprobs.trees import Tree
from prefdata.models import config_positions

# tokens of one batch: those of its row, or where nothing is shared those of its rows with their padding
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 8192

Logps = list[list[np.ndarray]]
Place = tuple[int, int]  # tree and branch, by number


def score(
    model: Any,
    trees: Sequence[Tree],
    *,
    batch_tokens: int | None = None,
    tell: Callable[[float], None] | None = None,
) -> Logps:
    """Per-token log-probs in nats, float32, one array per branch of each tree.

    Batches depend only on the trees given. `tell` is told after each what share of the branches is done. A log-prob that
    is not finite is returned as it is.
    """
    check(model, trees)
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    batch_tokens = batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
    found: dict[Place, np.ndarray] = {}
    branches = sum(len(tree.branches) for tree in trees)
    training = model.training
    model.eval()
    try:
        batches = list(_batches(model, trees, batch_tokens))
        for scored in run_halving(batches, lambda batch: _run(model, trees, batch)):
            found.update(scored)
            if tell is not None:
                tell(len(found) / branches)
    finally:
        model.train(training)
    return [[found[number, branch] for branch in range(len(tree.branches))] for number, tree in enumerate(trees)]


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


@torch.no_grad()
def _run(model: Any, trees: Sequence[Tree], batch: Sequence[Place]) -> list[tuple[Place, np.ndarray]]:
    """The batch's branches, those that stand together in one tree."""
    parts = [list(group) for _, group in groupby(batch, key=itemgetter(0))]
    taken = [
        Tree(trees[part[0][0]].trunk, [trees[number].branches[branch] for number, branch in part]) for part in parts
    ]
    scores = forward(model, taken)
    return [(place, logps.cpu().numpy()) for place, logps in zip(batch, scores.logps, strict=True)]
