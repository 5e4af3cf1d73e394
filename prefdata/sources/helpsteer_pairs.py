"""HelpSteer2-Preference and HelpSteer3: a prompt, two answers, and how much better the second is, from -3 to 3.

0 is a tie. 1 to 3 (slightly better, better, much better) is the `margin` of the pair: the authors train reward models
with it as one (arXiv 2410.01257, the margin of a Bradley-Terry loss). It is no probability, so there is no `preference`.
HelpSteer2's one file holds both splits, named in a column.
"""

from prefdata.records import Comparison, Message, Messages
from prefdata.sources import helpsteer, turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import number
from schemas import pairs

NAME = "helpsteer_pairs"
KIND = pairs.KIND
NEEDS = (
    "prompt (or context), response_1 and response_2 (or response1, response2), "
    "preference_strength (or overall_preference): -3 to 3"
)

ANSWERS = (("response_1", "response_2"), ("response1", "response2"))
SPLIT = "split"
STRENGTHS = ("preference_strength", "overall_preference")
MOST = 3


@refusable
def parse(row: Row) -> Comparison:
    """The better answer and the other."""
    strength = _strength(row)
    names = next((pair for pair in ANSWERS if pair[0] in row), ANSWERS[0])
    prompt = turns.prompt(row, "context") if row.get("context") is not None else helpsteer.prompt(row)
    first, second = (_answered(row, prompt, name) for name in names)
    if strength == 0:
        raise Refused("tie", "the two answers are about the same")
    (context, chosen), (_, rejected) = (first, second) if strength < 0 else (second, first)
    return Comparison(context, chosen, rejected, margin=abs(strength))


def _answered(row: Row, prompt: Messages, name: str) -> tuple[Messages, Messages]:
    return turns.split_answer((*prompt, Message("assistant", turns.text(row, name))), name)


def _strength(row: Row) -> float:
    name = next((each for each in STRENGTHS if row.get(each) is not None), STRENGTHS[0])
    found = number(row, name)
    if found is None:
        raise Refused("missing_field", f"{name} is absent, null or empty")
    if abs(found) > MOST or found != int(found):
        raise Refused("wrong_type", f"{name} is {found:g}, a whole number from -{MOST} to {MOST} is needed")
    return found
