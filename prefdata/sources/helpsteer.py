"""HelpSteer and HelpSteer2: a prompt, one answer, and its ratings in five aspects, from 0 to 4.

`score` is the helpfulness, which the data's authors define as the overall one; how complex or long an answer is says
nothing of how good it is, so there is no mean. All five stand in `scores`. A prompt of several turns is one text, its
later turns opened by the marks of the authors' own template.
"""

import re

from prefdata.records import Completion, Message, Messages, Score
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import number
from schemas import completions

NAME = "helpsteer"
KIND = completions.KIND
NEEDS = "prompt, response, helpfulness; optional correctness, coherence, complexity, verbosity"

OVERALL = "helpfulness"
ASPECTS = (OVERALL, "correctness", "coherence", "complexity", "verbosity")
_MARK = re.compile(r"\n?<extra_id_1>(Assistant|User)\n")
_ROLES = {"Assistant": "assistant", "User": "user"}


@refusable
def parse(row: Row) -> Completion:
    """One prompt, one answer, its ratings."""
    turns.refuse_columns(row, "chosen", "rejected", "label")
    rated = [(aspect, number(row, aspect)) for aspect in ASPECTS]
    scores = tuple(Score(aspect, rating) for aspect, rating in rated if rating is not None)
    if not scores or scores[0].scorer != OVERALL:
        raise Refused("missing_field", f"{OVERALL} is absent, null or empty")
    answer = Message("assistant", turns.text(row, "response"))
    context, completion = turns.split_answer((*prompt(row), answer), "the conversation")
    return Completion(context, completion, score=scores[0].score, scores=scores)


def prompt(row: Row) -> Messages:
    """The turns of a prompt."""
    if not isinstance(turns.column(row, "prompt"), str):
        return turns.prompt(row)
    first, *pieces = _MARK.split(turns.text(row, "prompt"))
    later = zip(pieces[::2], pieces[1::2], strict=True)
    return (Message("user", first), *(Message(_ROLES[role], text) for role, text in later))
