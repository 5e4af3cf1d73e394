"""Canonical form and the ids made from it. Joins are by these ids, never by position.

Canonical: JSON, UTF-8, sorted keys, no spaces, no Unicode normalisation, null keys dropped, no floats.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefdata.records import Messages

_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def canonical(value: Any) -> bytes:
    """The one byte string of a value. Floats are refused: their spelling is not portable."""
    return _encode(_plain(value)).encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """sha256 hex of the canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def prompt_id(prompt: Messages, tools: str | None = None) -> str:
    """Equal prompts (and tools) share it."""
    return _digest({"prompt": _turns(prompt), "tools": tools})


def pair_row_id(prompt: Messages, chosen: Any, rejected: Any, tools: str | None = None) -> str:
    """A side is its messages, or its token ids where they were generated."""
    return _digest(
        {
            "kind": "pairs",
            "prompt": _turns(prompt),
            "chosen": _side(chosen),
            "rejected": _side(rejected),
            "tools": tools,
        }
    )


def completion_row_id(prompt: Messages, completion: Any, tools: str | None = None) -> str:
    """The completion is its messages, or its token ids where they were generated."""
    return _digest({"kind": "completions", "prompt": _turns(prompt), "completion": _side(completion), "tools": tools})


def sample_row_id(
    prompt: Messages, completion: Sequence[int], draw: Mapping[str, Any], tools: str | None = None
) -> str:
    """A sampled completion is one draw: who drew it, how, and which draw it was. Equal tokens of two draws are two rows."""
    return digest(
        {
            "kind": "completions",
            "prompt": _turns(prompt),
            "completion": list(completion),
            "tools": tools,
            "draw": dict(draw),
        }
    )


def judged_row_id(prompt: Messages, completion: Any, label: bool, tools: str | None = None) -> str:
    """One answer judged good by one and bad by another is two rows; a weight is no part of it."""
    return _digest(
        {
            "kind": "unpaired",
            "prompt": _turns(prompt),
            "completion": _side(completion),
            "label": label,
            "tools": tools,
        }
    )


def prompt_row_id(prompt: Messages, tools: str | None = None) -> str:
    """A prompt that stands for itself, without an answer."""
    return _digest({"kind": "prompts", "prompt": _turns(prompt), "tools": tools})


def tokens_id(prompt_ids: Iterable[int], completion_ids: Iterable[int]) -> str:
    """Names a completion of a prompt by its exact tokens; a cut answer and a finished one differ.

    sha256 hex of the prompt's length and both lists, little-endian: these are hashed by the million.
    """
    prompt, completion = _int32(prompt_ids), _int32(completion_ids)
    return hashlib.sha256(len(prompt).to_bytes(8, "little") + prompt.tobytes() + completion.tobytes()).hexdigest()


def _int32(ids: Iterable[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.asarray(ids if isinstance(ids, np.ndarray | list | tuple) else [*ids], dtype="<i4")


def _digest(fields: dict[str, Any]) -> str:
    """`digest` of fields whose values hold no null and no float, as messages and token ids do not."""
    said = {key: value for key, value in fields.items() if value is not None}
    return hashlib.sha256(_encode(said).encode("utf-8", "surrogatepass")).hexdigest()


def _turns(messages: Messages) -> list[dict[str, str]]:
    return [message.as_dict() for message in messages]


def _side(side: Messages | Sequence[int]) -> Any:
    if len(side) and not isinstance(side[0], int):
        return _turns(side)  # type: ignore[arg-type]
    return list(side)


_LEAVES = frozenset({int, str, bool, type(None)})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        # token ids make long lists, and many: what is plain already is left as it is
        return value if _LEAVES.issuperset(map(type, value)) else [_plain(item) for item in value]
    if isinstance(value, float):
        raise TypeError(f"canonical form holds no floats (found {value!r}): give it as a string")
    return value


def spelled(value: Any) -> Any:
    """The same value with every float as its shortest exact spelling, ready for a digest."""
    if isinstance(value, bool) or not isinstance(value, float | dict | list | tuple):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    return [spelled(item) for item in value]
