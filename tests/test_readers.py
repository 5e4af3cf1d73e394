"""Damaged source files: at every byte, between the passes over a file, and where a value has no Python counterpart."""

import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata import sources
from prefdata.errors import UserError
from prefdata.sources import inputs, readers
from tests import test_fuzz_readers as kinds

ROWS = [
    {"prompt": f"p{n}", "chosen": [{"role": "user", "content": f"c{n}"}], "score": float(n), "labels": [True, n == 0]}
    for n in range(3)
]
LINES = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": "r"} for n in range(5)]


def values(folder: Path, name: str, data: bytes) -> list[Any] | None:
    """What the rows of a file hold; None if it is refused."""
    path = folder / name
    path.write_bytes(data)
    file = inputs.File(fsspec.filesystem("file"), str(path), name, name, None)
    try:
        return [value for value, _ in file.read(inputs.Tally())]
    except UserError:
        return None


@pytest.mark.parametrize(("name", "write"), [*kinds.TYPED_KINDS, ("x.jsonl.gz", kinds.gzipped(kinds.as_json_lines))])
def test_a_file_cut_at_any_byte_is_refused(name: str, write: Callable[[list[Any]], bytes], tmp_path: Path) -> None:
    data = write(ROWS)
    assert values(tmp_path, name, data) == ROWS
    # an empty .gz is what gzip makes of nothing but a header: it holds no row, which reading refuses
    assert [cut for cut in range(1, len(data)) if values(tmp_path, name, data[:cut]) is not None] == []


@pytest.mark.parametrize(
    ("name", "write"), [("x.parquet", kinds.as_parquet), ("x.jsonl.gz", kinds.gzipped(kinds.as_json_lines))]
)
def test_a_flipped_byte_is_refused_or_changes_no_value(
    name: str, write: Callable[[list[Any]], bytes], tmp_path: Path
) -> None:
    """Where there are checksums; a Parquet footer has none, so there a name may change, but no row is lost."""
    data = write(ROWS)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little") if name == "x.parquet" else len(data)
    refused = 0
    for at in range(len(data)):
        found = values(tmp_path, name, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        refused += found is None
        assert found is None or (found == ROWS if at < footer else len(found) == len(ROWS)), at
    assert refused > footer / 2


def test_a_cut_last_line_is_set_aside_and_the_lines_before_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(kinds.as_json_lines(LINES)[:-5])
    reasons = [getattr(parsed, "reason", None) for _, parsed in sources.read(str(path))]
    assert reasons == [None] * 4 + ["unreadable_row"]


def test_two_streams_in_one_file_are_not_read_as_the_first(tmp_path: Path) -> None:
    assert values(tmp_path, "x.arrow", kinds.as_arrow_stream(ROWS) * 2) is None


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_columns_of_one_name_are_refused(kind: str, tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(sink, table.schema) as writer:
            writer.write_table(table)
    assert values(tmp_path, "x.parquet" if kind == "parquet" else "x.arrow", bytes(sink.getvalue())) is None


def test_a_date_beyond_pythons_is_a_sentence(tmp_path: Path) -> None:
    days = pa.table({"day": pa.array([10**7], pa.date32())})
    pq.write_table(days, tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet cannot be read: it holds a value that can't be read"):
        sources.read(str(tmp_path / "x.parquet"), format="explicit")
    pq.write_table(pa.table({"day": [date(2026, 1, 1)]}), tmp_path / "x.parquet")
    assert len(list(sources.read(str(tmp_path / "x.parquet"), format="explicit"))) == 1


def test_a_file_that_says_it_holds_more_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its footer is taken at its word by nobody: a reader that yields fewer rows would lose the others."""
    true = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *given, **named: list(true(*given, **named))[:1])
    monkeypatch.setattr(readers, "ROWS_PER_BATCH", 2)
    assert values(tmp_path, "x.parquet", kinds.as_parquet(ROWS)) is None


def rewrite(path: Path) -> None:
    """One answer is another; as many bytes as before."""
    path.write_bytes(path.read_bytes().replace(b"c3", b"d3"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
@pytest.mark.parametrize("change", [rewrite, lambda path: path.write_bytes(path.read_bytes()[:-7]), Path.unlink])
def test_a_file_that_changes_after_it_was_stamped_is_refused(
    name: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(kinds.as_json_lines(LINES))
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(LINES), path, compression="none")
    reading = sources.read(str(path))
    reading.stamps()
    assert len(list(reading)) == 5
    change(path)
    with pytest.raises(UserError, match=r"x\.(jsonl|parquet) (changed while it was read|cannot be read)"):
        list(reading)


def test_a_table_that_changes_between_hashing_and_reading_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(LINES), path, compression="none")
    reading = iter(sources.read(str(path)))
    next(reading)
    rewrite(path)
    os.utime(path, (time.time() + 60, time.time() + 60))
    with pytest.raises(UserError, match=r"x\.parquet cannot be read: it changed while it was read"):
        list(reading)
