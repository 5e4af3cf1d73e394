"""What a scorer that reads text reads of a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefdata.blocks import texts_in


def content(turn: Mapping[str, Any]) -> str:
    """A turn's text; of several blocks one a line."""
    said = str(turn["content"] or "")
    return "\n".join(texts_in(said) or [said])


def question(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The last user turn; where there is none, the last turn."""
    return content(next((turn for turn in reversed(prompt) if turn["role"] == "user"), prompt[-1]))


def answer(completion: Sequence[Mapping[str, Any]]) -> str:
    """All that the assistant says, one turn a line."""
    return "\n".join(content(turn) for turn in completion if turn["role"] == "assistant")
