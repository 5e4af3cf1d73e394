"""Chosen and rejected as conversations, without a prompt column.

Either each side is a whole conversation, and both agree in every turn before the last, or a `conversations` (or
`messages`) column holds the context and each side its answer, as in ShareGPT-like data. The prompt is whole turns that
both sides state; it is never a prefix that two texts happen to share.
"""

from prefdata.records import Comparison, Messages
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import preference, scores
from schemas import pairs

NAME = "conversations"
KIND = pairs.KIND
NEEDS = "chosen and rejected: whole conversations, or answers beside a conversations column of turns"

CONTEXT_COLUMNS = ("conversations", "messages")


@refusable
def parse(row: Row) -> Comparison:
    """Two conversations that part at the last assistant turn."""
    turns.refuse_columns(row, "prompt", "instruction")
    chosen_context, chosen = turns.answered(row, *conversation(row, "chosen"), "chosen")
    rejected_context, rejected = turns.answered(row, *conversation(row, "rejected"), "rejected")
    context = turns.same_context(chosen_context, rejected_context)
    chosen_score, rejected_score = scores(row)
    return Comparison(context, chosen, rejected, turns.tools(row), chosen_score, rejected_score, preference(row))


def conversation(row: Row, name: str) -> tuple[Messages, Messages]:
    """The context column and one side; a side that is a whole conversation stands without it."""
    side = turns.answer(row, name)
    if side[:1] and side[0].role != "assistant":
        return (), side
    context = next((column for column in CONTEXT_COLUMNS if row.get(column) is not None), None)
    if context is None:
        raise Refused(
            "missing_field", f"{name} is an answer alone, and there is no {' or '.join(CONTEXT_COLUMNS)} column"
        )
    return turns.context(turns.messages(row[context], context)), side
