"""Tables as text: drawn for a terminal, plain and whole for a pipe, or as CSV, JSON and Parquet.

A terminal gets short cells that wrap; anything else gets one line per row with nothing cut off.
"""

import csv
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from itertools import count
from typing import IO, TYPE_CHECKING, Any, TextIO

from prefdata.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TERMINAL_CELL = 200  # characters of a cell that a terminal shows
SHORT_CELL = 20  # characters that are never wrapped
NULL = "-"


def on_terminal() -> bool:
    """Whether a person is looking at the standard output."""
    return sys.stdout.isatty()


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """A table on the standard output."""
    lines = [list(row) for row in rows]
    if not (on_terminal() and _draw(header, lines, title)):
        _print_plain(header, lines, title)


def print_arrow(table: "pa.Table", *, title: str | None = None) -> None:
    """An Arrow table on the standard output."""
    print_table(table.column_names, rows_of(table), title=title)


def rows_of(data: "pa.Table | pa.RecordBatch") -> Iterator[tuple[Any, ...]]:
    """Each row's values, by position: an answer may hold two columns of one name, and a dict would lose one."""
    return zip(*(column.to_pylist() for column in data.columns), strict=True)


def apart(names: Sequence[str]) -> list[str]:
    """The names with every repeated one numbered: a, a_1. A name that stands there already is not taken twice."""
    told: list[str] = []
    for name in names:
        free = (f"{name}_{number}" for number in count(1))
        told.append(name if name not in told else next(new for new in free if new not in {*names, *told}))
    return told


def _draw(header: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None) -> bool:
    """Draw a table if the terminal is wide enough: short cells stay whole, long ones wrap. False if it is not."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    texts = [[_shortened(cell(value)) for value in row] for row in rows]
    least = [min(width, SHORT_CELL) for width in _widths([header, *texts])]
    if sum(least) + 2 * len(least) > console.width:
        return False
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name, width, right in zip(header, least, _numeric(header, rows), strict=True):
        table.add_column(Text(name), justify="right" if right else "left", min_width=width, overflow="fold")
    for line in texts:
        table.add_row(*map(Text, line))
    console.print(table)
    return True


def _print_plain(header: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None) -> None:
    texts = [list(header), *([_one_line(cell(value)) for value in row] for row in rows)]
    layout = list(zip(_widths(texts), _numeric(header, rows), strict=True))
    if title:
        print(title)
    for line in texts:
        print("  ".join(_padded(text, *column) for text, column in zip(line, layout, strict=True)).rstrip())
    if title:
        print()


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def _padded(text: str, width: int, right: bool) -> str:
    from rich.cells import cell_len

    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def _numeric(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[bool]:
    def numbers(at: int) -> bool:
        values = [row[at] for row in rows if row[at] is not None]
        return bool(values) and all(
            isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in values
        )

    return [numbers(at) for at in range(len(header))]


def cell(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return NULL
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else _json(value) if isinstance(value, list | dict) else str(value)


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def _shortened(text: str) -> str:
    return text if len(text) <= TERMINAL_CELL else text[: TERMINAL_CELL - 1] + "…"


# -- answers to queries --------------------------------------------------------------------------------------------


def write_csv(reader: "pa.RecordBatchReader", out: TextIO) -> None:
    """A header and one line per row; lists and structs as JSON, null as nothing."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(reader.schema.names)
    for batch in reader:
        for row in rows_of(batch):
            writer.writerow([_json(value) if isinstance(value, list | dict) else value for value in row])


def write_json(reader: "pa.RecordBatchReader", out: TextIO) -> None:
    """One array of objects. JSON has no NaN and no infinity: they become null. A name that repeats is numbered."""
    before = "["
    for row in _objects(reader):
        out.write(f"{before}\n{_json(row)}")
        before = ","
    out.write("[]\n" if before == "[" else "\n]\n")


def write_jsonl(reader: "pa.RecordBatchReader", out: TextIO) -> None:
    """One object per line, as `write_json` has them."""
    out.writelines(f"{_json(row)}\n" for row in _objects(reader))


def write_parquet(reader: "pa.RecordBatchReader", out: IO[bytes]) -> None:
    """A Parquet file. A name that repeats is numbered, since few readers take a file with two of one name."""
    import pyarrow.parquet as pq

    names = apart(reader.schema.names)
    schema = reader.schema.empty_table().rename_columns(names).schema
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.rename_columns(names))


WRITERS: dict[str, Callable[["pa.RecordBatchReader", Any], None]] = {
    "csv": write_csv,
    "json": write_json,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def write(reader: "pa.RecordBatchReader", format_: str, output: str | None) -> None:
    """An answer in one of the formats of `WRITERS`, to a file or to the standard output."""
    if output is None:
        WRITERS[format_](reader, sys.stdout)
        return
    with replacing(output, "wb" if format_ == "parquet" else "w") as file:
        WRITERS[format_](reader, file)


@contextmanager
def replacing(path: str, mode: str) -> Iterator[IO[Any]]:
    """A file that takes its name only when it is complete."""
    temporary = f"{path}.tmp-{secrets.token_hex(4)}"
    try:
        with open(
            temporary, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else ""
        ) as file:
            yield file
        os.replace(temporary, path)
    except OSError as problem:
        raise UserError(f"cannot write {path}: {problem.strerror or problem}") from problem
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _objects(reader: "pa.RecordBatchReader") -> Iterator[dict[str, Any]]:
    names = apart(reader.schema.names)
    for batch in reader:
        for row in rows_of(batch):
            yield dict(zip(names, row, strict=True))


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """A value of JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        # sums of integers are decimals without a fraction, and may have more digits than a float
        return int(value) if value.as_tuple().exponent == 0 else _plain(float(value))
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | bool) else str(value)
