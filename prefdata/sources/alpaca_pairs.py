"""Alpaca's instructions with two answers: chosen and rejected, or an output that is a list of both, the better one first."""

from collections.abc import Sequence

from prefdata.records import Comparison, Messages
from prefdata.sources import alpaca, turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import preference, scores
from schemas import pairs

NAME = "alpaca_pairs"
KIND = pairs.KIND
NEEDS = (
    "instruction, and chosen and rejected or output: [better, worse]; optional input, history, system, tools, scores"
)


@refusable
def parse(row: Row) -> Comparison:
    """One instruction, two answers."""
    prompt = alpaca.prompt(row)
    chosen_context, chosen = turns.answered(row, prompt, _answer(row, "chosen", 0), "chosen")
    rejected_context, rejected = turns.answered(row, prompt, _answer(row, "rejected", 1), "rejected")
    context = turns.same_context(chosen_context, rejected_context)
    chosen_score, rejected_score = scores(row)
    return Comparison(context, chosen, rejected, turns.tools(row), chosen_score, rejected_score, preference(row))


def _answer(row: Row, name: str, place: int) -> Messages:
    """One side: an answer alone, for the prompt stands in columns of its own."""
    output = row.get("output")
    both = isinstance(output, Sequence) and not isinstance(output, str)
    if both and row.get(name) is not None:
        raise Refused("other_format", f"the row holds {name} and an output of several answers")
    if not both:
        side = turns.answer(row, name)
    elif len(output) == 2:  # type: ignore[arg-type]
        side = turns.answer({"output": output[place]}, "output")  # type: ignore[index]
    else:
        raise Refused("wrong_type", "output is not a list of two answers, the better one first")
    if side[:1] and side[0].role != "assistant":
        raise Refused("other_format", f"{name} is a whole conversation, and there is an instruction beside it")
    return side
