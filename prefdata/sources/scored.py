"""A prompt with one scored answer, or with several: each becomes a completion with its score.

As in prompt, text, reward (one answer a row), and prompt, responses, rewards (lists of equal length). Which answers make
a pair is for a selection to say, not for the reader: equal scores and single answers are kept. An answer that stands
twice in a row is one completion if its scores agree, and none if they don't, for nobody can say which score it has.
"""

from collections.abc import Sequence

from prefdata.records import Completion, Message, Several
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.repeats import told_once
from prefdata.sources.scores import number
from schemas import completions

NAME = "scored"
KIND = completions.KIND
NEEDS = "prompt, and text (or completion, response) with reward (or score), or equally long responses and rewards"

LISTS = (("responses", "rewards"), ("responses", "scores"), ("completions", "rewards"), ("completions", "scores"))
ANSWERS, SCORES = ("text", "completion", "response"), ("reward", "score")


@refusable
def parse(row: Row) -> Completion | Several:
    """One completion for each answer."""
    turns.refuse_columns(row, "chosen", "rejected", "label", "kto_tag")
    names = next((pair for pair in LISTS if row.get(pair[0]) is not None and row.get(pair[1]) is not None), None)
    if names is None:
        answer, score = _one_of(row, ANSWERS), _one_of(row, SCORES)
        return _completion(row, turns.text(row, answer), _required(row, score))
    answers, scores = (_list(row, name) for name in names)
    if len(answers) != len(scores):
        raise Refused("wrong_type", f"{names[0]} has {len(answers)} items and {names[1]} {len(scores)}")
    if not answers:
        raise Refused("completion_empty", f"{names[0]} is empty")
    found = [
        (turns.text({names[0]: answer}, names[0]), _required({names[1]: score}, names[1]))
        for answer, score in zip(answers, scores, strict=True)
    ]
    return Several(tuple(told_once([_completion(row, text, score) for text, score in found])))


def _completion(row: Row, text: str, score: float) -> Completion:
    answer = (Message("assistant", text),)
    context, completion = turns.answered(row, turns.prompt(row), answer, "the conversation")
    return Completion(context, completion, turns.tools(row), score)


def _one_of(row: Row, names: Sequence[str]) -> str:
    """The one column of these that is there."""
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise Refused("other_format", f"the row holds {' and '.join(found)}: which one counts is not certain")
    return found[0] if found else names[0]


def _list(row: Row, name: str) -> Sequence[object]:
    value = turns.column(row, name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Refused("wrong_type", f"{name} is not a list")
    return value


def _required(row: Row, name: str) -> float:
    found = number(row, name)
    if found is None:
        raise Refused("missing_field", f"{name} is absent, null or empty")
    return found
