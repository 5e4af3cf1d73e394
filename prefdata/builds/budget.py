"""A limit on what builds compute: tokens that models read or write, rows. Reached, it stops between two units, and all is kept."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefdata.errors import UserError

if TYPE_CHECKING:
    from prefdata.builds.job import Unit, Watcher


class BudgetReached(UserError):
    """The build stopped because it was told to; the same command with a larger budget goes on."""


@dataclass
class Budget:
    """What may be spent, over all builds that it is handed to. None: as much as it takes."""

    max_tokens: int | None = None
    max_rows: int | None = None
    spent: int = 0  # tokens
    rows: int = 0  # of units computed now, each stage counting its own

    def check(self) -> None:
        """BudgetReached if all of it is spent."""
        if self.max_tokens is not None and self.spent >= self.max_tokens:
            raise _reached(f"{self.spent:,} tokens were computed, and max_tokens is {self.max_tokens:,}")
        if self.max_rows is not None and self.rows >= self.max_rows:
            raise _reached(f"{self.rows:,} rows were computed, and max_rows is {self.max_rows:,}")


def _reached(what: str) -> BudgetReached:
    return BudgetReached(
        f"stopped by the budget: {what}."
        " Finished units are kept; the same command with a larger budget goes on from them."
    )


class Metered:
    """A watcher that counts what is spent and tells another watcher everything."""

    def __init__(self, watcher: "Watcher", budget: Budget) -> None:
        self._watcher, self._budget = watcher, budget

    def stage(self, name: str, rows: int | None) -> None:
        """A stage begins."""
        self._watcher.stage(name, rows)

    def begins(self, unit: "Unit") -> None:
        """A unit begins, if anything is left to spend on it; so what costs all of the budget and no more is finished."""
        self._budget.check()
        self._watcher.begins(unit)

    def part(self, unit: "Unit", share: float) -> None:
        """A unit goes on."""
        self._watcher.part(unit, share)

    def spent(self, unit: "Unit", tokens: int) -> None:
        """So many tokens were computed for a unit."""
        self._budget.spent += tokens
        self._watcher.spent(unit, tokens)

    def unit(self, unit: "Unit", reused: bool) -> None:
        """A unit is done; what it cost is counted by now."""
        self._watcher.unit(unit, reused)
        if not reused:
            self._budget.rows += unit.rows
