"""Every loss, each imported by name: adding one is a function in one of these files (or a new file and a line here)."""

from trainers.objectives.aot_unpaired import aot_unpaired
from trainers.objectives.batch import Batch, Demonstration, Pair, ReferencedPair
from trainers.objectives.knobs import Knob, Range
from trainers.objectives.pairwise import dpo, ipo, ipo_mean
from trainers.objectives.reference_free import orpo, simpo
from trainers.objectives.registry import OBJECTIVES, Objective, find, objective
from trainers.objectives.reward import reward
from trainers.objectives.sft import sft
from trainers.objectives.unpaired import apo_zero_unpaired, bco, kto

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Demonstration",
    "Knob",
    "Objective",
    "Pair",
    "Range",
    "ReferencedPair",
    "aot_unpaired",
    "apo_zero_unpaired",
    "bco",
    "dpo",
    "find",
    "ipo",
    "ipo_mean",
    "kto",
    "objective",
    "orpo",
    "reward",
    "sft",
    "simpo",
]
