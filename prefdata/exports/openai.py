"""OpenAI's fine-tuning files: preference pairs (method dpo) and chats (method supervised), as JSON lines.

https://developers.openai.com/api/docs/guides/direct-preference-optimization: one assistant message a side. Of a chat the
last turn alone is trained: earlier assistant turns get weight 0. Roles are system, user, assistant and tool; a tool call
has an id and its arguments as JSON text, and the answer to it names that id.
"""

from typing import Any

from prefdata.exports.by_rows import RowTarget
from prefdata.exports.records import form
from prefdata.exports.target import CannotHold
from prefdata.exports.tool_calls import json_list, tool_calls
from prefdata.records import Comparison, Completion, Message, Messages
from schemas import completions, pairs

ROLES = frozenset({"system", "user", "assistant", "tool"})


def preference(record: Comparison) -> dict[str, Any]:
    """A line of a file for the method dpo."""
    return {
        "input": {"messages": _messages(record.prompt), **_tools(record.tools)},
        "preferred_output": [_one(record.chosen, "chosen")],
        "non_preferred_output": [_one(record.rejected, "rejected")],
    }


def chat(record: Completion) -> dict[str, Any]:
    """A line of a file for the method supervised."""
    prompt = [_unweighted(message) for message in _messages(record.prompt)]
    return {"messages": [*prompt, _one(record.completion, "completion")], **_tools(record.tools)}


def _one(answer: Messages, side: str) -> dict[str, Any]:
    if [turn.role for turn in answer] != ["assistant"]:
        raise CannotHold("several_messages", f"{side} is {', '.join(turn.role for turn in answer) or 'nothing'}")
    return _message(answer[0])


def _messages(messages: Messages) -> list[dict[str, Any]]:
    return [_message(message) for message in messages]


def _unweighted(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def _message(message: Message) -> dict[str, Any]:
    if message.role not in ROLES:
        raise CannotHold("role_not_taken", message.role)
    if message.role == "tool" and message.tool_call_id is None:
        raise CannotHold("tool_call_unfit", "a tool's answer does not say to which call")
    calls = [
        {"id": _id(call.id, call.name), "type": "function", "function": {"name": call.name, "arguments": call.text}}
        for call in tool_calls(message)
    ]
    found = {
        "role": message.role,
        "content": message.content if message.content or not calls else None,
        "name": message.name,
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
    }
    return {key: value for key, value in found.items() if value is not None}


def _id(id_: str | None, name: str) -> str:
    if id_ is None:
        raise CannotHold("tool_call_unfit", f"a call of {name} has no id")
    return id_


def _tools(tools: str | None) -> dict[str, Any]:
    return {} if tools is None else {"tools": json_list(tools, "tools")}


TARGET = RowTarget(
    name="openai",
    about="OpenAI fine-tuning: preference pairs (dpo), or chats (supervised)",
    forms={
        pairs.KIND: lambda version: form(pairs.KIND, preference),
        completions.KIND: lambda version: form(completions.KIND, chat),
    },
    usage=(
        "Upload a split's `.jsonl` with the purpose `fine-tune`; the method is `dpo` for pairs and `supervised` for "
        "chats. OpenAI tokenises the text itself: stored tokens, cuts at the length limit and loss masks are not used."
    ),
)
