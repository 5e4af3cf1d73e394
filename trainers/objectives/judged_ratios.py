"""How far the policy has moved from the reference on a completion that was judged by itself.

Losses of such rows are averaged over rows of both classes together; a row's stored weight, which is 1 unless the version
says otherwise, multiplies its loss.
"""

import torch
from torch import Tensor

from trainers.objectives.batch import Judged
from trainers.objectives.log_ratios import SATURATED


def log_ratio(lp: Judged) -> Tensor:
    """How far the policy has moved towards the completion: nats, over the whole of it."""
    return lp.completion - lp.ref_completion


def wrong_way(lp: Judged, above: Tensor | float = 0.0) -> Tensor:
    """How far the log-ratio is on the wrong side of a bar: below it for a desirable row, above it for an undesirable one."""
    below = above - log_ratio(lp)
    return torch.where(lp.label, below, -below)


def saturated(lp: Judged, above: Tensor | float = 0.0, *, beta: float) -> dict[str, Tensor]:
    """Which rows are so far from the bar that a sigmoid's slope is below a hundredth of its largest."""
    return {"saturation/beyond_6": beta * wrong_way(lp, above).abs() > SATURATED}


def saturated_from_zero(lp: Judged, *, beta: float) -> dict[str, Tensor]:
    """The diagnostics of losses whose bar is 0."""
    return saturated(lp, beta=beta)
