"""Every loss, each imported by name: adding one is a function in one of these files (or a new file and a line here)."""

from trainers.objectives.alphapo import alphapo
from trainers.objectives.aot import aot
from trainers.objectives.aot_unpaired import aot_unpaired
from trainers.objectives.apo import apo_down, apo_zero
from trainers.objectives.apo_zero_unpaired import apo_zero_unpaired
from trainers.objectives.batch import Batch, Demonstration, Pair, ReferencedPair
from trainers.objectives.bco import bco
from trainers.objectives.bco_pair import bco_pair
from trainers.objectives.cpo import cpo
from trainers.objectives.discopop import discopop
from trainers.objectives.dpo import dpo
from trainers.objectives.dpo_nll import dpo_nll, dpo_nll_token
from trainers.objectives.dpo_norm import dpo_norm
from trainers.objectives.dpo_pl import dpo_pl
from trainers.objectives.exo import exo
from trainers.objectives.ipo import ipo, ipo_mean, psi_po
from trainers.objectives.knobs import Knob, Range
from trainers.objectives.kto import kto
from trainers.objectives.ldpo import ldpo
from trainers.objectives.nca import nca
from trainers.objectives.odpo import odpo
from trainers.objectives.orpo import orpo
from trainers.objectives.rdpo import rdpo
from trainers.objectives.registry import OBJECTIVES, Objective, find, objective
from trainers.objectives.relative_po import relative_po, relative_po_unpaired
from trainers.objectives.reward import reward
from trainers.objectives.robust import robust
from trainers.objectives.rrhf import rrhf
from trainers.objectives.rso import rso_hinge, rso_sigmoid
from trainers.objectives.sft import sft
from trainers.objectives.simpo import simpo
from trainers.objectives.slic import slic
from trainers.objectives.sppo import sppo, sppo_hard

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Demonstration",
    "Knob",
    "Objective",
    "Pair",
    "Range",
    "ReferencedPair",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "cpo",
    "discopop",
    "dpo",
    "dpo_nll",
    "dpo_nll_token",
    "dpo_norm",
    "dpo_pl",
    "exo",
    "find",
    "ipo",
    "ipo_mean",
    "kto",
    "ldpo",
    "nca",
    "objective",
    "odpo",
    "orpo",
    "psi_po",
    "rdpo",
    "relative_po",
    "relative_po_unpaired",
    "reward",
    "robust",
    "rrhf",
    "rso_hinge",
    "rso_sigmoid",
    "sft",
    "simpo",
    "slic",
    "sppo",
    "sppo_hard",
]
