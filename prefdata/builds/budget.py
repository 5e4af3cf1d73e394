"""A limit on what a build computes: tokens that models read or write. Reached, it stops between two units, and all is kept."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefdata.errors import UserError

if TYPE_CHECKING:
    from prefdata.builds.job import Unit, Watcher


class BudgetReached(UserError):
    """The build stopped because it was told to; the same command with a larger budget goes on."""


@dataclass
class Budget:
    """What may be spent, over all builds that it is handed to."""

    max_tokens: int
    spent: int = 0

    def check(self) -> None:
        """BudgetReached if all of it is spent."""
        if self.spent >= self.max_tokens:
            raise BudgetReached(
                f"stopped by the budget: {self.spent:,} tokens were computed, and max_tokens is {self.max_tokens:,}."
                " Finished units are kept; the same command with a larger budget goes on from them."
            )


class Metered:
    """A watcher that counts what is spent and tells another watcher everything."""

    def __init__(self, watcher: "Watcher", budget: Budget) -> None:
        self._watcher, self._budget = watcher, budget

    def stage(self, name: str, rows: int | None) -> None:
        """A stage begins."""
        self._watcher.stage(name, rows)

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
            self._budget.check()
