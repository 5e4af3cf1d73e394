"""The data contracts: what a loss is handed, and what a version must hold for it.

Every field is a tensor of shape (B,), one entry per row. Log-probs are in nats, summed over the scored tokens,
never averaged; the matching `_tokens` field counts those tokens (at least 1), so a mean can always be formed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What every contract says of itself."""

    # kind of version -> field of this batch -> the side of a row it is read from
    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    # columns beyond the tokens that a version must hold
    columns: ClassVar[tuple[str, ...]] = ()
    # whether `ref_` fields with the reference's sums stand beside the policy's
    referenced: ClassVar[bool] = False
    # in words, for --list
    reads: ClassVar[str] = ""


@dataclass(frozen=True)
class Demonstration(Batch):
    """A completion to imitate: the chosen side of a pair, or the one completion of a row."""

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "pairs": {"completion": "chosen"},
        "completions": {"completion": "completion"},
    }
    reads = "pairs (chosen only) or completions"

    completion: Tensor  # log pi of the completion
    completion_tokens: Tensor


@dataclass(frozen=True)
class Pair(Batch):
    """Two completions of one prompt under the policy, the better one called chosen."""

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {"pairs": {"chosen": "chosen", "rejected": "rejected"}}
    reads = "pairs"

    chosen: Tensor  # log pi of the better completion
    rejected: Tensor  # log pi of the worse one
    chosen_tokens: Tensor
    rejected_tokens: Tensor


@dataclass(frozen=True)
class ReferencedPair(Pair):
    """A Pair plus the same sums under the frozen reference, read from the data."""

    columns = ("ref_chosen_logps", "ref_rejected_logps")
    referenced = True
    reads = "pairs, reference log-probs"

    ref_chosen: Tensor  # no gradient
    ref_rejected: Tensor  # no gradient
