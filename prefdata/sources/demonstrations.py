"""A prompt with one good answer, or a conversation that ends with one. Earlier assistant turns are context.

A row with a label, or with several answers, says that its answer was judged: it is no demonstration.
"""

from prefdata.records import Completion, Messages
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import number
from schemas import completions

NAME = "demonstrations"
KIND = completions.KIND
NEEDS = "prompt and completion (or response), or messages (or conversations) that end with the assistant; no label"

ANSWER_COLUMNS = ("completion", "response")
# an answer that has one is no model to imitate by itself
VERDICTS = ("label", "kto_tag", "reward", "rewards", "helpfulness")


@refusable
def parse(row: Row) -> Completion:
    """One prompt and the answer to imitate."""
    turns.refuse_columns(row, "chosen", "rejected", "responses", *VERDICTS)
    context, completion = turns.answered(row, *conversation(row), "the conversation")
    return Completion(context, completion, turns.tools(row), number(row, "score"))


def conversation(row: Row) -> tuple[Messages, Messages]:
    """Prompt and answer; a whole conversation stands without a prompt."""
    answers = [name for name in ANSWER_COLUMNS if row.get(name) is not None]
    if len(answers) > 1:
        raise Refused("other_format", f"the row holds {' and '.join(answers)}: which one is the answer is not certain")
    if answers:
        return turns.prompt(row), turns.answer(row, answers[0])
    for name in turns.CONVERSATION_COLUMNS:
        if row.get(name) is not None:
            return (), turns.messages(row[name], name)
    raise Refused("missing_field", f"none of {', '.join(ANSWER_COLUMNS + turns.CONVERSATION_COLUMNS)} is there")
