"""Every loss, each imported by name: adding one is a function in one of these files (or a new file and a line here)."""

from trainers.objectives.aot_unpaired import aot_unpaired
from trainers.objectives.batch import Batch, Demonstration, Pair, ReferencedPair
from trainers.objectives.dpo import dpo
from trainers.objectives.dpo_nll import dpo_nll, dpo_nll_token
from trainers.objectives.dpo_norm import dpo_norm
from trainers.objectives.ipo import ipo, ipo_mean, psi_po
from trainers.objectives.knobs import Knob, Range
from trainers.objectives.ldpo import ldpo
from trainers.objectives.odpo import odpo
from trainers.objectives.orpo import orpo
from trainers.objectives.rdpo import rdpo
from trainers.objectives.registry import OBJECTIVES, Objective, find, objective
from trainers.objectives.reward import reward
from trainers.objectives.robust import robust
from trainers.objectives.sft import sft
from trainers.objectives.simpo import simpo
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
    "dpo_nll",
    "dpo_nll_token",
    "dpo_norm",
    "find",
    "ipo",
    "ipo_mean",
    "kto",
    "ldpo",
    "objective",
    "odpo",
    "orpo",
    "psi_po",
    "rdpo",
    "reward",
    "robust",
    "sft",
    "simpo",
]
