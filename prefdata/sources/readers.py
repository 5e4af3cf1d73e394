"""File formats: bytes of one file in, rows out, streamed. Which columns mean what is decided elsewhere.

A reader yields (value, bytes as read). A row that cannot be read is a `SetAside` in its place; a file that cannot be
read raises, and the caller names it. Lines end at a line feed (with or without a carriage return) and nowhere else, so
Unicode's other line separators stay inside strings; in a CSV file a carriage return alone ends a row too, unless it
stands in quotes. A blank line is not a row.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from itertools import chain
from typing import Any, BinaryIO, cast

from prefdata.records import SetAside

Value = Mapping[str, object] | SetAside
Read = tuple[Value, bytes]
Reader = Callable[[BinaryIO], Iterator[Read]]

BOM = b"\xef\xbb\xbf"
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
ROWS_PER_BATCH = 1024
CHUNK = 1 << 16
MOST_DIGITS = 4000  # Python refuses to parse longer integers
OTHER_DELIMITERS = (";", "\t", "|", ",")  # in a header of one column, what was meant to part several
LONGEST_FIELD = 1 << 30  # of a CSV file, in characters; Python's own limit is 131,072


class MalformedError(ValueError):
    """The file as a whole is not what its name says."""


class _UnreadableError(ValueError):
    """Legal JSON syntax that does not say one clear thing."""


def json_lines(stream: BinaryIO) -> Iterator[Read]:
    """One JSON value on each line."""
    for number, line in enumerate(stream):
        line = line.removeprefix(BOM) if number == 0 else line
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if line.strip():
            yield _json_row(line), line


def json_document(stream: BinaryIO) -> Iterator[Read]:
    """A JSON array of rows (streamed), one object whose `data` is such an array, or JSON lines under another name."""
    with _as_text(stream, newline="\n") as text:
        opening = text.read(1)
        while opening and opening in _SPACE:
            opening = text.read(1)
        if opening == "[":
            yield from map(_text_row, _array_items(text))
            return
        head = opening + text.readline()
        if opening == "{" and not head.rstrip().endswith("}"):
            yield from _object_of_rows(head + text.read())
        else:
            yield from _lines_of_text(head, text)


def comma_separated(stream: BinaryIO, delimiter: str = ",") -> Iterator[Read]:
    """Comma-separated values under a header line; every value is text."""
    csv.field_size_limit(LONGEST_FIELD)
    with _as_text(stream, newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        header = next(lines, [])
        _refuse_repeated(header)
        _refuse_undivided(header)
        for fields in lines:
            if fields:
                raw = json.dumps([header, fields], ensure_ascii=False).encode("utf-8", "surrogateescape")
                yield _csv_row(header, fields), raw


def tab_separated(stream: BinaryIO) -> Iterator[Read]:
    """The same with tabs for commas."""
    return comma_separated(stream, "\t")


def parquet(stream: BinaryIO) -> Iterator[Read]:
    """Apache Parquet, a row group in memory at a time."""
    import pyarrow.parquet as pq

    # what is buffered ahead is all row groups at once, which a look at the first rows would pay for too
    file = pq.ParquetFile(stream, page_checksum_verification=True, pre_buffer=False)
    _refuse_repeated(file.schema_arrow.names)
    rows = 0
    for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False):
        rows += batch.num_rows
        yield from _batch_rows(batch)
    if rows != file.metadata.num_rows:
        raise MalformedError(f"it says that it holds {file.metadata.num_rows} rows, and {rows} could be read")


def arrow(stream: BinaryIO) -> Iterator[Read]:
    """Arrow IPC, as a file or as a stream (what `datasets` saves)."""
    import pyarrow as pa

    magic = stream.read(len(ARROW_FILE_MAGIC))
    stream.seek(0)
    if magic == ARROW_FILE_MAGIC:
        whole = pa.ipc.open_file(stream)
        _refuse_repeated(whole.schema.names)
        for index in range(whole.num_record_batches):
            yield from _batch_rows(whole.get_batch(index))
        return
    streamed = pa.ipc.open_stream(stream)
    _refuse_repeated(streamed.schema.names)
    for batch in streamed:
        yield from _batch_rows(batch)
    _refuse_unended(stream)


def _batch_rows(batch: Any) -> Iterator[Read]:
    """The rows of a batch whose own account of itself holds."""
    batch.validate(full=True)
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, RecursionError, KeyError) as problem:
        # a date beyond Python's, text that is not UTF-8, a time zone that nobody knows
        raise MalformedError(f"it holds a value that can't be read: {problem}") from problem
    yield from map(table_row, rows)


def _refuse_repeated(names: list[str]) -> None:
    """One of two columns of a name would vanish."""
    if len(set(names)) != len(names):
        raise MalformedError("two of its columns have the same name")


def _refuse_undivided(header: list[str]) -> None:
    """A file whose columns are parted by something else reads as one column of whole lines."""
    if len(header) == 1 and (mark := next((mark for mark in OTHER_DELIMITERS if mark in header[0]), None)):
        raise MalformedError(
            f"its header {header[0][:80]!r} is one column, and seems to be several parted by {mark!r}; "
            "part them by commas, or by tabs in a .tsv file"
        )


def _refuse_unended(stream: BinaryIO) -> None:
    """A stream that was cut between two batches reads as a shorter one, and of two in one file the second is not read."""
    at = stream.tell()
    stream.seek(max(0, at - len(ARROW_STREAM_END)))
    if stream.read() != ARROW_STREAM_END:
        raise MalformedError("its batches do not end where the file ends")


def table_row(row: object) -> Read:
    """A row of typed columns; its bytes are its JSON, columns sorted."""
    if not isinstance(row, Mapping):
        return SetAside("not_an_object", f"the record is {type(row).__name__}"), str(row).encode(
            "utf-8", "surrogatepass"
        )
    raw = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return row, raw.encode("utf-8", "surrogatepass")


# suffix -> (reader, whether a .gz of it is read too: formats that are read from the end backwards are not)
READERS: dict[str, tuple[Reader, bool]] = {
    ".jsonl": (json_lines, True),
    ".ndjson": (json_lines, True),
    ".json": (json_document, True),
    ".csv": (comma_separated, True),
    ".tsv": (tab_separated, True),
    ".parquet": (parquet, False),
    ".arrow": (arrow, False),
}
SUFFIXES = ", ".join(READERS) + "; " + ", ".join(f"{suffix}.gz" for suffix, (_, gz) in READERS.items() if gz)


def reader_of(name: str) -> Reader | None:
    """The reader for a file of this name; None when there is none."""
    name = name.lower()
    for suffix, (reader, may_be_gzipped) in READERS.items():
        if name.endswith(suffix):
            return reader
        if may_be_gzipped and name.endswith(suffix + ".gz"):
            return _gunzipped(reader)
    return None


def reads_sequentially(reader: Reader) -> bool:
    """Whether a reader goes through its file once, from the first byte to the last, so that it is hashed on the way."""
    return reader not in (parquet, arrow)


def _gunzipped(reader: Reader) -> Reader:
    def read(stream: BinaryIO) -> Iterator[Read]:
        if not cast(BufferedReader, stream).peek(1):  # what gzip makes of nothing has a header all the same
            raise MalformedError("it is empty, and so it is no gzip file")
        with gzip.GzipFile(fileobj=stream) as plain:
            yield from reader(cast(BinaryIO, plain))

    return read


@contextmanager
def _as_text(stream: BinaryIO, *, newline: str) -> Iterator[TextIOWrapper]:
    """The stream as text, where bytes that are not UTF-8 can be told apart later; the stream stays open."""
    text = TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    try:
        yield text
    finally:
        text.detach()


def _json_row(raw: bytes) -> Value:
    """One row's JSON, read strictly: UTF-8, no repeated key. NaN and infinities stay for the format to judge."""
    try:
        value = _STRICT.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return SetAside("unreadable_row", f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}")
    except json.JSONDecodeError as error:
        return SetAside("unreadable_row", f"not JSON: {error.msg} at character {error.pos}")
    except _UnreadableError as error:
        return SetAside("unreadable_row", str(error))
    except RecursionError:
        return SetAside("unreadable_row", "nested too deeply")
    if not isinstance(value, dict):
        return SetAside("not_an_object", f"the record is {type(value).__name__}")
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _UnreadableError(f"the key {repeated!r} stands twice in one object")
    return row


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _UnreadableError(f"a number has {len(digits)} digits")
    return int(digits)


_STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_int=_integer)
_SHAPE = json.JSONDecoder(parse_int=str, parse_float=str)  # finds where a value ends, whatever it says
_SPACE = " \t\r\n"


def _array_items(text: TextIOWrapper) -> Iterator[str]:
    """The source text of each item of a JSON array whose bracket is open, reading no further than an item needs."""
    buffer, at, chunk, first = "", 0, CHUNK, True
    while True:
        at = _skip_space(buffer, at)
        found = _next_item(buffer, at, first=first)
        if found is None:
            more = text.read(chunk)
            if not more:
                raise MalformedError(_array_problem(buffer, at))
            buffer, at, chunk = buffer[at:] + more, 0, chunk * 2
            continue
        start, end = found
        if start == end:
            if (buffer[end + 1 :] + text.read()).strip(_SPACE):
                raise MalformedError("there is more text after its array ends")
            return
        yield buffer[start:end]
        at, first, chunk = end, False, CHUNK


def _next_item(buffer: str, at: int, *, first: bool) -> tuple[int, int] | None:
    """(start, end) of the next item; start == end at the closing bracket; None: the buffer does not hold it whole."""
    if at < len(buffer) and buffer[at] == "]":
        return at, at
    if not first:
        if buffer[at : at + 1] != ",":
            return None
        at = _skip_space(buffer, at + 1)
    try:
        _, end = _SHAPE.raw_decode(buffer, at)
    except json.JSONDecodeError:
        return None
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    # what follows must be in sight too: 12 may go on as 123
    return (at, end) if _skip_space(buffer, end) < len(buffer) else None


