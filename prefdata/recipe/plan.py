"""What a recipe would make and cost, before anything is computed: rows, tokens, engine time, disk.

What is there already is read from its manifest; of a source the rows are counted and the first ones tokenised; the rest is
arithmetic (`estimates`). Time comes from the speed that a stage had when it last ran the same model here, or else from the
model's size and the matrix rate of this machine's processor.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from prefdata import models, versions
from prefdata.builds import registry
from prefdata.builds.ingest import Ingest
from prefdata.builds.inputs import model_name
from prefdata.builds.speeds import Speeds, named
from prefdata.errors import UserError
from prefdata.recipe import kinds
from prefdata.recipe.estimates import ESTIMATES, Expected, Spending
from prefdata.recipe.reading import Recipe, Step
from prefdata.versions import Version

# shares of the matrix rate that a forward over long rows and a loop of single tokens come to, where none was measured
_SCORING_SHARE, _WRITING_SHARE = 0.5, 0.1
_FLOPS_OF_A_TOKEN = 2  # for every parameter
_PROBE = 768  # side of the matrices whose product is timed
_SAMPLED_ROWS = 4096


@dataclass(frozen=True)
class Line:
    """One step of the plan. seconds: None where a model's size is not known; known: from a speed measured here."""

    where: str
    build: str
    version: str | None  # that is there already
    rows: int
    tokens: int
    seconds: float | None
    bytes: int
    known: bool


