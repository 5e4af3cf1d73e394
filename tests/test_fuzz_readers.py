"""Whatever bytes or rows come in: every row is counted, or the file is refused in a sentence. Nothing else is raised.

Each property is drawn for its share of PREFDATA_FUZZ_SECONDS (10; `make torture` gives it ten minutes), from
PREFDATA_FUZZ_SEED on (0), so that a run that found something can be repeated.
"""

import csv
import gzip
import io
import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from prefdata import sources
from prefdata.errors import UserError
from prefdata.records import RawRow, SetAside
from prefdata.sources import formats, readers
from schemas.reasons import REASONS

SECONDS = float(os.environ.get("PREFDATA_FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("PREFDATA_FUZZ_SEED", "0"))
EXAMPLES = 100  # of one seed

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates too
NUMBER = st.integers(-(10**5), 10**5) | st.floats() | st.integers()
LEAF = st.none() | st.booleans() | NUMBER | ANY_TEXT
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3), max_leaves=6
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "prompter", "human", "gpt", "narrator"])
WORDS = st.sampled_from(
    ["", " ", "yes", "\n\nHuman: a\n\nAssistant: b", "\r", "[]", '[{"role": "user"}]', "1", "0.5", "nan"]
)
TURN = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "name", "tool_calls", "tool_call_id"]), ROLES | WORDS | JSON
)
VALUE = WORDS | TURN | st.lists(TURN, max_size=4) | st.lists(WORDS | NUMBER, max_size=4) | JSON
# every word of what the formats say they need is a column here, so that a new format is drawn for without a change
COLUMNS = sorted({word for each in formats.FORMATS for word in re.findall(r"\w+", each.NEEDS)} | {"metadata", "score"})
ROW = st.dictionaries(st.sampled_from(COLUMNS) | ANY_TEXT, VALUE, max_size=8)
FORMAT = st.sampled_from([each.NAME for each in formats.FORMATS])

PLAIN = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
TYPED = st.fixed_dictionaries(
    {
        "prompt": PLAIN | st.none(),
        "chosen": st.lists(st.fixed_dictionaries({"role": PLAIN, "content": PLAIN | st.none()}), max_size=3),
        "score": st.floats(allow_nan=False) | st.none(),
        "labels": st.lists(st.booleans(), max_size=3) | st.none(),
        "asked_at": st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)) | st.none(),
        "price": st.decimals(-1000, 1000, places=3) | st.none(),
        "counts": st.lists(st.tuples(PLAIN, st.integers(-(2**63), 2**63 - 1)), max_size=2) | st.none(),
        "rater": st.sampled_from(["a", "b"]) | st.none(),
        "notes": st.lists(PLAIN | st.none(), max_size=2) | st.none(),
    }
)
TYPES = pa.schema(
    [
        ("prompt", pa.string()),
        ("chosen", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("score", pa.float64()),
        ("labels", pa.list_(pa.bool_())),
        ("asked_at", pa.timestamp("us", "Asia/Kolkata")),
        ("price", pa.decimal128(9, 3)),
        ("counts", pa.map_(pa.string(), pa.int64())),
        ("rater", pa.dictionary(pa.int32(), pa.large_string())),
        ("notes", pa.large_list(pa.large_string())),
    ]
)


def as_json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()


def as_array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1, default=str).encode()


def as_object(rows: list[Any]) -> bytes:
    return json.dumps({"data": rows}, default=str).encode()


def as_csv(rows: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["prompt", "chosen"])
    writer.writerows([row["prompt"] or "", json.dumps(row["chosen"])] for row in rows)
    return text.getvalue().encode()


def as_parquet(rows: list[Any], types: pa.Schema = TYPES, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, types), sink, row_group_size=2, write_page_checksum=True, **options)
    return sink.getvalue()


def as_arrow_stream(rows: list[Any], types: pa.Schema = TYPES) -> bytes:
    return _as_arrow(pa.ipc.new_stream, rows, types)


