"""Rows of a version as the records they were made from: text and labels, without tokens."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from prefdata.records import Comparison, Completion, Judged, Message, Messages, Prompt, Record
from schemas import completions, pairs, prompts, unpaired

COLUMNS: dict[str, tuple[str, ...]] = {
    pairs.KIND: ("prompt", "chosen", "rejected", "tools"),
    completions.KIND: ("prompt", "completion", "tools"),
    unpaired.KIND: ("prompt", "completion", "tools", "label"),
    prompts.KIND: ("prompt", "tools"),
}
_RECORDS: dict[str, type[Record]] = {
    pairs.KIND: Comparison,
    completions.KIND: Completion,
    unpaired.KIND: Judged,
    prompts.KIND: Prompt,
}


def records(kind: str, table: pa.Table) -> Iterator[Record]:
    """The prompt, the answers and the label of each row."""
    for row in table.select(COLUMNS[kind]).to_pylist():
        stated: dict[str, Any] = {
            name: _messages(value) if isinstance(value, list) else value for name, value in row.items()
        }
        yield _RECORDS[kind](**stated)


def _messages(turns: list[dict[str, str | None]]) -> Messages:
    return tuple(Message.from_mapping(turn) for turn in turns)
