"""Prompts of evaluations, as data sets lay them out: what is asked is enough, answers may stand beside it.

Read from `turns` (a list of what the user says, MT-Bench), a conversation, or the first of a few columns that hold a
question. A row without any is refused, for what is not read would not be kept out of the training data.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefdata.blocks import texts_in
from prefdata.errors import UserError
from prefdata.records import SetAside
from prefdata.sources import hub, inputs, turns
from prefdata.sources.prompts import TURNS
from prefdata.sources.refusal import Refused, Row

COLUMNS = ("prompt", "question", "instruction", "problem", "query", "input", "text", "goal", "task")


@dataclass(frozen=True)
class Evaluation:
    """One file or data set of an evaluation; prompts: what the user says in each of its rows, turn by turn."""

    name: str
    sha256: str
    prompts: tuple[tuple[str, ...], ...]


def read(paths: Sequence[str]) -> list[Evaluation]:
    """Files, folders, globs, URLs or hub data sets. UserError for a row that asks nothing that can be found."""
    located = inputs.locate(list(paths), hub_options=hub.Options())
    return [_evaluation(each) for _, each in located]


def _evaluation(source: inputs.Input) -> Evaluation:
    tally = inputs.Tally()
    prompts = tuple(_prompt(value, f"{source.shown}, row {n}") for n, (value, _) in enumerate(source.read(tally)))
    if not prompts:
        raise UserError(f"the evaluation {source.shown} holds no rows, so it keeps nothing out")
    return Evaluation(source.name, tally.hash.hexdigest(), prompts)


def _prompt(row: Row | SetAside, where: str) -> tuple[str, ...]:
    if isinstance(row, SetAside):
        raise UserError(f"the evaluation {where} cannot be read: {row.detail or row.reason}")
    try:
        found = tuple(text for text in _asked(row) if text.strip())
    except Refused as problem:
        raise UserError(f"the evaluation {where} cannot be read: {problem.aside.detail}") from problem
    if not found:
        raise UserError(
            f"the evaluation {where} asks nothing: none of {', '.join((TURNS, *turns.CONVERSATION_COLUMNS, *COLUMNS))} "
            f"holds a text. Its columns are: {', '.join(map(str, row))}. Rename the one that holds the question."
        )
    return found


def _asked(row: Row) -> Iterator[str]:
    if isinstance(row.get(TURNS), list | tuple):
        yield from (each for each in _items(row[TURNS]) if isinstance(each, str))
        return
    names = (*turns.CONVERSATION_COLUMNS, *COLUMNS)
    name = next((name for name in names if row.get(name) not in (None, "", [])), None)
    value = None if name is None else row[name]
    if isinstance(value, str):
        yield value
        if name == "instruction" and isinstance(row.get("input"), str):
            yield str(row["input"])
    elif isinstance(value, Sequence | Mapping) and name is not None:
        said = turns.messages(value, name)
        yield from ("\n".join(texts_in(turn.content) or [turn.content]) for turn in said if turn.role == "user")


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
