"""What goes on beside a unit's computation: reading ahead and writing behind lose nothing and hide no error."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from prefdata.builds import pipeline
from prefdata.builds.pipeline import Behind, ahead
from prefdata.errors import Unreachable
from prefdata.work import Tables, Work

TABLES = {"x": pa.table({"a": [1]})}


def key(number: int) -> str:
    return f"{number:064x}"


def test_items_come_in_order_and_the_next_is_made_meanwhile() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    found = []
    for item in ahead(items()):
        assert second.wait(10)  # while the first is worked on
        found.append(item)
    assert found == made == [0, 1, 2]


def test_an_error_of_reading_comes_when_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("no more")

    found = ahead(items())
    assert next(found) == 0
    with pytest.raises(ValueError, match="no more"):
        next(found)


def test_reading_ends_with_the_one_who_reads() -> None:
    for item in ahead(range(10**9)):
        if item == 3:
            break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading")]


class Failing(Work):
    """Does not answer at the given writes, counted from 1."""

    def __init__(self, root: str, failures: set[int]) -> None:
        super().__init__(root)
        self.failures = failures
        self.tries = 0

    def store(self, key: str, tables: Tables) -> Tables:
        self.tries += 1
        if self.tries in self.failures:
            raise Unreachable("no answer")
        return super().store(key, tables)


def test_all_is_kept_when_the_context_ends(tmp_path: Path) -> None:
    work = Work(str(tmp_path))
    with Behind(work) as behind:
        for number in range(3):
            behind.store(key(number), TABLES)
    assert sorted(work.keys()) == [key(number) for number in range(3)]


def test_a_failed_write_is_told_at_the_next_and_tried_again(tmp_path: Path) -> None:
    work = Failing(str(tmp_path), {1})
    with Behind(work) as behind:
        behind.store(key(0), TABLES)
        with pytest.raises(Unreachable):
            behind.store(key(1), TABLES)
        behind.store(key(1), TABLES)
    assert sorted(work.keys()) == [key(0), key(1)]


@pytest.mark.parametrize(("failures", "kept"), [({1, 2}, True), ({1, 2, 3}, False)])
def test_the_last_write_is_tried_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: set[int], kept: bool
) -> None:
    monkeypatch.setattr(pipeline, "_PAUSE_S", 0.0)
    work = Failing(str(tmp_path), failures)

    def write() -> None:
        with Behind(work) as behind:
            behind.store(key(0), TABLES)

    if kept:
        write()
    else:
        with pytest.raises(Unreachable):
            write()
    assert list(work.keys()) == [key(0)] * kept


def test_an_error_of_the_computation_is_not_hidden_by_one_of_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_PAUSE_S", 0.0)
    behind = Behind(Failing(str(tmp_path), {1, 2, 3}))
    with pytest.raises(ZeroDivisionError), behind:  # noqa: PT012
        behind.store(key(0), TABLES)
        1 / 0  # noqa: B018
