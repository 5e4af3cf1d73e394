"""What a benchmark found, as rows of one Markdown table, and its place in docs/benchmarks.md."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import Pair, machine, spread
from prefdata.errors import UserError

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured by python -m benchmarks.all -->", "<!-- end of what was measured -->"
PACKAGES = ("torch", "transformers", "trl", "accelerate")
SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Line:
    """A row of the table. `met`: whether the reach is; None where there is none."""

    measurement: str
    against: str
    measured: str
    reach: str = "as measured"
    met: bool | None = None

    def text(self) -> str:
        """As Markdown."""
        met = "" if self.met is None else "yes" if self.met else "no"
        return f"| {self.measurement} | {self.against} | {self.measured} | {self.reach} | {met} |"


@dataclass(frozen=True)
class Report:
    """Rows of the table, and what else is worth a reader's time, as Markdown."""

    title: str
    lines: Sequence[Line]
    details: Sequence[str] = field(default_factory=tuple)


def table(lines: Sequence[Line]) -> str:
    """The rows under their heads."""
    heads = "| measurement | against | measured | reach | reached |\n| --- | --- | --- | --- | --- |"
    return "\n".join([heads, *(line.text() for line in lines)])


def faster(measurement: str, against: str, pairs: Sequence[Pair], reach: float | None) -> Line:
    """How many times as long as ours the other side took, by wall time within each pair."""
    ratios = [pair.theirs.wall_s / pair.ours.wall_s for pair in pairs]
    return Line(
        measurement,
        against,
        f"{spread(ratios, 2)} times: {_middle(pairs)}",
        "as measured" if reach is None else f"at least {reach:g} times",
        None if reach is None else median(ratios) >= reach,
    )


def of_ceiling(measurement: str, against: str, pairs: Sequence[Pair], ceiling: float, reach: float) -> Line:
    """The same as a share of how many times as many operations the other side needs."""
    ratios = [pair.theirs.wall_s / pair.ours.wall_s / ceiling for pair in pairs]
    return Line(
        measurement,
        against,
        f"{spread(ratios, 2)} of {ceiling:.2f} times: {_middle(pairs)}",
        f"at least {reach:g} of the ceiling",
        median(ratios) >= reach,
    )


def _middle(pairs: Sequence[Pair]) -> str:
    ours, theirs = (median(taken) for taken in zip(*((p.ours.wall_s, p.theirs.wall_s) for p in pairs), strict=True))
    return f"{ours:.2f} s against {theirs:.2f} s"


def samples() -> Path:
    """The folder of sample data: $PREFDATA_SAMPLES, else ../shared/data. UserError if there is none."""
    folder = Path(os.environ.get("PREFDATA_SAMPLES") or SAMPLES)
    if not folder.is_dir():
        raise UserError(f"there is no sample data at {folder}: name its folder in PREFDATA_SAMPLES")
    return folder


def all_cores() -> None:
    """As many threads as there are cores, whatever the environment says."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def write(reports: Sequence[Report], about: Sequence[str], page: Path = PAGE) -> None:
    """Put them between the marks of the page. UserError if it has none."""
    text = page.read_text()
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise UserError(f"{page} has no place for results: the lines {BEGIN} and {END} are missing")
    details = [part for report in reports for part in (f"### {report.title}", *report.details) if report.details]
    lines = [line for report in reports for line in report.lines]
    parts = ["\n".join(f"- {line}" for line in about), table(lines), *details]
    page.write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after)


def command(run: Callable[..., Report], argv: Sequence[str] | None = None) -> int:
    """The command line of a benchmark: measure and print. 0, or 2 with a sentence for what stands in its way."""
    name, doc = _names(run)
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options = inspect.signature(run).parameters
    if "pairs" in options:
        usual = options["pairs"].default
        parser.add_argument("--pairs", type=int, default=usual, help=f"measurements of each side (default: {usual})")
    given = vars(parser.parse_args(argv))
    try:
        if given.get("pairs", 1) < 1:
            raise UserError("--pairs must be at least 1")
        all_cores()
        print(*machine(*PACKAGES), "", sep="\n", flush=True)
        report = run(**given)
    except UserError as problem:
        print(f"{name.rpartition('.')[2]}: {problem}", file=sys.stderr)
        return 2
    print(table(report.lines), *report.details, sep="\n\n")
    return 0


def _names(run: Callable[..., Any]) -> tuple[str, str | None]:
    module = sys.modules[run.__module__]
    return (module.__spec__.name if module.__spec__ else run.__module__), module.__doc__
