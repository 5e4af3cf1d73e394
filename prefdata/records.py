"""What a source yields before tokens exist: comparisons, completions, judged answers, prompts, and rows set aside."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Content blocks and tool calls are JSON strings; None keys are absent to the chat template."""

    role: str
    content: str
    name: str | None = None
    tool_calls: str | None = None
    tool_call_id: str | None = None
    # False: an assistant turn inside an answer that the source says is not to be scored. No part of what is said,
    # so no part of an id; while a source is read, also True, where it says that a turn is to be scored
    scored: bool | None = None

    def as_dict(self) -> dict[str, str]:
        """What is said: only the keys that are set, in a fixed order."""
        turn = {"role": self.role, "content": self.content}
        if self.name is not None:
            turn["name"] = self.name
        if self.tool_calls is not None:
            turn["tool_calls"] = self.tool_calls
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn

    @classmethod
    def from_mapping(cls, turn: Mapping[str, str | None]) -> "Message":
        """From a row read back from a version, where absent keys come as None."""
        return cls(
            role=turn["role"] or "",
            content=turn["content"] or "",
            name=turn.get("name"),
            tool_calls=turn.get("tool_calls"),
            tool_call_id=turn.get("tool_call_id"),
        )


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Origin:
    """Where a row was read: the file (or hub data set), the 0-based position in it, and the split it belongs to."""

    file: str
    position: int
    split: str | None = None  # train or test when the source says so

    def __str__(self) -> str:
        return f"{self.file}:{self.position}"


class Score(NamedTuple):
    """What one scorer, or one aspect that was rated, gave an answer, in its own unit."""

    scorer: str
    score: float


@dataclass(frozen=True)
class Comparison:
    """A prompt and two answers, the better one called chosen."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: str | None = None
    chosen_score: float | None = None
    rejected_score: float | None = None
    preference: float | None = None
    margin: float | None = None  # how much better chosen is, where the source says that and gives no scores
    source: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Completion:
    """A prompt and one answer: a demonstration, or one that somebody or something scored."""

    prompt: Messages
    completion: Messages
    tools: str | None = None
    score: float | None = None  # the one that selections read
    scores: tuple[Score, ...] = ()  # all there are, by name
    generator: str | None = None  # the model that wrote the answer, as the source names it
    source: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Judged:
    """A prompt and one answer that was called good or bad by itself (unpaired feedback)."""

    prompt: Messages
    completion: Messages
    label: bool
    tools: str | None = None
    weight: float | None = None
    source: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt without an answer: what sampling starts from."""

    prompt: Messages
    tools: str | None = None
    source: str | None = None
    license: str | None = None


Record = Comparison | Completion | Judged | Prompt


def sides(record: Record) -> dict[str, Messages]:
    """A record's answers by name; a prompt alone has none."""
    if isinstance(record, Comparison):
        return {"chosen": record.chosen, "rejected": record.rejected}
    return {} if isinstance(record, Prompt) else {"completion": record.completion}


@dataclass(frozen=True)
class SetAside:
    """Why a row goes no further: a reason of `schemas.reasons` and what was found."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Several:
    """What a row says when it says more than one thing: at least one part, each a record or why there is none.

    Rows of one `group` may state the same record, as two replies of a tree both belong to their comparison: it is made
    once, from all of them. A group stays in one split.
    """

    parts: "tuple[Record | SetAside, ...]"
    group: str | None = None


Parsed = Record | SetAside | Several


@dataclass(frozen=True)
class RawRow:
    """One row as read, before its format is known. `value` is a SetAside when the row could not be read at all."""

    origin: Origin
    value: Mapping[str, object] | SetAside
    digest: str = field(default="")  # sha256 hex of the row as read
