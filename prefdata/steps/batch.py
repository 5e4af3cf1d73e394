"""Rows of a version as cleaning steps read them: what was asked and answered, in the forms that are compared.

Each form is made once a batch, when the first step asks for it.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata.blocks import texts_in
from prefdata.logical import SIDES
from prefdata.steps.sketch import SLOTS, sketches
from prefdata.steps.words import normal

SYSTEM = ("system", "developer")
SKETCH = pl.Array(pl.UInt32, SLOTS)


class Turn(NamedTuple):
    """A message: who speaks, and all that is said, tool calls included."""

    role: str
    text: str


Turns = list[Turn]


class Batch:
    """Some rows of one kind, under the schema of a version, and the split that they stand in.

    before: of each row the one whose place it took (row_id), and what is said of that; None: they are as they were.
    """

    def __init__(self, kind: str, split: str, rows: pa.Table, before: pl.DataFrame | None = None) -> None:
        self.kind, self.split, self.rows, self.before = kind, split, rows, before
        self.sides = SIDES[kind]

    @property
    def row_ids(self) -> pl.Series:
        """What the ledger calls them."""
        return pl.Series(self.rows["row_id"]) if self.before is None else self.before["row_id"]

    @cached_property
    def prompts(self) -> list[Turns]:
        """The turns before the answers."""
        return turns(self.rows["prompt"])

    @cached_property
    def answers(self) -> dict[str, list[Turns]]:
        """The turns of each side; a prompt alone has none."""
        return {side: turns(self.rows[side]) for side in self.sides}

    @cached_property
    def prompt_texts(self) -> list[str]:
        """Normal, without system turns, which many prompts share."""
        return [_joined(turn for turn in prompt if turn.role not in SYSTEM) for prompt in self.prompts]

    @cached_property
    def user_texts(self) -> list[list[str]]:
        """Normal, turn by turn: what the user says."""
        return [[normal(turn.text) for turn in prompt if turn.role == "user"] for prompt in self.prompts]

    @cached_property
    def answer_texts(self) -> dict[str, list[str]]:
        """Normal."""
        return {side: [_joined(answer) for answer in answers] for side, answers in self.answers.items()}

    @cached_property
    def prompt_keys(self) -> pl.Series:
        """Equal for prompts, system turns and tools included, that are equal when normal."""
        return keys((_spelled(prompt), tools) for prompt, tools in zip(self.prompts, self._tools, strict=True))

    @cached_property
    def setting_keys(self) -> pl.Series:
        """Equal for prompts with the same system turns and tools: what else a prompt needs to be another's like."""
        settings = (_spelled([turn for turn in prompt if turn.role in SYSTEM]) for prompt in self.prompts)
        return keys(zip(settings, self._tools, strict=True))

    @cached_property
    def answer_keys(self) -> pl.Series:
        """Equal for rows whose answers are equal when normal, side by side, and labelled alike."""
        spelled = [map(_spelled, answers) for answers in self.answers.values()]
        return keys(zip(*spelled, map(str, self.labels), strict=True))

    @cached_property
    def side_keys(self) -> dict[str, pl.Series]:
        """The same for each side by itself, labels aside."""
        return {side: keys((_spelled(answer),) for answer in answers) for side, answers in self.answers.items()}

    @cached_property
    def labels(self) -> Sequence[Any]:
        """What unpaired rows call their answer; None for other kinds."""
        return self.rows["label"].to_pylist() if "label" in self.rows.column_names else [None] * self.rows.num_rows

    @cached_property
    def prompt_sketches(self) -> pl.Series:
        """Of the prompts' texts."""
        return _sketched(self.prompt_texts)

    @cached_property
    def answer_sketches(self) -> dict[str, pl.Series]:
        """Of the texts of each side."""
        return {side: _sketched(texts) for side, texts in self.answer_texts.items()}

    @cached_property
    def _tools(self) -> list[str]:
        return [tools or "" for tools in self.rows["tools"].to_pylist()]


def keys(parts: Any) -> pl.Series:
    """A digest of 128 bits for each tuple of texts."""
    return pl.Series([_digest(each) for each in parts], dtype=pl.Binary)


def numbers(key: pl.Series) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The first half of every digest, for arithmetic."""
    return np.frombuffer(b"".join(key.to_list()), np.uint64)[::2].copy()


def turns(column: pa.ChunkedArray) -> list[Turns]:
    """The turns of each row of a column of messages."""
    found: list[Turns] = []
    for chunk in column.chunks:
        flat = chunk.flatten()
        said = [
            Turn(role or "", _said(content or "", calls))
            for role, content, calls in zip(*(flat.field(name).to_pylist() for name in _SAID), strict=True)
        ]
        ends = np.cumsum(chunk.value_lengths().fill_null(0)).tolist()
        found += [said[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return found


_SAID = ("role", "content", "tool_calls")


def _said(content: str, calls: str | None) -> str:
    blocks = texts_in(content)
    text = content if blocks is None else "\n".join(blocks)
    return text if calls is None else f"{text}\n{calls}"


def _spelled(turns: Turns) -> str:
    return "\n\n".join(f"{turn.role}: {normal(turn.text)}" for turn in turns)


def _joined(turns: Any) -> str:
    return " ".join(normal(turn.text) for turn in turns)


def _sketched(texts: list[str]) -> pl.Series:
    return pl.Series(sketches(texts), dtype=SKETCH)


def _digest(parts: tuple[str, ...]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "big") + data)
    return found.digest()
