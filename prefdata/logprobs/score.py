"""Log-probs of many trees without gradients: sorted by length, packed to a token budget, in the order they came."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prefdata.errors import UserError
from prefdata.logprobs.batches import pack, run_halving
from prefdata.logprobs.padded import forward
from prefdata.logprobs.trees import Tree
from prefdata.models import config_positions

# tokens of one batch, padding included; on a CPU what is in the caches counts, and small batches pad less
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 8192

Logps = list[list[np.ndarray]]


def score(model: Any, trees: Sequence[Tree], *, batch_tokens: int | None = None) -> Logps:
    """Per-token log-probs in nats, float32, one array per branch of each tree.

    Batches depend only on the trees given. A log-prob that is not finite is returned as it is.
    """
    check(model, trees)
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    batch_tokens = batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
    paths = [(index, Tree(tree.trunk, (branch,))) for index, tree in enumerate(trees) for branch in tree.branches]
    # long first: if memory runs out, it does so at the start
    order = sorted(range(len(paths)), key=lambda i: (-paths[i][1].depth, i))
    batches = [[order[i] for i in batch] for batch in pack([paths[i][1].depth for i in order], batch_tokens)]
    found: dict[int, np.ndarray] = {}
    training = model.training
    model.eval()
    try:
        for scored in run_halving(batches, lambda batch: _run(model, [(i, paths[i][1]) for i in batch])):
            found.update(scored)
    finally:
        model.train(training)
    logps: Logps = [[] for _ in trees]
    for i, (index, _) in enumerate(paths):
        logps[index].append(found[i])
    return logps


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


@torch.no_grad()
def _run(model: Any, batch: Sequence[tuple[int, Tree]]) -> list[tuple[int, np.ndarray]]:
    scores = forward(model, [tree for _, tree in batch])
    return [(i, logps.cpu().numpy()) for (i, _), logps in zip(batch, scores.logps, strict=True)]