def as_arrow_file(rows: list[Any], types: pa.Schema = TYPES) -> bytes:
    return _as_arrow(pa.ipc.new_file, rows, types)


def _as_arrow(opened: Any, rows: list[Any], types: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with opened(sink, types) as writer:
        writer.write_table(pa.Table.from_pylist(rows, types), max_chunksize=2)
    return bytes(sink.getvalue())


def gzipped(write: Callable[[list[Any]], bytes]) -> Callable[[list[Any]], bytes]:
    return lambda rows: gzip.compress(write(rows), mtime=0)


# (name of the file, how rows become its bytes)
TEXT_KINDS = [
    ("x.jsonl", as_json_lines),
    ("x.ndjson", as_json_lines),
    ("x.json", as_json_lines),
    ("x.json", as_array),
    ("x.json", as_object),
]
GZIPPED = [(f"{name}.gz", gzipped(write)) for name, write in TEXT_KINDS]
TYPED_KINDS = [("x.parquet", as_parquet), ("x.arrow", as_arrow_stream), ("x.arrow", as_arrow_file)]
CSV_KINDS = [("x.csv", as_csv), ("x.csv.gz", gzipped(as_csv))]


def read(folder: Path, name: str, data: bytes, format_: str = "explicit") -> list[tuple[RawRow, Any]] | UserError:
    """Each row with what it says, all invariants checked; or why the file was refused."""
    path = folder / name
    path.write_bytes(data)
    try:
        reading = sources.read(str(path), format=format_)
        stamps = reading.stamps()
        found = list(reading)
        assert reading.stamps() == stamps
    except UserError as refused:
        said = str(refused)
        assert said
        assert "Traceback" not in said
        return refused
    assert reading.sources[0]["rows"] == len(found)
    assert [raw.origin.position for raw, _ in found] == list(range(len(found)))
    for _, parsed in found:
        assert not isinstance(parsed, SetAside) or parsed.reason in REASONS
    return found


def is_empty(found: Any) -> bool:
    return isinstance(found, UserError) and "There are no rows" in str(found)


def lines_in(data: bytes) -> int:
    """An oracle of its own: what stands between line feeds and is not blank."""
    lines = data.removeprefix(readers.BOM).split(b"\n")
    return sum(bool(line.strip()) for line in lines)


def damage(draw: Any, data: bytes) -> bytes:
    """One to three things that happen to files: a byte changed, a piece lost, doubled, or put in its place."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 40)))
        piece = draw(
            st.sampled_from(
                [
                    b"",
                    data[at:end] * 2,
                    bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 : end] if at < end else b"",
                ]
            )
            | st.binary(max_size=8)
        )
        data = data[:at] + piece + data[end:]
    return data


Property = Callable[[Path], Callable[[], None]]
PROPERTIES: list[Property] = []


def drawn(strategy: Any) -> Callable[[Callable[[Path, Any, Any], None]], Property]:
    """A check of one drawn value, as a property to be drawn for as long as there is time."""

    def register(check: Callable[[Path, Any, Any], None]) -> Property:
        def for_folder(folder: Path) -> Callable[[], None]:
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
                print_blob=False,
                verbosity=Verbosity.quiet if SECONDS > 60 else Verbosity.normal,
            )
            @given(value=strategy, data=st.data())
            def run(value: Any, data: Any) -> None:
                check(folder, value, data.draw)

            return run

        for_folder.__name__ = check.__name__
        PROPERTIES.append(for_folder)
        return for_folder

    return register


@drawn(st.tuples(st.sampled_from(sorted(readers.READERS)), st.binary(max_size=200), FORMAT))
def any_bytes_are_rows_or_a_sentence(folder: Path, value: Any, draw: Any) -> None:
    suffix, data, format_ = value
    name = f"x{suffix}" + draw(st.sampled_from(["", ".gz"] if readers.READERS[suffix][1] else [""]))
    found = read(folder, name, data, format_)
    if name in ("x.jsonl", "x.ndjson"):
        assert is_empty(found) if not lines_in(data) else len(found) == lines_in(data)


@drawn(st.tuples(st.lists(ROW, max_size=5), FORMAT))
def every_json_row_comes_back_as_it_was(folder: Path, value: Any, draw: Any) -> None:
    rows, format_ = value
    name, write = draw(st.sampled_from(TEXT_KINDS + GZIPPED))
    data = write(rows)
    found = read(folder, name, data, format_)
    if not rows:
        assert is_empty(found)
    elif write in (as_array, as_object) or len(rows) > 1 or name != "x.json":
        assert len(found) == len(rows)
        values = [raw.value for raw, _ in found]
        expected = json.loads(json.dumps(rows))
        assert json.dumps(values, sort_keys=True) == json.dumps(expected, sort_keys=True)


@drawn(st.lists(TYPED, max_size=5))
def every_row_of_a_table_comes_back_as_it_was(folder: Path, rows: Any, draw: Any) -> None:
    name, write = draw(st.sampled_from(TYPED_KINDS + CSV_KINDS))
    found = read(folder, name, write(rows))
    if not rows:
        assert is_empty(found)
        return
    values = [raw.value for raw, _ in found]
    if (name, write) in TYPED_KINDS:
        assert values == rows
    else:
        assert values == [{"prompt": row["prompt"] or "", "chosen": json.dumps(row["chosen"])} for row in rows]


@drawn(st.lists(TYPED, min_size=1, max_size=5))
def a_file_that_is_cut_is_never_taken_for_a_shorter_one(folder: Path, rows: Any, draw: Any) -> None:
    whole_or_nothing = [*TYPED_KINDS, *GZIPPED, ("x.csv.gz", gzipped(as_csv)), ("x.json", as_array)]
    name, write = draw(st.sampled_from(whole_or_nothing))
    data = write(rows)
    cut = data[
        : draw(st.integers(0, len(data) - 1) | st.integers(1, len(data) // 8).map(lambda eighths: 8 * eighths - 8))
    ]
    assert isinstance(read(folder, name, cut), UserError)


@drawn(st.lists(TYPED, min_size=1, max_size=5))
def a_damaged_file_says_so_or_loses_no_row(folder: Path, rows: Any, draw: Any) -> None:
    name, write = draw(st.sampled_from([*TYPED_KINDS, *TEXT_KINDS, *GZIPPED, *CSV_KINDS]))
    whole = read(folder, name, write(rows))
    data = damage(draw, write(rows))
    found = read(folder, name, data)
    if isinstance(found, UserError):
        return
    if write is as_json_lines and name != "x.json":
        assert len(found) == lines_in(data)
    if name.endswith(".gz"):  # it carries a checksum
        assert [raw.value for raw, _ in found] == [raw.value for raw, _ in whole]
    if write is as_parquet:  # only its pages do, and its footer says how many rows there are
        assert len(found) == len(rows)


@drawn(ROW)
def every_parser_takes_any_row(folder: Path, row: Any, draw: Any) -> None:
    raw = [RawRow(None, row, "0" * 64), RawRow(None, draw(ROW), "1" * 64)]  # type: ignore[arg-type]
    for each in formats.FORMATS:
        found = list(formats.parser(each)(iter(raw)))
        assert sorted(row.digest for row, _ in found) == ["0" * 64, "1" * 64]


@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("property_", PROPERTIES, ids=lambda property_: property_.__name__)
def test_fuzz(property_: Property, tmp_path: Path) -> None:
    until = time.monotonic() + SECONDS / len(PROPERTIES)
    number = SEED
    while True:
        try:
            seed(number)(property_(tmp_path))()
        except BaseException:
            print(f"repeat it with PREFDATA_FUZZ_SEED={number}")
            raise
        number += 1
        if time.monotonic() > until:
            return
