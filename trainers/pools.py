"""Means over the rows of a forward in all processes together, and those that are remembered over a run.

KTO's reference point is one: averaged over all devices first. BCO's class means are others, as moving averages.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trainers.objectives import Batch
from trainers.processes import Processes

DECAY = 0.99  # of a moving average, per micro-batch: some 25 steps of four


class Pools(TrainerCallback, ExportableState):
    """Called with a contract and its sums and counts, by all processes in one order; a checkpoint keeps what it remembers."""

    def __init__(self, processes: Processes | None = None, remembered: dict[str, float] | None = None) -> None:
        self.processes = processes or Processes()
        self.remembered = dict(remembered or {})

    def __call__(self, contract: type[Batch], sums: Tensor, counts: Tensor) -> Tensor:
        """(P,) means; remembered ones move only where gradients are on."""
        if self.processes.size > 1:
            both = torch.stack([sums, counts])
            torch.distributed.all_reduce(both)
            sums, counts = both
        means = sums / counts.clamp(min=1)
        if not contract.remembered:
            return means
        if torch.is_grad_enabled():
            for name, mean, count in zip(contract.pools, means.tolist(), counts.tolist(), strict=True):
                if count:
                    self.remembered[name] = DECAY * self.remembered.get(name, 0.0) + (1 - DECAY) * mean
        return means.new_tensor([self.remembered.get(name, 0.0) for name in contract.pools])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"remembered": self.remembered}}

    def take(self, states: Mapping[str, Any]) -> None:
        """What a checkpoint kept."""
        if kept := states.get(type(self).__name__):
            self.remembered = dict(kept["attributes"]["remembered"])
