"""Fair timing of one thing against another: in turn, several times, medians and ratios; and what it ran on.

Wall time is what a user waits. Processor time, of this process and all it has started, also counts what other cores do
meanwhile (a server, an engine's process), and shows what other programs on the machine hide.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import psutil


@dataclass(frozen=True)
class Taken:
    """What something took, in seconds."""

    wall_s: float
    cpu_s: float

    def __sub__(self, other: "Taken") -> "Taken":
        return Taken(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)

    def __add__(self, other: "Taken") -> "Taken":
        return Taken(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def clock() -> Taken:
    """Now; of two, the difference is what was taken between. Processes that ended between are not in it."""
    return Taken(time.perf_counter(), sum(map(_cpu_s, _own_processes())))


def _own_processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


@dataclass(frozen=True)
class Pair:
    """Both sides, measured right after one another. `ours_first` says in which order."""

    ours: Taken
    theirs: Taken
    ours_first: bool

    @property
    def ratio(self) -> Taken:
        """Above 1: ours took more."""
        return Taken(self.ours.wall_s / self.theirs.wall_s, self.ours.cpu_s / self.theirs.cpu_s)

    def text(self) -> str:
        """A line."""
        return (
            f"{self.ours.wall_s:.2f} s against {self.theirs.wall_s:.2f} s, ratio {self.ratio.wall_s:.3f}; "
            f"of processors {self.ours.cpu_s:.2f} s against {self.theirs.cpu_s:.2f} s, ratio {self.ratio.cpu_s:.3f}"
        )


def paired(ours: Callable[[], Taken], theirs: Callable[[], Taken], pairs: int) -> Iterator[Pair]:
    """Measure both sides `pairs` times, one after the other; which one begins changes every time.

    A machine that grows slower or busier meanwhile slows both sides of a pair, so the ratio within a pair says more
    than the seconds do.
    """
    for number in range(pairs):
        if number % 2 == 0:
            first = ours()
            yield Pair(first, theirs(), ours_first=True)
        else:
            first = theirs()
            yield Pair(ours(), first, ours_first=False)


def timed(work: Callable[[], object]) -> Callable[[], Taken]:
    """What a call of `work` takes, to the end of what it started on a GPU."""

    def measured() -> Taken:
        began = clock()
        work()
        _finish()
        return clock() - began

    return measured


def _finish() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(numbers: Sequence[float], digits: int) -> str:
    """`median (least to most)`. ValueError for no numbers."""
    if not numbers:
        raise ValueError("there is no middle of no numbers")
    return f"{median(numbers):.{digits}f} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def table(pairs: Sequence[Pair], ours: str, theirs: str) -> str:
    """A Markdown table: median, least and most of both sides, and of the ratio within each pair."""
    sides = {
        f"{ours}, s": ([pair.ours for pair in pairs], 2),
        f"{theirs}, s": ([pair.theirs for pair in pairs], 2),
        "ratio within a pair": ([pair.ratio for pair in pairs], 3),
    }
    rows = [
        f"| {name} | {spread([one.wall_s for one in taken], digits)} | {spread([one.cpu_s for one in taken], digits)} |"
        for name, (taken, digits) in sides.items()
    ]
    header = f"| {len(pairs)} pairs: median (least to most) | wall time | processor time |"
    return "\n".join([header, "| --- | --- | --- |", *rows])


def machine(*packages: str) -> list[str]:
    """What a result was measured on: date, processor, load, and versions of Python and of those packages that are
    installed."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    found = [f"{package} {known}" for package in packages if (known := _version(package))]
    return [
        f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"machine: {_processor()}, {cores} cores, torch threads: {threads}, {device}; load before: {load}",
        f"versions: {', '.join([f'Python {platform.python_version()}', *found])}",
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
