"""How far the policy has moved from the reference on both sides of a pair, as the divergence in use counts it.

Every loss of margins takes `divergence`: Wang et al. 2023, arXiv:2309.16240, put s(z) in the place of a log-ratio z:

    reverse_kl   z                                    DPO as it was published
    forward_kl   1 - exp(-z)
    js           log 2 - log(1 + exp(-z))             Jensen-Shannon
    alpha        (exp((alpha - 1) z) - 1) / (alpha - 1), with alpha = divergence_alpha; z at 1, forward_kl at 0

s(0) = 0, so that where policy equals reference each gives what the plain loss gives; s'(0) = 1, of js 1/2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.shared_knobs import Divergence

# exp(40) is 2e17: beyond it a side counts no further, and even its square is finite in float32
HIGHEST_EXPONENT = 40.0
# |beta d| beyond which a sigmoid's slope is below a hundredth of its largest
SATURATED = 6.0


def log_ratios(lp: ReferencedPair) -> tuple[Tensor, Tensor]:
    """How much likelier than under the reference chosen and rejected are: nats, over whole completions."""
    return lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected


def margin(lp: ReferencedPair, divergence: Divergence = "reverse_kl", alpha: float = 1.0) -> Tensor:
    """How much more the policy has moved towards chosen than towards rejected, over whole completions."""
    chosen, rejected = log_ratios(lp)
    return counted(chosen, divergence, alpha) - counted(rejected, divergence, alpha)


def mean_margin(lp: ReferencedPair, divergence: Divergence = "reverse_kl", alpha: float = 1.0) -> Tensor:
    """The same of each side's share per scored token."""
    chosen, rejected = log_ratios(lp)
    return (
        counted(chosen, divergence, alpha) / lp.chosen_tokens
        - counted(rejected, divergence, alpha) / lp.rejected_tokens
    )


def counted(z: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """s(z) of a log-ratio."""
    if divergence == "forward_kl":
        divergence, alpha = "alpha", 0.0
    if divergence == "js":
        return math.log(2) + F.logsigmoid(z)
    if divergence == "reverse_kl" or alpha == 1.0:
        return z
    return torch.expm1(((alpha - 1) * z).clamp(max=HIGHEST_EXPONENT)) / (alpha - 1)
