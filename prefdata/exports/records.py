"""Rows of a version as the records they were made from, for targets that read text alone."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from prefdata.exports.target import CannotHold, Form, Mapped
from prefdata.records import Comparison, Completion, Judged, Message, Messages, Record
from schemas import completions, pairs, unpaired

COLUMNS: dict[str, tuple[str, ...]] = {
    pairs.KIND: ("prompt", "chosen", "rejected", "tools"),
    completions.KIND: ("prompt", "completion", "tools"),
    unpaired.KIND: ("prompt", "completion", "tools", "label"),
}
_RECORDS: dict[str, type[Record]] = {pairs.KIND: Comparison, completions.KIND: Completion, unpaired.KIND: Judged}


def form(kind: str, as_json: Callable[[Any], dict[str, Any]], *, with_ids: bool = False) -> Form:
    """The form of a target in which each record is a JSON object. `as_json` raises CannotHold where it can't be one.

    with_ids: the object also gets the row's `row_id`, by which it can be joined to the version.
    """

    def mapped(table: pa.Table) -> Mapped:
        lines, left_out = [], []
        for place, (row_id, record) in enumerate(zip(table["row_id"].to_pylist(), records(kind, table), strict=True)):
            try:
                found = as_json(record)
            except CannotHold as no:
                left_out.append((place, no.aside))
                continue
            lines.append(json.dumps({"row_id": row_id, **found} if with_ids else found, ensure_ascii=False))
        return Mapped(lines, left_out)

    return Form(frozenset({*COLUMNS[kind], *(["row_id"] if with_ids else [])}), mapped)


def records(kind: str, table: pa.Table) -> Iterator[Record]:
    """The prompt, the answers and the label of each row."""
    for row in table.select(COLUMNS[kind]).to_pylist():
        stated: dict[str, Any] = {
            name: _messages(value) if isinstance(value, list) else value for name, value in row.items()
        }
        yield _RECORDS[kind](**stated)


def _messages(turns: list[dict[str, str | None]]) -> Messages:
    return tuple(Message.from_mapping(turn) for turn in turns)
