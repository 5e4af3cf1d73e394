"""Progress of a build for whoever waits at a terminal: one bar a stage, on standard error."""

import sys
from typing import Any

from tqdm import tqdm

from prefdata.builds.job import Unit


class Bars:
    """A watcher. Where standard error is no terminal it shows nothing."""

    def __init__(self, name: str) -> None:
        self._name, self._shown = name, 0
        self._rows = self._tokens = 0
        self._bar: Any = None

    def stage(self, name: str, rows: int | None) -> None:
        """Close the last bar and begin the next."""
        self.close()
        self._rows = self._tokens = self._shown = 0
        self._bar = tqdm(
            total=rows, desc=f"{self._name}: {name}", unit=" rows", leave=False, disable=not sys.stderr.isatty()
        )

    def begins(self, unit: Unit) -> None:
        """The bar stays where it is."""

    def part(self, unit: Unit, share: float) -> None:
        """Move the bar within a unit."""
        self._move(self._rows + int(share * unit.rows))

    def spent(self, unit: Unit, tokens: int) -> None:
        """Count tokens."""
        self._tokens += tokens
        self._bar.set_postfix_str(f"{self._tokens:,} tokens", refresh=False)

    def unit(self, unit: Unit, reused: bool) -> None:
        """Move the bar to the end of a unit."""
        self._rows += unit.rows
        self._move(self._rows)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _move(self, rows: int) -> None:
        self._bar.update(rows - self._shown)
        self._shown = rows
