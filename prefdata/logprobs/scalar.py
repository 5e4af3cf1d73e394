"""A reward model's score of each branch: the scalar head read at the branch's last token.

The same trees and the same shared forward as for log-probs, so a prompt runs once for all of its completions. The head
is read at the last token of the path itself, never at what looks like the last one that is no padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefdata.errors import UserError
from prefdata.logprobs import shared
from prefdata.logprobs.attention import TreePlan
from prefdata.logprobs.layout import Layout, lay_out
from prefdata.logprobs.score import gathered, stream
from prefdata.logprobs.trees import Tree
from prefdata.logprobs.wrappers import arguments, scalar_head, unwrapped


def rewards(model: Any, trees: Sequence[Tree], *, layout: Layout | None = None) -> Tensor:
    """(S,) float32, a score for every branch, tree by tree; differentiable. One call of a model with a scalar head.

    `layout` is that of the trees, whole, where it was made before.
    """
    check_head(model)
    sharing = shared.prepare(model)
    obstacle = sharing.obstacle(model, trees)
    if obstacle is None:
        return shared_forward(model, trees, layout=layout)
    sharing.say(model, obstacle)
    return padded_forward(model, trees)


def score_rewards(
    model: Any,
    trees: Sequence[Tree],
    *,
    batch_tokens: int | None = None,
    tell: Callable[[float], None] | None = None,
) -> list[np.ndarray]:
    """Without gradients, for any number of trees: one float32 array per tree, a score for each of its branches."""
    check_head(model)
    found = gathered(stream(model, trees, batch_tokens=batch_tokens, run=_each, whole=True), trees, tell)
    return [np.concatenate(branches) for branches in found]


def _each(model: Any, trees: Sequence[Tree], row: Layout) -> Sequence[Tensor]:
    return torch.split(rewards(model, trees, layout=row), 1)


def check_head(model: Any) -> None:
    """UserError unless the model gives one number."""
    head = scalar_head(unwrapped(model))
    if head is None or head.out_features != 1:
        raise UserError(
            f"{type(unwrapped(model)).__name__} has no head that gives one score: a reward model is a sequence classifier"
            " with one label."
        )


def shared_forward(model: Any, trees: Sequence[Tree], *, layout: Layout | None = None) -> Tensor:
    """Every token of a tree once."""
    device = unwrapped(model).get_input_embeddings().weight.device
    row = layout or lay_out(trees, whole=True)
    plan = TreePlan(row, device, shared.prepare(model).kernel)
    every = _head_outputs(
        model,
        input_ids=torch.as_tensor(row.tokens, device=device)[None],
        position_ids=torch.as_tensor(row.positions, device=device)[None],
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        tree=plan,
    )
    return every[0, torch.as_tensor(row.lasts, device=device), 0].float()


def padded_forward(model: Any, trees: Sequence[Tree]) -> Tensor:
    """Every branch a row of its own, padded on the right: what the shared forward is measured against."""
    paths = [(*tree.trunk, *branch) for tree in trees for branch in tree.branches]
    width = max(map(len, paths))
    device = unwrapped(model).get_input_embeddings().weight.device
    input_ids = np.zeros((len(paths), width), np.int64)
    mask = np.zeros((len(paths), width), np.int64)
    for place, path in enumerate(paths):
        input_ids[place, : len(path)], mask[place, : len(path)] = path, 1
    given = {"input_ids": torch.as_tensor(input_ids), "attention_mask": torch.as_tensor(mask)}
    if "position_ids" in arguments(model):
        given["position_ids"] = torch.arange(width).expand(len(paths), width)
    every = _head_outputs(model, **{name: value.to(device) for name, value in given.items()})
    lasts = torch.as_tensor([len(path) - 1 for path in paths], device=device)
    return every[torch.arange(len(paths), device=device), lasts, 0].float()


def _head_outputs(model: Any, **given: Any) -> Tensor:
    """(rows, tokens, 1): what the head gives at every token, before the model picks one of them."""
    caught: list[Tensor] = []
    hook = unwrapped(model).score.register_forward_hook(lambda _, __, output: caught.append(output))
    try:
        model(**given, use_cache=False)
    finally:
        hook.remove()
    (every,) = caught
    return every