@dataclass(frozen=True)
class Plan:
    """The lines, in order."""

    lines: tuple[Line, ...]

    @property
    def tokens(self) -> int:
        """All that models have yet to compute."""
        return sum(line.tokens for line in self.lines)

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Headings and cells for a person."""
        headings = ["step", "build", "rows", "tokens", "time", "disk", "state"]
        cells: list[list[object]] = [
            [
                line.where,
                line.build,
                f"{line.rows:,}" if line.version else f"about {line.rows:,}",
                f"{line.tokens:,}",
                _span(line),
                _size(line.bytes),
                f"there: {line.version}" if line.version else "to do",
            ]
            for line in self.lines
        ]
        return headings, cells

    def notes(self, recipe: Recipe) -> list[str]:
        """What the figures rest on, and whether the budget holds them."""
        told = [
            f"{self.tokens:,} tokens to compute, {_size(sum(line.bytes for line in self.lines if not line.version))} to write"
        ]
        if any(line.tokens and not line.known and line.seconds is not None for line in self.lines):
            told.append(
                "times with ~ come from the model's size and this machine's processor; they are measured once a build has run"
            )
        if any(line.tokens and line.seconds is None for line in self.lines):
            told.append("no time is told where a model is not on this machine yet")
        if recipe.max_tokens is not None and self.tokens > recipe.max_tokens:
            told.append(f"the budget's max_tokens is {recipe.max_tokens:,}: the build will stop before it is finished")
        rows = sum(line.rows for line in self.lines if not line.version)
        if recipe.max_rows is not None and rows > recipe.max_rows:
            told.append(
                f"the budget's max_rows is {recipe.max_rows:,}, and about {rows:,} are to be computed: it will stop before"
            )
        return told


def plan(recipe: Recipe, root: str | None) -> Plan:
    """The plan. UserError for what would be refused anyway, as far as it can be seen now."""
    root = recipe.root if root is None else root
    speeds = Speeds(versions.root(root))
    parent: Version | None = None
    expected: Expected | None = None
    if recipe.version is not None:
        parent = versions.find(recipe.version, root=root)
        expected = _of(parent)
        kinds.check(recipe.steps, expected.kind)
    lines = []
    for number, step in enumerate(recipe.steps, 1):
        found, expected, costs = _step(step, parent, expected, root)
        kinds.check(recipe.steps[number:], expected.kind)
        parent = found
        made = expected
        times = [_seconds(cost, speeds) for cost in costs]
        unknown = any(seconds is None for seconds, _ in times)
        lines.append(
            Line(
                step.where,
                step.build,
                found.name if found else None,
                round(made.rows),
                round(sum(cost.tokens for cost in costs)),
                None if unknown else sum(seconds or 0.0 for seconds, _ in times),
                round(made.bytes),
                all(known for _, known in times),
            )
        )
    return Plan(tuple(lines))


def _step(
    step: Step, parent: Version | None, expected: Expected | None, root: str | None
) -> tuple[Version | None, Expected, list[Spending]]:
    """The version if it is there, what it holds or will hold, and what it costs."""
    options = step.chosen(parent.url if parent else None)
    if parent is not None or expected is None:  # its inputs are there, so it can be asked
        job = registry.job(step.build, options, root)
        found = job.already or versions.find_build(job.build_key, root)
        if found is not None:
            return found, _of(found), []
        if expected is None:
            expected = _source(cast(Ingest, job))
    made, costs = ESTIMATES[step.build](expected, options)
    return None, made, costs


def _of(version: Version) -> Expected:
    """What a version holds; the means are those of its first file."""
    kind = version.kind
    rows = sum(version.manifest["counts"]["rows"].values())
    ids: set[str] = set()
    for split in version.splits:
        for entry in version.files(split):
            ids.update(version.read(entry, ["prompt_id"])["prompt_id"].to_pylist())
    entry = version.files(version.splits[0])[0]
    tokens = _means(lambda name: version.read(entry, [name])[name], set(version.columns()))
    reference = version.manifest["reference"]
    return Expected(
        kind,
        rows,
        len(ids),
        *tokens,
        model_name(version, None, ("generator", "reference")),
        reference["name"] if reference else None,
    )


def _source(job: Ingest) -> Expected:
    """What an ingest will make, by its first rows."""
    sample, rows = job.sample(), job.reading.count()
    table = sample["rows"]
    if not table.num_rows:
        raise UserError("none of the source's first rows can be kept; ingest it to see the ledger say why")
    read = len(set(sample["lines"]["origin"].to_pylist()))
    share = rows / read
    prompts = len(set(table["prompt_id"].to_pylist()))
    tokens = _means(lambda name: table[name], set(table.column_names))
    model = str(job.tokenizer["name"])
    return Expected(job.reading.kind, table.num_rows * share, prompts * share, *tokens, model, None)


def _means(column: Callable[[str], Any], names: set[str]) -> tuple[float, float]:
    """Mean tokens of a prompt, and of an answer."""

    def mean(name: str) -> float:
        values = column(name).slice(0, _SAMPLED_ROWS).to_numpy()
        return float(np.mean(values)) if len(values) else 0.0

    answers = [f"{side}_tokens" for side in ("chosen", "rejected", "completion") if f"{side}_tokens" in names]
    return mean("prompt_tokens"), float(np.mean([mean(name) for name in answers])) if answers else 0.0


def _seconds(cost: Spending, speeds: Speeds) -> tuple[float | None, bool]:
    """How long it takes, and whether that speed was measured."""
    if cost.model is None:
        return None, False
    try:
        source = models.resolve(cost.model) if _is_local(cost.model) else None
        name = source.name if source else cost.model
        rate = speeds.of(cost.stage, named(name, cost.engine))
        if rate is not None:
            return cost.tokens / rate, True
        if source is None:
            return None, False
        parameters = models.describe(cost.model)["parameters"]
    except UserError:
        return None, False
    share = _SCORING_SHARE if cost.engine is None else _WRITING_SHARE
    return cost.tokens * _FLOPS_OF_A_TOKEN * parameters / (share * _matrix_rate()), False


def _is_local(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _matrix_rate() -> float:
    """Floating-point operations per second of this machine's processor, in float32."""
    one = np.ones((_PROBE, _PROBE), np.float32)
    one @ one
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began)
    return 2 * _PROBE**3 / best


def _span(line: Line) -> str:
    if not line.tokens:
        return "-"
    if line.seconds is None:
        return "?"
    seconds = line.seconds
    text = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    return text if line.known else f"~{text}"


def _size(amount: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:,.0f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"
