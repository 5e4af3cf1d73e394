"""Conversations in rows: columns to messages, and what makes a conversation whole.

Turns come as {role, content} or as {from, value}. A content of several text blocks is kept as blocks
(`prefdata.blocks`), one of a single block is its text, and what is no text is refused as `not_text`. An assistant turn
that calls tools may have no content.

A turn may say whether it is scored: `weight` 0 or 1 (OpenAI), `train` (axolotl) or `loss` (ms-swift) true or false. In a
conversation where any does, the answer begins at the first scored assistant turn and ends with the last, and an
assistant turn that says nothing is scored, as in all three. Where none does, the last assistant turn is the answer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from prefdata.blocks import content_of
from prefdata.records import Message, Messages
from prefdata.sources.refusal import Refused, Row

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
TRANSCRIPT_OPENINGS = ("\n\nHuman:", "\n\nAssistant:")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
SHAREGPT_CALL = "function_call"  # an assistant turn whose value is the JSON of one call, or of several
CONVERSATION_COLUMNS = ("messages", "conversations")
FLAGS = ("weight", "train", "loss")  # of a turn: whether it is scored
PARTIAL_FLAGS = ("train_detail", "training_detail")  # axolotl's, for stretches of characters
_ALL_FLAGS = frozenset((*FLAGS, *PARTIAL_FLAGS))


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
    """A prompt column: text is one user turn, a list is a conversation. It is context, whatever its turns say."""
    value = column(row, name)
    if isinstance(value, str) and is_transcript_head(value):
        raise Refused("other_format", f"{name} is the head of a transcript")
    return (Message("user", value),) if isinstance(value, str) else context(messages(value, name))


def instruction(row: Row) -> Messages:
    """An `instruction`, and under it the `input` that it is about, as one user turn."""
    asked = text(row, "instruction")
    if not asked.strip():
        raise Refused("prompt_empty", "instruction is empty")
    about = "" if row.get("input") is None else text(row, "input")
    return (Message("user", f"{asked}\n{about}" if about.strip() else asked),)


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


def context(conversation: Messages) -> Messages:
    """Turns none of which is scored, so that none says whether it is."""
    return tuple(turn if turn.scored is None else replace(turn, scored=None) for turn in conversation)


def prompt_alone(conversation: Messages, name: str) -> Messages:
    """A conversation that waits for the assistant; refused when it does not, or is not whole."""
    if conversation[-1:] and conversation[-1].role not in ("user", "tool"):
        raise Refused("other_format", f"{name} ends with a {conversation[-1].role} turn")
    _refuse_not_whole((*conversation, Message("assistant", "")), len(conversation), name)
    return context(conversation)


def answered(
    row: Row, prompt: Messages, said: Messages, name: str, *, several: bool = False
) -> tuple[Messages, Messages]:
    """(context, answer) of what is said after a prompt, which may be empty where its turns are not told apart."""
    conversation = with_system(row, (*prompt, *said))
    return split_answer(conversation, name, known=len(conversation) - len(said) if prompt else 0, several=several)


def split_answer(
    conversation: Messages, name: str, *, known: int = 0, several: bool = False
) -> tuple[Messages, Messages]:
    """(context, answer) of a conversation that ends with the assistant; refused when it is not whole.

    known     turns at the head that are context, whatever they say
    several   the answer is all that follows these, and not the last turn alone, unless turns say what is scored
    """
    if not conversation or conversation[-1].role != "assistant":
        ending = f"ends with a {conversation[-1].role} turn" if conversation else "holds no turn"
        raise Refused("no_assistant_turn", f"{name} {ending}")
    if any(turn.scored is not None for turn in conversation[known:]):
        first, last = _scored_span(conversation, name, known)
    else:
        first, last = known if several else len(conversation) - 1, len(conversation) - 1
    _refuse_not_whole(conversation, first, name)
    return context(conversation[:first]), tuple(_normal(turn) for turn in conversation[first : last + 1])


def _scored_span(conversation: Messages, name: str, known: int) -> tuple[int, int]:
    """The first and the last turn that is scored, of a conversation whose turns say whether they are."""
    for number, turn in enumerate(conversation[known:], start=known + 1):
        if turn.scored and turn.role != "assistant":
            raise Refused("scoring_unsupported", f"{name}, turn {number} is a {turn.role} turn that is to be scored")
    scored = [
        n for n, turn in enumerate(conversation) if n >= known and turn.role == "assistant" and turn.scored is not False
    ]
    if not scored:
        raise Refused("nothing_scored", f"{name} says of every assistant turn that it is not scored")
    return scored[0], scored[-1]


def _normal(turn: Message) -> Message:
    """Scored is what an assistant turn of an answer is unless it says otherwise; another turn never is."""
    stays = turn.scored is None or (turn.scored is False and turn.role == "assistant")
    return turn if stays else replace(turn, scored=None)


def _refuse_not_whole(conversation: Messages, first: int, name: str) -> None:
    """Refuse a conversation with an empty turn before its last one, or with two turns of one role in a row."""
    blank = [n for n, turn in enumerate(conversation[:-1]) if not turn.content.strip() and not turn.tool_calls]
    if sum(number < first for number in blank) == first:
        raise Refused("prompt_empty", f"{name} holds nothing before the answer")
    if blank:
        raise Refused("empty_turn", f"{name}, turn {blank[0] + 1} ({conversation[blank[0]].role}) is empty")
    for number, (before, after) in enumerate(pairwise(conversation), start=1):
        # an assistant may call several tools at once, and each answers in a turn of its own
        if before.role == after.role != "tool":
            raise Refused("same_role_twice", f"{name}, turns {number} and {number + 1} are both {after.role}")


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
    content = _content(turn, content_key, where)
    tool_calls = _json_list(turn.get("tool_calls"), f"{where}, tool_calls")
    if role_key == "from":
        if role == SHAREGPT_CALL:
            role, content, tool_calls = "assistant", "", _called(content, where)
        role = SHAREGPT_ROLES.get(role, role)
    if role not in ROLES:
        raise Refused("unknown_role", f"{where} has the role {role[:40]!r}")
    if content is None and not (role == "assistant" and tool_calls):
        raise Refused("missing_field", f"{where} has no {content_key}")
    name, call_id = _text_of(turn, "name", where), _text_of(turn, "tool_call_id", where)
    return Message(role, content or "", name, tool_calls, call_id, _scored(turn, where))


def _text_of(turn: Mapping[str, object], key: str, where: str) -> str | None:
    value = turn.get(key)
    if value is None or isinstance(value, str):
        return value
    raise Refused("wrong_type", f"{where}: {key} is {_kind(value)}, text is needed")


def _content(turn: Mapping[str, object], key: str, where: str) -> str | None:
    """The text, or the text blocks, of a turn."""
    value = turn.get(key)
    if not isinstance(value, list):
        return _text_of(turn, key, where)
    texts = [_block(block, f"{where}, block {number}") for number, block in enumerate(value, start=1)]
    return content_of(texts) if any(text.strip() for text in texts) else ""


def _block(block: object, where: str) -> str:
    if not isinstance(block, Mapping) or not isinstance(kind := block.get("type"), str):
        raise Refused("wrong_type", f"{where} is {_kind(block)}, a block with its type is needed")
    if kind != "text":
        raise Refused("not_text", f"{where} is of the type {kind[:40]!r}")
    return text(block, "text")


def _scored(turn: Mapping[str, object], where: str) -> bool | None:
    """Whether the turn says that it is scored; None when it says nothing."""
    if _ALL_FLAGS.isdisjoint(turn):
        return None
    if found := next((name for name in PARTIAL_FLAGS if turn.get(name)), None):
        raise Refused("scoring_unsupported", f"{where} has {found}, which scores parts of a turn")
    said = {name: turn[name] for name in FLAGS if turn.get(name) is not None}
    for name, value in said.items():
        if value not in (0, 1) or not isinstance(value, int | float):
            raise Refused(
                "scoring_unsupported", f"{where}: {name} is {str(value)[:40]!r}, and only 1 and 0 are told apart"
            )
    if len(set(said.values())) > 1:
        raise Refused("scoring_unsupported", f"{where}: {' and '.join(said)} contradict each other")
    return bool(next(iter(said.values()))) if said else None


def _called(value: str | None, where: str) -> str:
    """The tool calls of a turn whose value is the JSON of a call (name, arguments), or of a list of them."""
    try:
        found = json.loads(value or "")
        calls = found if isinstance(found, list) else [found]
        if calls and all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
            return _json_text([{"type": "function", "function": call} for call in calls])
    except (ValueError, RecursionError):
        pass  # not JSON, or NaN in it
    raise Refused("wrong_type", f"{where} is a {SHAREGPT_CALL}, and its value is no JSON of a name and arguments")


def _json_list(value: object, where: str) -> str | None:
    """A list, or the JSON text of one, as JSON text; None when it is null or empty."""
    if value is None or value == "" or value == []:
        return None
    try:
        parsed = json.loads(value) if isinstance(value, str) else _without_nulls(value)
        if isinstance(parsed, list):
            return _json_text(parsed) if parsed else None
    except (ValueError, TypeError, RecursionError):
        pass  # not JSON, or holds what JSON cannot
    raise Refused("wrong_type", f"{where} is {_kind(value)}, a JSON list is needed")


def _json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _without_nulls(value: object) -> object:
    """Objects without their null keys: a typed table fills every object with the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _kind(value: object) -> str:
    """What a value is, in JSON's words."""
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
