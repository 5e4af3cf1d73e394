"""A build that runs beside an equal one publishes nothing a second time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefdata import versions
from prefdata.builds.budget import Budget, BudgetReached
from prefdata.builds.job import Job, Silent, Stage, Unit, run
from prefdata.versions import Version
from prefdata.work import Tables, Work
from tests import published


class Beside(Job):
    """One stage of one unit; while it is computed, an equal build may be published by another process."""

    name, build_key, rows, already = "beside", "key", 1, None

    def __init__(self, root: str, other: str) -> None:
        self.root, self.work, self.notices = root, Work(root), []
        self._other = other

    def stages(self) -> Iterator[Stage]:
        yield OneUnit(self.root, self._other)

    def publish(self) -> Version:
        return published.publish(self.root)


class OneUnit(Stage):
    name = "one"

    def __init__(self, root: str, other: str) -> None:
        self._root, self._other = root, other

    def units(self) -> list[Unit]:
        return [Unit("ab" * 32, 1)]

    def compute(self, unit: Unit) -> Tables:
        published.publish(self._root, build_key=self._other)
        return {}

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(("other", "made"), [("key", ["v1"]), ("another", ["v1", "v2"])])
def test_of_two_equal_builds_that_run_at_once_one_is_published(tmp_path: Path, other: str, made: list[str]) -> None:
    root = str(tmp_path)
    outcome = run(Beside(root, other))
    assert [version.name for version in versions.every(root)] == made
    assert outcome.version.name == made[-1]
    assert outcome.published is (made == ["v1", "v2"])
    assert outcome.computed == 1
    assert ("1 units computed, and nothing published" in outcome.sentence()) is not outcome.published


class Told(OneUnit):
    """A unit that says how far it is."""

    def compute(self, unit: Unit) -> Tables:
        for share in (0.25, 1.0):
            unit.tell(share)
        return {}


class Heard(Silent):
    def __init__(self) -> None:
        self.shares: list[tuple[int, float]] = []

    def part(self, unit: Unit, share: float) -> None:
        self.shares.append((unit.rows, share))


def test_a_watcher_hears_how_much_of_a_unit_is_done(tmp_path: Path) -> None:
    class Telling(Beside):
        def stages(self) -> Iterator[Stage]:
            yield Told(self.root, self._other)

    heard = Heard()
    run(Telling(str(tmp_path), "another"), watcher=heard)
    assert heard.shares == [(1, 0.25), (1, 1.0)]


class Costly(OneUnit):
    """Three units that cost 40 tokens each."""

    def units(self) -> list[Unit]:
        return [Unit(f"{number:02x}" * 32, 1) for number in range(3)]

    def compute(self, unit: Unit) -> Tables:
        unit.spend(40)
        return {}


def test_a_spent_budget_stops_between_two_units_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    class Spending(Beside):
        def stages(self) -> Iterator[Stage]:
            yield Costly(self.root, self._other)

    root = str(tmp_path)
    with pytest.raises(BudgetReached, match=r"80 tokens were computed, and max_tokens is 50"):
        run(Spending(root, "another"), budget=Budget(50))
    assert versions.every(root) == []
    assert len(list(Work(root).keys())) == 2
    outcome = run(Spending(root, "another"), budget=Budget(50))  # what is done costs nothing
    assert (outcome.computed, outcome.reused) == (1, 2)


@pytest.mark.parametrize("budget", [Budget(max_tokens=120), Budget(max_rows=3)])
def test_what_costs_all_of_a_budget_and_no_more_is_finished(budget: Budget, tmp_path: Path) -> None:
    class Spending(Beside):
        def stages(self) -> Iterator[Stage]:
            yield Costly(self.root, self._other)

    assert run(Spending(str(tmp_path), "another"), budget=budget).published
    with pytest.raises(BudgetReached):
        budget.check()
