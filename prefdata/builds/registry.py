"""The builds by name, each imported when it is asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from prefdata.builds.job import Job

# name -> the module that holds its Options, and what makes its job from options and root
_BUILDS = {
    "ingest": ("prefdata.builds.ingest", "Ingest"),
    "clean": ("prefdata.builds.clean", "Clean"),
    "generate": ("prefdata.builds.generate", "Generate"),
    "score-rewards": ("prefdata.builds.score_rewards", "job"),
    "build-paired": ("prefdata.builds.paired", "job"),
    "build-unpaired": ("prefdata.builds.unpaired", "BuildUnpaired"),
    "build-rejection-samples": ("prefdata.builds.rejection", "job"),
    "build-greedy-baselines": ("prefdata.builds.greedy_baselines", "job"),
    "build-sapo-negatives": ("prefdata.builds.sapo_negatives", "BuildSapoNegatives"),
    "add-reference": ("prefdata.builds.add_reference", "AddReference"),
}
NAMES = tuple(_BUILDS)


def options(name: str) -> type:
    """The dataclass of a build's options."""
    found: type = import_module(_BUILDS[name][0]).Options
    return found


def job(name: str, chosen: Any, root: str | None) -> Job:
    """The job of a build. UserError for bad input, as the build says it."""
    module, maker = _BUILDS[name]
    make: Callable[[Any, str | None], Job] = getattr(import_module(module), maker)
    return make(chosen, root)
