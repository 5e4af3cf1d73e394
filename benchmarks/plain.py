"""What one writes without a library: batches of padded rows through a transformers model, full logits, log-softmax."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefdata.logprobs import Tree


def logps(model: Any, trees: Sequence[Tree]) -> list[Tensor]:
    """Log-probs of every branch's tokens, from one padded batch. Every place has its logits."""
    device = next(model.parameters()).device
    paths = [(len(tree.trunk), [*tree.trunk, *branch]) for tree in trees for branch in tree.branches]
    ids = pad_sequence([torch.tensor(path) for _, path in paths], batch_first=True).to(device)
    lengths = torch.tensor([len(path) for _, path in paths], device=device)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    found = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return [row[trunk - 1 : len(path) - 1] for row, (trunk, path) in zip(found, paths, strict=True)]


@torch.no_grad()
def score(model: Any, trees: Sequence[Tree], rows: int) -> list[Tensor]:
    """The same without gradients, so many rows at a time."""
    branches = [Tree(tree.trunk, [branch]) for tree in trees for branch in tree.branches]
    return [
        found
        for start in range(0, len(branches), rows)
        for found in logps(model.eval(), branches[start : start + rows])
    ]
