"""A question with passages, several numbered predictions, and which of each two is better (Fine-Grained RLHF's QA data).

`preference` holds one number for each pair of predictions, in the order (1,2), (1,3), ..., (2,3), ...: 1 the first is
better, 2 the second, 0 a tie. The prompt is the passages, each its title and its sentences, and then the question. Every
comparison that is no tie is a pair.
"""

import re
from collections.abc import Sequence
from itertools import combinations

from prefdata.records import Comparison, Message, Messages, Several
from prefdata.sources import turns
from prefdata.sources.contradictions import consistent
from prefdata.sources.refusal import Refused, Row, refusable
from schemas import pairs

NAME = "fine_grained_qa"
KIND = pairs.KIND
NEEDS = "question, passages, prediction 1, prediction 2, ..., and preference: 0, 1 or 2 for each two of them"

_PREDICTION = re.compile(r"prediction (\d{1,4})", re.ASCII)


@refusable
def parse(row: Row) -> Several:
    """A comparison for every two predictions of which one is better."""
    answers = _predictions(row)
    verdicts = _verdicts(row, len(answers))
    prompt = _prompt(row)
    pairs = [
        (answers[first], answers[second]) if verdict == 1 else (answers[second], answers[first])
        for (first, second), verdict in zip(combinations(range(len(answers)), 2), verdicts, strict=True)
        if verdict
    ]
    if not pairs:
        raise Refused("tie", f"all {len(verdicts)} comparisons are ties")
    return Several(tuple(consistent([Comparison(prompt, chosen, rejected) for chosen, rejected in pairs])))


def _predictions(row: Row) -> list[Messages]:
    numbered = sorted(
        (int(match[1]), name) for name in row if row[name] is not None and (match := _PREDICTION.fullmatch(name))
    )
    if len(numbered) < 2:
        raise Refused("missing_field", f"{len(numbered)} columns are called prediction N, at least 2 are needed")
    return [(Message("assistant", turns.text(row, name)),) for _, name in numbered]


def _verdicts(row: Row, answers: int) -> list[int]:
    value = turns.column(row, "preference")
    expected = answers * (answers - 1) // 2
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != expected:
        raise Refused("wrong_type", f"preference is not a list of {expected} numbers, one for each two predictions")
    if any(isinstance(verdict, bool) or verdict not in (0, 1, 2) for verdict in value):
        raise Refused("wrong_type", f"preference is {str(value)[:40]}, and holds other things than 0, 1 and 2")
    return [int(verdict) for verdict in value]


def _prompt(row: Row) -> Messages:
    question = turns.text(row, "question")
    if not question.strip():
        raise Refused("prompt_empty", "question is empty")
    passages = row.get("passages") or []
    if not isinstance(passages, Sequence) or isinstance(passages, str):
        raise Refused("wrong_type", "passages is not a list")
    return (Message("user", "\n\n".join([*map(_passage, passages), question])),)


def _passage(passage: object) -> str:
    """A title and its sentences."""
    if not isinstance(passage, Sequence) or isinstance(passage, str) or not all(isinstance(s, str) for s in passage):
        raise Refused("wrong_type", "a passage is not a list of texts")
    title, *sentences = passage or [""]
    return f"{title}\n{' '.join(sentences)}"
