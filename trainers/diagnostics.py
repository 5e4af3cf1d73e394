"""What tells of a pair loss going wrong before its accuracy does: drop, suppression, saturation, disagreement.

After "3D-Properties", arXiv:2406.07327. With a and b, how far the policy's log-prob of chosen and rejected has moved from the
reference's (nats, over whole completions), and the margin of rewards of the loss. `prefdata.report.training` holds the
thresholds that its warnings are raised at.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainers.objectives import Batch, Pair, ReferencedPair
from trainers.objectives.log_ratios import SATURATED

WEIGHTLESS = 0.01  # sigmoid(-margin) below which a pair teaches next to nothing


def of_pairs(pair: Pair, margin: Tensor, knobs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Named (B,) values whose means are logged. `margin`: reward of chosen minus that of rejected.

    Saturation is told of losses with a beta alone, whose margins a sigmoid reads.
    """
    apart = pair.chosen / pair.chosen_tokens - pair.rejected / pair.rejected_tokens
    yield "logps/margin_per_token", apart
    yield "orders/disagree", margin * (pair.chosen - pair.rejected) < 0
    yield "orders/disagree_per_token", margin * apart < 0
    if "beta" in knobs:
        weight = torch.sigmoid(-margin)
        yield "saturation/weight", weight
        yield "saturation/beyond_6", margin.abs() > SATURATED
        yield "saturation/weightless", weight < WEIGHTLESS
    if isinstance(pair, ReferencedPair):
        a, b = pair.chosen - pair.ref_chosen, pair.rejected - pair.ref_rejected
        yield "logratios/chosen", a
        yield "logratios/rejected", b
        yield "logratios/chosen_per_token", a / pair.chosen_tokens
        yield "logratios/rejected_per_token", b / pair.rejected_tokens
        yield "quadrants/chosen_up_rejected_down", (a > 0) & (b < 0)
        yield "quadrants/both_down", (a < 0) & (b < 0)
        yield "quadrants/both_up", (a > 0) & (b > 0)
        yield "quadrants/chosen_down_rejected_up", (a < 0) & (b > 0)


def tails(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Named (B,) values of which the lowest tenth is logged: where the rejected side falls first."""
    if isinstance(batch, ReferencedPair):
        b = batch.rejected - batch.ref_rejected
        yield "logratios/rejected_p10", b
        yield "logratios/rejected_per_token_p10", b / batch.rejected_tokens
