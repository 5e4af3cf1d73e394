"""Damaged source files: at every byte, between the passes over a file, and where a value has no Python counterpart."""

import gzip
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata import sources
from prefdata.errors import BUGS, Unreachable, UserError
from prefdata.sources import hub, inputs, readers
from tests import test_fuzz_readers as kinds

# as small as files get, for those that are read once for each of their bytes
ROWS = [{"prompt": f"p{n}", "labels": [True, n == 0]} for n in range(3)]
TYPES = pa.schema([("prompt", pa.string()), ("labels", pa.list_(pa.bool_()))])
PARQUET = ("x.parquet", partial(kinds.as_parquet, types=TYPES, store_schema=False, write_statistics=False))
GZIPPED = ("x.jsonl.gz", kinds.gzipped(kinds.as_json_lines))
ARROW = [("x.arrow", partial(write, types=TYPES)) for write in (kinds.as_arrow_stream, kinds.as_arrow_file)]
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


@pytest.mark.parametrize(("name", "write"), [PARQUET, *ARROW, GZIPPED])
def test_a_file_cut_at_any_byte_is_refused(name: str, write: Callable[[list[Any]], bytes], tmp_path: Path) -> None:
    data = write(ROWS)
    assert values(tmp_path, name, data) == ROWS
    assert [cut for cut in range(len(data)) if values(tmp_path, name, data[:cut]) is not None] == []


@pytest.mark.parametrize(("name", "write"), [PARQUET, GZIPPED])
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
    assert values(tmp_path, "x.arrow", kinds.as_arrow_stream(ROWS, TYPES) * 2) is None


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


def test_a_time_zone_that_nobody_knows_is_a_sentence(tmp_path: Path) -> None:
    times = pa.table({"at": pa.array([0], pa.timestamp("us", "Mars/Olympus"))})
    pq.write_table(times, tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet cannot be read: it holds a value that can't be read: .*Mars"):
        sources.read(str(tmp_path / "x.parquet"), format="explicit")


def test_rows_beside_the_data_of_a_document_are_not_dropped(tmp_path: Path) -> None:
    document = {"data": LINES[:1], "test": LINES, "version": [1, 2], "by": {"name": "x"}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"x\.json cannot be read: beside its data it holds rows in 'test': each needs"):
        sources.read(str(path))
    del document["test"]
    path.write_text(json.dumps(document))
    assert [raw.value for raw, _ in sources.read(str(path))] == LINES[:1]


def test_an_empty_file_that_is_no_gzip_is_not_one_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(kinds.as_json_lines(LINES))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    assert len(list(sources.read(str(tmp_path)))) == len(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.jsonl\.gz cannot be read: it is empty, and so it is no gzip file"):
        sources.read(str(tmp_path))


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"caf\xe9/train.jsonl"])
def test_a_name_that_is_not_utf_8_is_a_sentence(name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(kinds.as_json_lines(LINES))
    for named in (str(tmp_path), str(path)):
        with pytest.raises(UserError, match=r"caf\\udce9.* is not UTF-8"):
            sources.read(named)
    monkeypatch.chdir(path.parent)  # what its rows call their source may be the name of a folder that was not given
    with pytest.raises(UserError, match=r"caf\\udce9.* is not UTF-8"):
        sources.read(path.name)


@pytest.mark.parametrize("option", ["name", "license", "origin"])
def test_an_option_that_is_not_utf_8_is_a_sentence(option: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(kinds.as_json_lines(LINES))
    with pytest.raises(UserError, match=r"'caf\\udce9' is not UTF-8"):
        sources.read(str(tmp_path / "x.jsonl"), **{option: os.fsdecode(b"caf\xe9")})


def test_a_look_at_a_table_reads_only_its_first_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    noise = random.Random(0)
    rows = [{"prompt": f"p{n}", "chosen": noise.randbytes(500).hex(), "rejected": "r"} for n in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=600)
    went_by: list[int] = []
    read = inputs._Stored.readinto

    def counted(stored: Any, buffer: Any) -> int:
        went_by.append(read(stored, buffer))
        return went_by[-1]

    monkeypatch.setattr(inputs._Stored, "readinto", counted)
    reading = sources.read(str(path))
    assert 0 < sum(went_by) < path.stat().st_size / 2
    assert len(list(reading)) == 3000
    assert reading.sources[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reading.sources[0]["bytes"] == path.stat().st_size


# -- files elsewhere, and mistakes of ours -------------------------------------------------------------------------


class Web(ThreadingHTTPServer):
    """Serves one body under any path; `status` and `cut` make it fail."""

    body = b""
    status = 200
    cut = False
    daemon_threads = True


class Answer(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        body = self.server.body if self.server.status == 200 else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if self.server.cut else body)

    do_HEAD = do_GET

    def log_message(self, format: str, *given: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "write"), [("x.jsonl", kinds.as_json_lines), PARQUET])
@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": True}])
def test_a_place_that_fails_is_told_from_a_file_that_is_damaged(
    name: str, write: Callable[[list[Any]], bytes], fault: dict[str, Any], web: Web
) -> None:
    web.body = write(ROWS)
    url = f"http://127.0.0.1:{web.server_port}/{name}"
    reading = sources.read(url, format="explicit")
    assert len(list(reading)) == len(ROWS)
    vars(web).update(fault)
    for act in (reading.stamps, lambda: list(reading), lambda: sources.read(url)):
        with pytest.raises(Unreachable, match=rf"{name} cannot be reached \(.*\)\. Look at its address and try again"):
            act()
    web.status, web.cut = 200, False
    assert len(list(reading)) == len(ROWS)
    web.body = web.body[:-3] + b"?"
    if name == "x.parquet":
        with pytest.raises(UserError, match=r"x\.parquet cannot be read"):
            list(reading)


@pytest.mark.parametrize("bug", BUGS)
def test_a_mistake_of_ours_is_not_called_a_place_that_fails(
    bug: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> Any:
        raise bug

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isfile", fails)
    with pytest.raises(bug):
        sources.read("memory://x.jsonl")


def test_a_kind_of_url_that_needs_more_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"github://x cannot be opened .*org.*another kind of URL"):
        sources.read("github://x")


@pytest.mark.parametrize(
    ("found", "raised"), [(TypeError, UserError), (ValueError, UserError), (OSError, UserError), (KeyError, KeyError)]
)
def test_a_data_set_that_fails_is_a_sentence_and_a_mistake_is_not(
    found: type[Exception], raised: type[Exception]
) -> None:
    def rows() -> Iterator[Any]:
        yield LINES[0]
        raise found("as it came out")

    read = hub.HubSplit(rows(), "someone/fruit", "train", "abc", None, False).read()
    assert next(read)[0] == LINES[0]
    with pytest.raises(raised, match="as it came out"):
        next(read)


def test_a_mistake_in_reading_a_row_is_not_the_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(row: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(hub, "table_row", fails)
    with pytest.raises(ValueError, match="a bug"):
        next(hub.HubSplit(LINES, "someone/fruit", "train", "abc", None, False).read())


def test_a_file_that_says_it_holds_more_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its footer is taken at its word by nobody: a reader that yields fewer rows would lose the others."""
    true = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *given, **named: list(true(*given, **named))[:1])
    monkeypatch.setattr(readers, "ROWS_PER_BATCH", 2)
    assert values(tmp_path, "x.parquet", kinds.as_parquet(ROWS, TYPES)) is None


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
