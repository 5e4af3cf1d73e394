"""Rows with their private data masked: other text, so other tokens and other ids.

A row is masked only where its stored tokens are made again from its text as it stands; what a model drew is its tokens, and a
text that nobody drew would stand in their place. Log-probs of the old tokens are no one's any more.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from prefdata.blocks import content_of, texts_in
from prefdata.logical import SIDES
from prefdata.records import Message, Record, SetAside, sides
from prefdata.rows import records
from prefdata.steps import tokenise
from prefdata.steps.private_data import mask
from prefdata.steps.tokenise import Row
from prefdata.tokens import Limits, Renderer

_DRAWN = ("segment_start", "sample_index")  # set where the tokens of a row are a model's draw
_OF_TOKENS = ("_ids", "_tokens", "_content_start", "_finish", "_loss_mask")
_OF_TEXT = ("row_id", "prompt_id", "prompt", "shared_prefix")


def masked(kind: str, rows: pa.Table, renderer: Renderer, limits: Limits) -> list[Row | SetAside]:
    """For each row the one that stands in its place, without log-probs, or why there is none."""
    before = list(records(kind, rows))
    own = tokenise.rows(before, renderer, limits)
    made = tokenise.rows([_masked(record) for record in before], renderer, limits)
    return [_in_place(kind, row, again, new) for row, again, new in zip(rows.to_pylist(), own, made, strict=True)]


def _in_place(kind: str, row: Row, again: Row | SetAside, new: Row | SetAside) -> Row | SetAside:
    if any(row.get(name) is not None for name in _DRAWN):
        return SetAside("tokens_not_from_text", "a model drew its tokens")
    if isinstance(again, SetAside) or any(
        again[name] != row.get(name) for name in again if name.endswith(("_ids", "_loss_mask"))
    ):
        return SetAside("tokens_not_from_text", "its text gives other tokens than those that are stored")
    if isinstance(new, SetAside):
        return SetAside(new.reason, f"masked: {new.detail}" if new.detail else "masked")
    of_text = {name: value for name, value in new.items() if name in (*_OF_TEXT, *SIDES[kind])}
    of_tokens = {name: value for name, value in new.items() if name.endswith(_OF_TOKENS)}
    no_one_s: dict[str, Any] = {name: None for name in row if name.startswith(("ref_", "reference_"))}
    return {**row, **of_text, **of_tokens, **no_one_s}


def _masked(record: Record) -> Record:
    said = {"prompt": record.prompt, **sides(record)}
    changed: dict[str, Any] = {name: tuple(map(_message, turns)) for name, turns in said.items()}
    return replace(record, **changed)


def _message(message: Message) -> Message:
    blocks = texts_in(message.content)
    content = mask(message.content) if blocks is None else content_of(list(map(mask, blocks)))
    return replace(message, content=content, tool_calls=_in_json(message.tool_calls))


def _in_json(text: str | None) -> str | None:
    """JSON text with every string in it masked; left as it is if there is nothing to mask."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return mask(text)
    changed = _each_string(value, mask)
    return text if changed == value else json.dumps(changed, ensure_ascii=False)


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_string(item, change) for item in value]
    return {key: _each_string(item, change) for key, item in value.items()} if isinstance(value, dict) else value
