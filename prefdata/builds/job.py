"""What every build is made of: stages of content-keyed units, then one publish.

A job computes nothing until it is run. Whoever runs it (a plain loop here, Prefect tasks in `flows/`) hands each
pending unit to `compute` and keeps the result in the work store, so a build that was killed goes on where it stopped.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from prefdata import versions
from prefdata.builds.budget import Budget, Metered
from prefdata.builds.pipeline import Behind, ahead
from prefdata.builds.speeds import Speeds, Timed
from prefdata.engines import EngineDied
from prefdata.errors import faults_in_words
from prefdata.identity import digest, spelled
from prefdata.versions import Version
from prefdata.work import Tables, Work

# how often a unit is tried again when the engine dies under it
ENGINE_RETRIES = 2

_log = logging.getLogger(__name__)


def _to_nobody(amount: float) -> None:
    """Where nobody watches."""


@dataclass(frozen=True)
class Unit:
    """A piece of a stage: its key, how many rows it covers, and what its stage needs to find its inputs again.

    `tell` is told now and then what share of the unit is computed, from 0 to 1; `spend`, how many tokens models read or
    wrote for it.
    """

    key: str
    rows: int
    inputs: Any = None
    tell: Callable[[float], None] = _to_nobody
    spend: Callable[[int], None] = _to_nobody


class Stage(Protocol):
    """One kind of work over all rows, such as generation. It may hold a model from first use until `close`.

    One that does says which in `runs`, a text; its speed is then remembered for the next plan.
    """

    name: str

    def units(self) -> Iterable[Unit]:
        """The units, in the order of the parent's rows; earlier stages are done when this is called."""
        ...

    def compute(self, unit: Unit) -> Tables:
        """The unit's result, from its inputs alone."""
        ...

    def close(self) -> None:
        """Let go of models and processes."""
        ...


class Job(Protocol):
    """One build, ready to run: its inputs are checked, so what can be refused has been."""

    name: str
    root: str
    work: Work
    build_key: str
    notices: list[str]  # what was found or decided that the user did not say
    rows: int | None  # rows of the input, if that is known before they are read
    already: Version | None  # a version that makes this build needless, if the inputs name one

    def stages(self) -> Iterator[Stage]:
        """The stages, one after the other."""
        ...

    def publish(self) -> Version:
        """Put the finished units together as the next version."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    version: Version
    published: bool  # False: an equal build had made this version before
    computed: int  # units computed now
    reused: int  # units that were done already

    def sentence(self) -> str:
        """One line for a person."""
        rows = sum(self.version.manifest["counts"]["rows"].values())
        if not self.published:
            done = f"{self.computed} units computed, and nothing published" if self.computed else "nothing was done"
            return f"{self.version.name} ({rows:,} rows) is already what this build would make; {done}"
        aside = self.version.manifest["counts"]["set_aside"]
        units = f"{self.computed} units computed, {self.reused} reused"
        return f"published {self.version.name}: {rows:,} rows, {aside:,} rows set aside; {units}"


class Watcher(Protocol):
    """Told of progress: a progress bar, a Prefect artifact, or nothing."""

    def stage(self, name: str, rows: int | None) -> None:
        """A stage begins; rows it is expected to cover, if that is known."""
        ...

    def begins(self, unit: Unit) -> None:
        """A unit that is not done is about to be computed; what is raised here stops the build before it."""
        ...

    def part(self, unit: Unit, share: float) -> None:
        """So much of a unit, from 0 to 1, is computed."""
        ...

    def spent(self, unit: Unit, tokens: int) -> None:
        """So many tokens were read or written by models for a unit."""
        ...

    def unit(self, unit: Unit, reused: bool) -> None:
        """A unit is done, now or before."""
        ...


def watched(unit: Unit, watcher: Watcher) -> Unit:
    """The unit, with the watcher told of its progress and cost."""
    return replace(unit, tell=lambda share: watcher.part(unit, share), spend=lambda tokens: watcher.spent(unit, tokens))


Executor = Callable[[Stage, Iterable[Unit], Work, Watcher], None]
Keep = Callable[[str, Tables], object]


class Silent:
    """A watcher that says nothing."""

    def stage(self, name: str, rows: int | None) -> None:
        """A stage begins."""

    def begins(self, unit: Unit) -> None:
        """A unit begins."""

    def part(self, unit: Unit, share: float) -> None:
        """A unit goes on."""

    def spent(self, unit: Unit, tokens: int) -> None:
        """A unit costs something."""

    def unit(self, unit: Unit, reused: bool) -> None:
        """A unit is done."""


def build_key(name: str, config: dict[str, Any], parents: Iterable[Version], fingerprints: dict[str, Any]) -> str:
    """Equal builds share it: rule, configuration, parents and what the models and tokenizers are."""
    return digest(
        {
            "build": name,
            "config": spelled(config),
            "parents": [{"version": parent.name, "logical_hash": parent.logical_hash} for parent in parents],
            "fingerprints": spelled(fingerprints),
        }
    )


def in_order(stage: Stage, units: Iterable[Unit], work: Work, watcher: Watcher) -> None:
    """Run units one after the other in this process."""
    with Behind(work) as behind:
        for unit in ahead(units):
            if not work.done(unit.key):
                watcher.begins(unit)
            watcher.unit(unit, reused=not run_unit(stage, watched(unit, watcher), work, behind.store))


def run_unit(stage: Stage, unit: Unit, work: Work, keep: Keep | None = None) -> bool:
    """Compute a unit unless it is done, and hand it to `keep` (None: keep it at once). True if it was computed now."""
    if work.load(unit.key) is not None:
        work.reused += 1
        return False
    (keep or work.store)(unit.key, _computed(stage, unit))
    work.computed += 1
    return True


def _computed(stage: Stage, unit: Unit) -> Tables:
    """The unit's result. A unit whose engine dies begins again, with the engine's next process."""
    for attempt in range(1, ENGINE_RETRIES + 1):
        try:
            return stage.compute(unit)
        except EngineDied as death:
            _log.warning("unit %s of stage %s: %s; trying again (%d)", unit.key[:12], stage.name, death, attempt)
    return stage.compute(unit)


def run(
    job: Job, *, execute: Executor = in_order, watcher: Watcher | None = None, budget: Budget | None = None
) -> Outcome:
    """Run a job to its version. An equal build that was published before is returned as it is.

    budget: what models may compute; once it is spent, BudgetReached before the next unit that is not done.

    UserError for bad input and for faults of the machine; finished units stay, and an equal run goes on from them.
    """
    with faults_in_words(job.root):
        heard: Watcher = watcher or Silent()
        return _run(job, execute, Metered(heard, budget) if budget else heard)


def _run(job: Job, execute: Executor, watcher: Watcher) -> Outcome:
    found = job.already or versions.find_build(job.build_key, job.root)
    if found is not None:
        return Outcome(found, published=False, computed=0, reused=0)
    watcher = timed = Timed(watcher, Speeds(job.root))
    for stage in job.stages():
        watcher.stage(stage.name, job.rows)
        try:
            execute(stage, stage.units(), job.work, watcher)
        finally:
            stage.close()
        timed.ended(stage)
    watcher.stage("publish", None)
    found = versions.find_build(job.build_key, job.root)  # an equal build may have run beside this one
    version = found or job.publish()
    return Outcome(version, published=found is None, computed=job.work.computed, reused=job.work.reused)
