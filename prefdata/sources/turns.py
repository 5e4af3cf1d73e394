"""Conversations in rows: columns to messages, and what makes a conversation whole.

Turns come as {role, content} or as {from, value}. A turn's content is text: a list of content blocks is refused as
`wrong_type`, because joining blocks would be a guess at what stood between them. An assistant turn that calls tools may
have no content.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

from prefdata.records import Message, Messages
from prefdata.sources.refusal import Refused, Row

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
TRANSCRIPT_OPENINGS = ("\n\nHuman:", "\n\nAssistant:")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def column(row: Row, name: str) -> object:
    """The value of a column that must be there."""
    value = row.get(name)
    if value is None:
        raise Refused("missing_field", f"{name} is {'null' if name in row else 'absent'}")
    return value


def text(row: Row, name: str) -> str:
    """The text of a column that must be there."""
    value = column(row, name)
    if not isinstance(value, str):
        raise Refused("wrong_type", f"{name} is {_kind(value)}, text is needed")
    return value


def refuse_columns(row: Row, *names: str) -> None:
    """Refuse a row that holds columns of another kind of data."""
    found = [name for name in names if row.get(name) is not None]
    if found:
        raise Refused("other_format", f"the row also holds {' and '.join(found)}")


def messages(value: object, name: str) -> Messages:
    """The turns of a list of turns, or of one turn on its own."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise Refused("wrong_type", f"{name} is {_kind(value)}, a list of turns is needed")
    return tuple(_message(turn, f"{name}, turn {number}") for number, turn in enumerate(value, start=1))


def prompt(row: Row, name: str = "prompt") -> Messages:
    """A prompt column: text is one user turn, a list is a conversation."""
    value = column(row, name)
    if isinstance(value, str) and is_transcript_head(value):
        raise Refused("other_format", f"{name} is the head of a transcript")
    return (Message("user", value),) if isinstance(value, str) else messages(value, name)


def is_transcript_head(text: str) -> bool:
    """Whether a prompt is one of Anthropic's transcripts that waits for the assistant; as one turn it would be misread."""
    return text.startswith(TRANSCRIPT_OPENINGS) and text.rstrip().endswith(TRANSCRIPT_OPENINGS[1])


def answer(row: Row, name: str) -> Messages:
    """An answer column: text is one assistant turn, anything else is one or more turns."""
    value = column(row, name)
    return (Message("assistant", value),) if isinstance(value, str) else messages(value, name)


def with_system(row: Row, conversation: Messages) -> Messages:
    """The conversation, opened by the row's `system` column unless that turn already stands there."""
    if row.get("system") is None or not text(row, "system").strip():
        return conversation
    system = Message("system", text(row, "system"))
    return conversation if conversation[:1] == (system,) else (system, *conversation)


def split_answer(conversation: Messages, name: str) -> tuple[Messages, Messages]:
    """(context, answer) of a conversation that ends with the assistant; refused when it is not whole."""
    if not conversation or conversation[-1].role != "assistant":
        ending = f"ends with a {conversation[-1].role} turn" if conversation else "holds no turn"
        raise Refused("no_assistant_turn", f"{name} {ending}")
    context = conversation[:-1]
    blank = [number for number, turn in enumerate(context, start=1) if not turn.content.strip() and not turn.tool_calls]
    if len(blank) == len(context):
        raise Refused("prompt_empty", f"{name} holds nothing before the answer")
    if blank:
        raise Refused("empty_turn", f"{name}, turn {blank[0]} ({context[blank[0] - 1].role}) is empty")
    for number, (before, after) in enumerate(pairwise(conversation), start=1):
        # an assistant may call several tools at once, and each answers in a turn of its own
        if before.role == after.role != "tool":
            raise Refused("same_role_twice", f"{name}, turns {number} and {number + 1} are both {after.role}")
    return context, conversation[-1:]


def same_context(chosen: Messages, rejected: Messages) -> Messages:
    """The context that both sides answer."""
    if chosen == rejected:
        return chosen
    turn = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    raise Refused("contexts_differ", f"chosen and rejected first differ in turn {turn + 1} before the answer")


def tools(row: Row) -> str | None:
    """The `tools` column as a JSON list; None when there are none."""
    return _json_list(row.get("tools"), "tools")


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Refused("wrong_type", f"{where} is {_kind(turn)}, a role with its content is needed")
    role_key, content_key = ("from", "value") if "role" not in turn and "from" in turn else ("role", "content")
    role = _text_of(turn, role_key, where)
    if role is None:
        raise Refused("missing_field", f"{where} has no {role_key}")
    role = SHAREGPT_ROLES.get(role, role) if role_key == "from" else role
    if role not in ROLES:
        raise Refused("unknown_role", f"{where} has the role {role[:40]!r}")
    tool_calls = _json_list(turn.get("tool_calls"), f"{where}, tool_calls")
    content = _text_of(turn, content_key, where)
    if content is None and not (role == "assistant" and tool_calls):
        raise Refused("missing_field", f"{where} has no {content_key}")
    return Message(
        role, content or "", _text_of(turn, "name", where), tool_calls, _text_of(turn, "tool_call_id", where)
    )


def _text_of(turn: Mapping[str, object], key: str, where: str) -> str | None:
    value = turn.get(key)
    if value is None or isinstance(value, str):
        return value
    raise Refused("wrong_type", f"{where}: {key} is {_kind(value)}, text is needed")


def _json_list(value: object, where: str) -> str | None:
    """A list, or the JSON text of one, as JSON text; None when it is null or empty."""
    if value is None or value == "" or value == []:
        return None
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        if isinstance(parsed, list):
            return json.dumps(parsed, ensure_ascii=False, separators=(",", ":"), allow_nan=False) if parsed else None
    except (ValueError, TypeError, RecursionError):
        pass  # not JSON, or holds what JSON cannot
    raise Refused("wrong_type", f"{where} is {_kind(value)}, a JSON list is needed")


def _kind(value: object) -> str:
    """What a value is, in JSON's words."""
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
