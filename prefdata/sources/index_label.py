"""Two answers by number, and the number of the better one: from one label, or from the votes of several annotators.

As in LLMBar (input, output_1, output_2, label) and PandaLM (instruction, input, response1, response2, annotator1 ...; a
vote of 0 is a tie). Of votes the most frequent one decides, and `preference` is the share of votes for chosen, a tie
being half of one for each side. A label counts from 1: a file in which one is 0 is refused as a whole, for if its labels
count from 0, every other one names the wrong side.
"""

import re
from collections import Counter
from collections.abc import Iterator

from prefdata.errors import UserError
from prefdata.records import Comparison, Message, Messages, Parsed, RawRow, SetAside
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from schemas import pairs

NAME = "index_label"
KIND = pairs.KIND
NEEDS = "instruction or input, output_1 and output_2 (or response1 and response2), label (or annotator1, ...): 1 or 2"

LABEL = "label"
ANSWERS = (("output_1", "output_2"), ("response1", "response2"))
TIE = 0
_ANNOTATOR = re.compile(r"annotator_?\d+")


@refusable
def parse(row: Row) -> Comparison:
    """The answer that was called better, and the other."""
    names = next((pair for pair in ANSWERS if pair[0] in row), ANSWERS[0])
    sides: list[Messages] = [(Message("assistant", turns.text(row, name)),) for name in names]
    better, preference = _better(row)
    return Comparison(_prompt(row), sides[better - 1], sides[2 - better], preference=preference)


def parse_file(rows: Iterator[RawRow]) -> Iterator[tuple[RawRow, Parsed]]:
    """The rows of a file one by one. UserError at the first label 0."""
    for row in rows:
        if isinstance(row.value, SetAside):
            yield row, row.value
            continue
        label = row.value.get(LABEL)
        if not isinstance(label, bool) and label in (0, "0"):
            raise UserError(
                f"{row.origin}: label is 0, and this format's labels are 1 or 2, for the first or the second answer. "
                "Write the labels anew, and leave ties out; nothing was published."
            )
        yield row, parse(row.value)


def _prompt(row: Row) -> Messages:
    """The instruction, and under it what it is about; LLMBar's input is the instruction."""
    return (
        turns.instruction(row) if row.get("instruction") is not None else (Message("user", turns.text(row, "input")),)
    )


def _better(row: Row) -> tuple[int, float | None]:
    """1 or 2, and how sure that is."""
    annotators = sorted(name for name in row if _ANNOTATOR.fullmatch(name) and row[name] is not None)
    if not annotators:
        label = _vote(row, LABEL)
        if label == TIE:
            raise Refused("wrong_type", f"{LABEL} is 0, and 1 or 2 is needed")
        return label, None
    votes = Counter(_vote(row, name) for name in annotators)
    (better, most), *others = votes.most_common()
    if better == TIE or any(count == most for _, count in others):
        raise Refused("tie", f"votes: first {votes[1]}, second {votes[2]}, tie {votes[TIE]}")
    return better, (most + votes[TIE] / 2) / len(annotators)


def _vote(row: Row, name: str) -> int:
    value = turns.column(row, name)
    if isinstance(value, str) and value.strip() in ("0", "1", "2"):
        value = int(value)
    if isinstance(value, bool) or value not in (TIE, 1, 2):
        raise Refused("wrong_type", f"{name} is {str(value)[:40]!r}, and 1, 2 or 0 for a tie is needed")
    return int(value)  # type: ignore[call-overload, no-any-return]
