"""Tool calls out of a message, whichever of the two common spellings they have.

On the wire a call is {"id", "type": "function", "function": {"name", "arguments": JSON text}}; in templates and in data
sets the arguments are an object, and a call may be {"name", "arguments"} alone.
"""

import json
from dataclasses import dataclass
from typing import Any

from prefdata.exports.target import CannotHold
from prefdata.records import Message


@dataclass(frozen=True)
class ToolCall:
    """A call as its message states it."""

    name: str
    arguments: Any  # JSON text, or the value itself
    id: str | None

    @property
    def value(self) -> Any:
        """The arguments as a value; CannotHold if their text is not JSON."""
        if not isinstance(self.arguments, str):
            return self.arguments
        try:
            return json.loads(self.arguments)
        except ValueError as error:
            raise CannotHold("tool_call_unfit", f"the arguments of {self.name} are not JSON: {error}") from None

    @property
    def text(self) -> str:
        """The arguments as JSON text; text stays as it is."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, ensure_ascii=False)


def tool_calls(message: Message) -> list[ToolCall]:
    """The calls of a message, none if it makes none. CannotHold for what is no call of a function."""
    if message.tool_calls is None:
        return []
    return [_call(each) for each in json_list(message.tool_calls, "tool_calls")]


def json_list(text: str, name: str) -> list[Any]:
    """A column that holds the JSON text of a list. CannotHold if it does not."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CannotHold("wrong_type", f"{name} is not JSON: {error}") from None
    if not isinstance(value, list):
        raise CannotHold("wrong_type", f"{name} is a JSON {type(value).__name__}, not a list")
    return value


def _call(call: Any) -> ToolCall:
    outer = call if isinstance(call, dict) else {}
    function = outer.get("function", outer)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
        raise CannotHold("tool_call_unfit", f"no name or no arguments: {json.dumps(call, ensure_ascii=False)[:80]}")
    id_ = outer.get("id")
    return ToolCall(function["name"], function["arguments"], id_ if isinstance(id_, str) else None)
