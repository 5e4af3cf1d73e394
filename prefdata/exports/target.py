"""What a target is: a layout of files that another program reads, and what its form of a row is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from prefdata.records import SetAside
from prefdata.versions import Version

Progress = Callable[[int], object]  # told how many rows are done since the last time


class CannotHold(Exception):
    """The target has no place for a row: a reason of `schemas.reasons` and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.aside = SetAside(reason, detail)


@dataclass(frozen=True)
class Mapped:
    """Rows in a target's form, in order: a table, or the JSON text of each."""

    rows: pa.Table | list[str]
    left_out: list[tuple[int, SetAside]] = field(default_factory=list)  # by place in the table that was mapped


@dataclass(frozen=True)
class Form:
    """How rows of a kind look in a target."""

    carries: frozenset[str]  # columns of the version that have a place in it
    map: Callable[[pa.Table], Mapped]  # pure; each row depends on itself alone


class Target(Protocol):
    """One layout of files."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def about(self) -> str:
        """In a few words, for the help."""

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds of rows it has a form for."""

    def check(self, version: Version, splits: Sequence[str]) -> None:
        """UserError if it can't hold these splits of a version of a kind that it takes."""

    def holds(self, folder: Path, version: Version, splits: Sequence[str]) -> bool:
        """Whether a folder is this very export, whole. UserError if it is, but for files that were changed since."""

    def write(self, folder: Path, version: Version, splits: Sequence[str], progress: Progress) -> None:
        """Fill an empty folder."""

    def tally(self, folder: Path, version: Version) -> dict[str, dict[str, int]]:
        """What a folder that it filled holds: by split, the rows that are there and, by reason, those that are not."""