def _array_problem(buffer: str, at: int) -> str:
    found = buffer[at : at + 40].strip()
    return f"its JSON array breaks off or is not JSON near {found!r}" if found else "its JSON array has no end"


def _skip_space(buffer: str, at: int) -> int:
    while at < len(buffer) and buffer[at] in _SPACE:
        at += 1
    return at


def _lines_of_text(head: str, text: TextIOWrapper) -> Iterator[Read]:
    """JSON lines in a .json file; an object that is the file's only line may hold the rows in its `data`."""
    lines = (line for line in chain([head], text) if line.strip())
    first, second = next(lines, None), next(lines, None)
    if first is not None and second is None and first.startswith("{"):
        yield from _object_of_rows(first)
    else:
        yield from (_text_row(line) for line in chain(filter(None, (first, second)), lines))


def _text_row(source: str) -> Read:
    raw = source.removesuffix("\n").removesuffix("\r").encode("utf-8", "surrogateescape")
    return _json_row(raw), raw


def _object_of_rows(document: str) -> Iterator[Read]:
    """The `data` list of one JSON object, or the object itself as the only row; refused if it holds more lists of rows."""
    value, raw = _text_row(document.strip())
    if isinstance(value, SetAside):
        raise MalformedError(f"it is one JSON object, but {value.detail}")
    data = value.get("data")
    if not isinstance(data, list):
        yield value, raw
        return
    unread = [key for key, rows in value.items() if key != "data" and _holds_rows(rows)]
    if unread:
        raise MalformedError(
            f"beside its data it holds rows in {', '.join(map(repr, unread))}: each needs a file of its own"
        )
    yield from map(table_row, data)


def _holds_rows(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _csv_row(header: list[str], fields: list[str]) -> Value:
    if len(fields) != len(header):
        return SetAside("unreadable_row", f"{len(fields)} fields under {len(header)} column names")
    try:
        "".join(fields).encode("utf-8")
    except UnicodeEncodeError:
        return SetAside("unreadable_row", "not UTF-8")
    return dict(zip(header, fields, strict=True))
