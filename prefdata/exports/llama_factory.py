"""LLaMA-Factory: ShareGPT files and the dataset_info.json that its `dataset_dir` needs.

After LLaMA-Factory's data/README.md and `SharegptDatasetConverter`: a system prompt in its own column, then human or
observation and gpt or function_call in turn, the last of them the prompt's end (pairs) or the answer. What its loader
would pass by with a warning is left out here, with the reason.
"""

import json
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from prefdata.exports.by_rows import RowTarget
from prefdata.exports.records import form
from prefdata.exports.target import CannotHold
from prefdata.exports.tool_calls import tool_calls
from prefdata.records import Comparison, Completion, Judged, Message, Messages
from prefdata.versions import Version
from schemas import completions, pairs, unpaired

_FROM = {"user": "human", "tool": "observation"}
_ASKING, _ANSWERING = ("human", "observation"), ("gpt", "function_call")
_COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools"}
_INFO: dict[str, dict[str, Any]] = {
    pairs.KIND: {"ranking": True, "columns": {**_COLUMNS, "chosen": "chosen", "rejected": "rejected"}},
    unpaired.KIND: {"columns": {**_COLUMNS, "kto_tag": "kto_tag"}},
    completions.KIND: {"columns": _COLUMNS},
}


def ranking(record: Comparison) -> dict[str, Any]:
    """A pair, for the stages rm and dpo."""
    return {
        **_conversation(record.prompt, record.tools),
        "chosen": _answer(record.chosen, "chosen"),
        "rejected": _answer(record.rejected, "rejected"),
    }


def feedback(record: Judged) -> dict[str, Any]:
    """A judged answer, for the stage kto."""
    found = demonstration(record)
    if not found["conversations"][-1]["value"]:
        # the loader tells desirable from undesirable by which of two answers has text
        raise CannotHold("completion_empty", "the answer has no text")
    return {**found, "kto_tag": record.label}


def demonstration(record: Completion | Judged) -> dict[str, Any]:
    """An answer to imitate, for the stage sft."""
    found = _conversation(record.prompt, record.tools)
    found["conversations"].append(_answer(record.completion, "completion"))
    return found


def dataset_info(version: Version, splits: Sequence[str]) -> dict[str, str]:
    """dataset_info.json: what its `dataset` is called, and which column holds what."""
    info = {
        f"{version.name}_{split}": {"file_name": f"{split}.jsonl", "formatting": "sharegpt", **_INFO[version.kind]}
        for split in splits
    }
    return {"dataset_info.json": json.dumps(info, indent=2) + "\n"}


def _conversation(prompt: Messages, tools: str | None) -> dict[str, Any]:
    system = prompt[0].content if prompt[:1] and prompt[0].role == "system" else None
    turns = [_turn(message) for message in (prompt if system is None else prompt[1:])]
    for number, (turn, taken) in enumerate(zip(turns, cycle([_ASKING, _ANSWERING]), strict=False), 1):
        if turn["from"] not in taken:
            raise CannotHold(
                "roles_out_of_order", f"turn {number} is {turn['from']}, where {' or '.join(taken)} stands"
            )
    if len(turns) % 2 == 0:
        raise CannotHold("roles_out_of_order", "the prompt does not end with a turn to answer")
    return {"conversations": turns, "system": system or "", "tools": tools or ""}


def _answer(answer: Messages, side: str) -> dict[str, str]:
    if [turn.role for turn in answer] != ["assistant"]:
        raise CannotHold("several_messages", f"{side} is {', '.join(turn.role for turn in answer) or 'nothing'}")
    return _turn(answer[0])


def _turn(message: Message) -> dict[str, str]:
    calls = tool_calls(message)
    if calls and message.content.strip():
        raise CannotHold("text_beside_tool_calls", message.content[:80])
    if calls:
        listed = [{"name": call.name, "arguments": call.value} for call in calls]
        return {"from": "function_call", "value": json.dumps(listed, ensure_ascii=False)}
    if message.role == "assistant":
        return {"from": "gpt", "value": message.content}
    if message.role not in _FROM:
        raise CannotHold(
            "role_not_taken", f"{message.role}, after the first turn" if message.role == "system" else message.role
        )
    return {"from": _FROM[message.role], "value": message.content}


TARGET = RowTarget(
    name="llama-factory",
    about="LLaMA-Factory: ShareGPT files with dataset_info.json (ranking, kto_tag, or sft)",
    forms={
        pairs.KIND: lambda version: form(pairs.KIND, ranking, with_ids=True),
        unpaired.KIND: lambda version: form(unpaired.KIND, feedback, with_ids=True),
        completions.KIND: lambda version: form(completions.KIND, demonstration, with_ids=True),
    },
    texts=dataset_info,
    usage=(
        "Set `dataset_dir` to this folder and `dataset` to a name in `dataset_info.json`. LLaMA-Factory tokenises the "
        "text with its own `template`: stored tokens, cuts at the length limit and loss masks are not used. It trains "
        "every assistant turn of an sft conversation unless `mask_history: true` is set; here only the last is an answer."
    ),
)
