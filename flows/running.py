"""How a build runs under Prefect: each unit a task, progress as log lines and an artifact, a table at the end."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import State, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from prefdata.builds.budget import Budget
from prefdata.builds.job import Job, Keep, Outcome, Stage, Unit, Watcher, run, run_unit, watched
from prefdata.builds.pipeline import Behind, ahead
from prefdata.errors import Unreachable, UserError, faults_in_words
from prefdata.versions import Version
from prefdata.work import Work

_REPORT_EVERY_S = 5.0
# Tasks are handed names: Prefect would walk through and store anything larger. Stage and unit wait here, in the
# process that runs the flow.
_UNDER_WAY: dict[str, tuple[Stage, Unit, Work, Keep]] = {}


def _worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    """Bad input stays bad; anything else (memory, network, a dying engine) may pass."""
    result = state.result(raise_on_failure=False)
    return isinstance(result, Unreachable) or not isinstance(result, UserError | State)


@task(
    task_run_name="{stage}-{number}",
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=_worth_retrying,
    cache_policy=NO_CACHE,  # what is done is known by content, in the work store
    persist_result=False,
)
def work_unit(stage: str, number: int, key: str) -> Any:
    """Compute one unit and keep it. True if it was computed now.

    What is refused, and a machine that fails, ends the task in a failed state: its message is enough, without a traceback.
    """
    current, unit, work, keep = _UNDER_WAY[key]
    try:
        with faults_in_words():
            return run_unit(current, unit, work, keep)
    except Unreachable:
        raise
    except UserError as problem:
        return Failed(message=str(problem), data=problem)


class PrefectWatcher(Watcher):
    """Progress of the stages as log lines, and as an artifact while a stage's total is known."""

    def __init__(self, name: str) -> None:
        self._logger = get_run_logger()
        self._name = name
        self._artifact: UUID | None = None
        self._begin("", None)

    def stage(self, name: str, rows: int | None) -> None:
        """Close the last stage and announce the next."""
        self._report()
        self._begin(name, rows)
        self._logger.info("stage %s", name)

    def begins(self, unit: Unit) -> None:
        """Nothing is counted before it is done."""

    def part(self, unit: Unit, share: float) -> None:
        """Count what is done of a unit; report every few seconds."""
        self._part = int(share * unit.rows)
        self._reported = False
        if time.monotonic() - self._last > _REPORT_EVERY_S:
            self._report()

    def spent(self, unit: Unit, tokens: int) -> None:
        """Count tokens."""
        self._tokens += tokens

    def unit(self, unit: Unit, reused: bool) -> None:
        """Count a unit; report every few seconds."""
        self._rows += unit.rows
        self._part = 0
        self._reused += unit.rows * reused
        self._reported = False
        if time.monotonic() - self._last > _REPORT_EVERY_S:
            self._report()

    def _begin(self, name: str, rows: int | None) -> None:
        self._stage, self._total, self._rows, self._reused, self._reported = name, rows, 0, 0, True
        self._part = self._tokens = 0  # rows of the unit under way; tokens that models read or wrote
        self._began = self._last = time.monotonic()

    def _report(self) -> None:
        if self._reported:
            return
        self._reported, self._last = True, time.monotonic()
        self._logger.info("stage %s: %s", self._stage, self._words())
        if self._total:
            self._show(min(100.0, 100 * (self._rows + self._part) / self._total))

    def _words(self) -> str:
        rows = self._rows + self._part
        done = f"{rows:,} rows" if self._total is None else f"{rows:,} of {self._total:,} rows"
        fresh, seconds = rows - self._reused, self._last - self._began
        speed = fresh / seconds if seconds > 0 else 0.0
        before = f", {self._reused:,} of them done before" if self._reused else ""
        left = (self._total or 0) - rows
        rest = f", about {left / speed:,.0f} s to go" if speed and left > 0 else ""
        tokens = f", {self._tokens / seconds:,.0f} tokens/s" if self._tokens and seconds > 0 else ""
        return f"{done}{before}, {speed:,.0f} rows/s{tokens}{rest}"

    def _show(self, percent: float) -> None:
        text = f"{self._name}: {self._stage}, {self._words()}"
        if self._artifact is None:
            self._artifact = cast(
                UUID, create_progress_artifact(percent, key=f"{self._name}-progress", description=text)
            )
        else:
            update_progress_artifact(self._artifact, percent, description=text)


def in_tasks(stage: Stage, units: Iterable[Unit], work: Work, watcher: Watcher) -> None:
    """Run units as tasks, in order. One model is in memory, so one unit at a time uses it."""
    with Behind(work) as behind:
        for number, unit in enumerate(ahead(units)):
            if work.done(unit.key):  # no task for what is there already
                watcher.unit(unit, reused=not run_unit(stage, unit, work))
                continue
            watcher.begins(unit)
            _UNDER_WAY[unit.key] = (stage, watched(unit, watcher), work, behind.store)
            try:
                computed = work_unit(stage.name, number, unit.key)
                if isinstance(computed, State):
                    computed.result()  # raises what the task ended with
                watcher.unit(unit, reused=not computed)
            finally:
                del _UNDER_WAY[unit.key]


def build(job: Job, budget: Budget | None = None) -> Outcome:
    """Run a job inside a flow and leave a table of what came of it, and a link to the version's report."""
    logger = get_run_logger()
    for notice in job.notices:
        logger.info(notice)
    outcome = run(job, execute=in_tasks, watcher=PrefectWatcher(job.name), budget=budget)
    logger.info(outcome.sentence())
    version = outcome.version
    counts = version.manifest["counts"]
    create_table_artifact(
        key=f"{job.name}-counts",
        description=f"{outcome.sentence()}\n\n{version.url}",
        table=[
            {
                "stage": stage["stage"],
                "rows in": stage["rows_in"],
                "kept": stage["kept"],
                "set aside": ", ".join(f"{reason} {n}" for reason, n in stage["set_aside"].items()) or "none",
            }
            for stage in counts["stages"]
        ],
    )
    _leave_report(job.name, version)
    return outcome


def _leave_report(name: str, version: Version) -> None:
    """Write the version's page and link to it. The version is published, so what goes wrong here is said and no more."""
    from prefdata import report

    logger = get_run_logger()
    try:
        made = report.report_version(version)
        where = Path(report.write(made)).absolute()
    except Exception as problem:
        ours = not isinstance(problem, UserError | OSError)  # a bug needs its traceback
        logger.warning("%s is published, but its report could not be written: %s", version.name, problem, exc_info=ours)
        return
    logger.info("report: %s", where)
    create_link_artifact(
        key=f"{name}-report",
        link=where.as_uri(),
        link_text=f"report of {version.name}",
        # browsers follow no file:// link from Prefect's page, so the path is there to be copied; as code, because
        # descriptions are Markdown
        description=f"Warnings: {made.alarms}. On the machine that ran the flow:\n\n    {where}",
    )
