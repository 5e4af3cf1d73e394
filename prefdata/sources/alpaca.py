"""Alpaca: an instruction, what it is about, and the output to imitate; optional history of earlier rounds and system.

The prompt is the instruction and, on the next line, the input, as LLaMA-Factory and ms-swift join them. The history's
answers are context.
"""

from collections.abc import Sequence

from prefdata.records import Completion, Message, Messages
from prefdata.sources import turns
from prefdata.sources.demonstrations import VERDICTS
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import number
from schemas import completions

NAME = "alpaca"
KIND = completions.KIND
NEEDS = "instruction and output (text); optional input, history: [[asked, answered], ...], system, tools; no label"


@refusable
def parse(row: Row) -> Completion:
    """One instruction and the output to imitate."""
    turns.refuse_columns(row, "chosen", "rejected", *VERDICTS)
    context, completion = turns.answered(row, *conversation(row), "the conversation")
    return Completion(context, completion, turns.tools(row), number(row, "score"))


def conversation(row: Row) -> tuple[Messages, Messages]:
    """Prompt and answer."""
    return prompt(row), (Message("assistant", turns.text(row, "output")),)


def prompt(row: Row) -> Messages:
    """The history and the instruction."""
    return (*_history(row), *turns.instruction(row))


def _history(row: Row) -> Messages:
    rounds = row.get("history") or []
    if not isinstance(rounds, Sequence) or isinstance(rounds, str):
        raise Refused("wrong_type", "history is not a list of rounds")
    return tuple(turn for number, each in enumerate(rounds, start=1) for turn in _round(each, number))


def _round(said: object, number: int) -> Messages:
    if not isinstance(said, Sequence) or len(said) != 2 or not all(isinstance(text, str) for text in said):
        raise Refused("wrong_type", f"round {number} of history is not two texts")
    return Message("user", said[0]), Message("assistant", said[1])
