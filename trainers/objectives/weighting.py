"""What the losses of pairs are multiplied by: an option of every loss whose pairs don't depend on each other.

wpo, Zhou et al. 2024, arXiv:2406.11827, eq. 2: pairs that the policy itself would hardly write count little, as if they had
been drawn from it.

    w(y) = exp( mean over the scored tokens of y of ( log pi(y_t) - log sum_v pi(v)^2 ) )
    weight of a pair = min( w(chosen) w(rejected), 1 )

sum_v pi(v)^2 is what a token drawn from the policy has on average, so that a text of the policy's own weighs about 1 however
flat its distributions are. Weights carry no gradient, and multiply all of a row's loss, likelihood terms too; without the
clamp, which TRL 1.16 lacks, answers likelier than the policy's own would count more than once. It is not offered where
the rows of a forward are compared with each other, as in aot, or with their means, as in bco_pair. Logged as `weight`.
"""

from typing import get_args

import torch
from torch import Tensor

from trainers.objectives.knobs import Knob
from trainers.objectives.shared_knobs import Weighting
from trainers.precision import widest

WEIGHTING = Knob("weighting", str, "none", choices=get_args(Weighting))


def aligned(logps: Tensor, collisions: Tensor, scored: Tensor) -> Tensor:
    """(S,) log w of completions, from fields (S, longest): nats, log sum_v pi(v)^2, and which tokens count."""
    gaps = torch.where(scored, logps.detach() - collisions, 0.0)
    return gaps.sum(1, dtype=widest(gaps.device)) / scored.sum(1)


def weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(B,) weights of pairs, from the log w of either side."""
    return (chosen + rejected).exp().clamp(max=1)
