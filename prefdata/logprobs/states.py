"""What the head reads: the last hidden states of branches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefdata.logprobs import padded
from prefdata.logprobs.trees import Tree
from prefdata.logprobs.wrappers import unwrapped


@torch.no_grad()
def states(model: Any, trees: Sequence[Tree]) -> list[Tensor]:
    """(tokens, size) float32 for every branch, tree by tree: row t is what token t of the branch is predicted from.

    One call of the model per branch: for a few rows that are looked at, not for all that are trained on.
    """
    head = unwrapped(model).get_output_embeddings()
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0][0]))
    found = []
    try:
        for tree in trees:
            for branch in tree.branches:
                padded.forward(model, [Tree(tree.trunk, [branch])])
                hidden = caught.pop()
                if len(hidden) > len(branch):  # a model that gives logits of every position
                    hidden = hidden[len(tree.trunk) - 1 :][: len(branch)]
                found.append(hidden.float())
    finally:
        hook.remove()
    return found
