"""Prompts without answers: what sampling starts from.

As a prompt column, an instruction with its input, a conversation that ends with the user, or the `turns` of a benchmark
such as MT-Bench, a list of what the user says one after the other: the first is the prompt, for the others answer what
no one has said yet. A column of another layout's answers makes the row none of these. So few columns are also those of
layouts that nobody knows here, so the format is found only where the rest says nothing that could be an answer; a user
who names it may have any other columns.
"""

import re
from collections.abc import Mapping, Sequence

from prefdata.records import Message, Messages, Prompt
from prefdata.sources import alpaca, turns
from prefdata.sources.refusal import Refused, Row, refusable
from schemas import prompts

NAME = "prompts"
KIND = prompts.KIND
NEEDS = "prompt, instruction, turns, or messages (or conversations) that end with the user; no answer"

TURNS = "turns"
PROMPT_COLUMNS = ("prompt", "instruction", TURNS, *turns.CONVERSATION_COLUMNS)
ANSWER_COLUMNS = (
    *("chosen", "rejected", "completion", "completions", "response", "responses", "output", "answer", "answers"),
    *("response_1", "response_2", "response1", "response2", "output_1", "output_2", "text"),
    *("preferred_output", "non_preferred_output", "label", "kto_tag", "reward", "rewards"),
)
# what says where a prompt comes from or what it is about, and what a good answer is checked by
_ABOUT = re.compile(
    r"(.*_)?(id|ids|idx|index|uid|uuid|hash|source|dataset|subset|split|category|domain|topic|task|type|language|lang"
    r"|license|licence|meta|metadata|tag|tags|difficulty|level|reference|references)|system|tools|input|history"
)


@refusable
def parse(row: Row) -> Prompt:
    """One prompt."""
    turns.refuse_columns(row, *ANSWER_COLUMNS)
    names = [name for name in PROMPT_COLUMNS if row.get(name) is not None and _holds_prompt(name, row[name])]
    if len(names) != 1:
        problem = "other_format" if names else "missing_field"
        raise Refused(problem, f"{len(names)} of {', '.join(PROMPT_COLUMNS)} are there")
    prompt = alpaca.prompt(row) if names[0] == "instruction" else _prompt(row, names[0])
    return Prompt(turns.prompt_alone(turns.with_system(row, prompt), names[0]), turns.tools(row))


def sure(row: Row) -> bool:
    """Whether what else stands in a row is nothing that an answer could be."""
    return not any(_says_something(value) and not _ABOUT.fullmatch(name.lower()) for name, value in _others(row))


def _prompt(row: Row, name: str) -> Messages:
    if name != TURNS:
        return turns.prompt(row, name)
    asked = row[name]
    assert isinstance(asked, list | tuple)
    return (Message("user", turns.text({name: asked[0] if asked else None}, name)),)


def _holds_prompt(name: str, value: object) -> bool:
    """How many turns a conversation has, other data sets call `turns` too."""
    return name != TURNS or isinstance(value, list | tuple)


def _others(row: Row) -> list[tuple[str, object]]:
    return [(str(name), value) for name, value in row.items() if name not in PROMPT_COLUMNS]


def _says_something(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip()) and not re.fullmatch(r"\s*[-+]?[\d.]+\s*|true|false", value, re.IGNORECASE)
    return isinstance(value, Sequence | Mapping) and bool(value)
