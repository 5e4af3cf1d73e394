"""JSON lines with every column of a version: nothing is lost, and the schema that reads them back stands beside them.

Messages have the keys that are set; a column without a value is null. JSON columns stay the text that they are. Numbers
are spelled as short as they are exact, so that float32 values come back bit for bit.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from prefdata.exports.by_rows import RowTarget
from prefdata.exports.target import Form, Mapped
from prefdata.logical import BASE
from prefdata.versions import Version
from schemas.columns import MESSAGES

SCHEMA = "_schema.json"


def form(version: Version) -> Form:
    """All columns."""
    return Form(frozenset(version.columns()), mapped)


def mapped(table: pa.Table) -> Mapped:
    """One object per row: the columns of messages, then all others."""
    import polars as pl  # spells lists of numbers many times faster than Python does

    messages = [field.name for field in table.schema if field.type == MESSAGES]
    frame = pl.from_arrow(table.drop_columns(messages))
    assert isinstance(frame, pl.DataFrame)
    others = frame.select(pl.struct(pl.all()).struct.json_encode()).to_series().to_list()
    lines = []
    for turns, rest in zip(table.select(messages).to_pylist(), others, strict=True):
        head = {name: [_set(turn) for turn in value] for name, value in turns.items()}
        lines.append(f"{json.dumps(head, ensure_ascii=False, separators=(',', ':'))[:-1]},{rest[1:]}")
    return Mapped(lines)


def schema_text(version: Version, splits: Sequence[str]) -> dict[str, str]:
    """The columns, with type and meaning, in order."""
    columns = [
        {"name": field.name, "type": str(field.type), "meaning": (field.metadata or {}).get(b"meaning", b"").decode()}
        for field in version.schema
    ]
    return {SCHEMA: json.dumps(columns, ensure_ascii=False, indent=1) + "\n"}


def _set(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if value is not None}


TARGET = RowTarget(
    name="jsonl",
    about="JSON lines with every column",
    forms=dict.fromkeys(BASE, form),
    texts=schema_text,
    usage=f"One object per row, with every column of the version; `{SCHEMA}` says what each column means.",
)
