"""Work units: what is done stays done, and only what is whole counts."""

from pathlib import Path

import pyarrow as pa
import pytest

from prefdata import cli
from prefdata.work import Work, unit_key

KEY = "ab" * 32

TABLES = {"rows": pa.table({"a": [1, 2], "b": [[1.5], []]}), "lines": pa.table({"c": pa.array([], pa.string())})}


def test_a_unit_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    work = Work(str(tmp_path))
    assert work.load(KEY) is None
    work.store(KEY, TABLES)
    assert Work(str(tmp_path)).load(KEY) == TABLES
    assert list(work.keys()) == [KEY]


def test_a_unit_without_tables_is_a_unit(tmp_path: Path) -> None:
    work = Work(str(tmp_path))
    assert [work.store(KEY, {}), work.store(KEY, TABLES), work.load(KEY)] == [{}, {}, {}]


@pytest.mark.parametrize(
    "stranger", [".DS_Store", "ab/.nfs0001", "ab/mine.txt", f"cd/{KEY}", f"ab/{KEY[:-1]}", "x/y/z"]
)
def test_only_units_are_units(tmp_path: Path, stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    Work(str(tmp_path)).store(KEY, TABLES)
    path = tmp_path / ".work" / "units" / stranger
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"strange")
    assert list(Work(str(tmp_path)).keys()) == [KEY]
    assert cli.main(["verify", "--all", "--root", str(tmp_path)]) == 0, capsys.readouterr().out


def test_a_unit_that_goes_while_it_is_looked_at_is_not_damaged(tmp_path: Path) -> None:
    work = Work(str(tmp_path))
    work.store(KEY, TABLES)
    keys = list(work.keys())
    (tmp_path / work.path(KEY)).unlink()
    assert all(work.sound(key) for key in keys)


def test_the_first_of_two_results_stays(tmp_path: Path) -> None:
    first, second = {"t": pa.table({"a": [1]})}, {"t": pa.table({"a": [2]})}
    work = Work(str(tmp_path))
    assert work.store("ab", first) == first
    assert work.store("ab", second) == first
    assert work.load("ab") == first


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_unit_counts_as_not_done(tmp_path: Path, damage: str) -> None:
    work = Work(str(tmp_path))
    work.store("ab", TABLES)
    file = tmp_path / ".work" / "units" / "ab" / "ab"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes({"cut": bytes(data[:-1]), "flip": bytes(data), "empty": b""}[damage])
    assert work.load("ab") is None
    work.store("ab", TABLES)
    assert work.load("ab") == TABLES


def test_a_key_depends_on_stage_configuration_members_and_their_order() -> None:
    base = unit_key("s", {"a": 1}, ["x", "y"])
    assert base == unit_key("s", {"a": 1}, ["x", "y"])
    others = [
        unit_key("t", {"a": 1}, ["x", "y"]),
        unit_key("s", {"a": 2}, ["x", "y"]),
        unit_key("s", {"a": 1}, ["y", "x"]),
    ]
    assert len({base, *others}) == 4
