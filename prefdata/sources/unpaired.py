"""A prompt, one answer, and whether it is good: unpaired feedback, as KTO reads it.

The label is `label`, or `kto_tag` as LLaMA-Factory calls it: true or false (a CSV file has them as text), or 1 and 0.
Prompt and answer stand as in a demonstration, or as in Alpaca.
"""

from prefdata.records import Judged
from prefdata.sources import alpaca, demonstrations, turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import number
from schemas import unpaired

NAME = "unpaired"
KIND = unpaired.KIND
NEEDS = (
    "label (or kto_tag): true or false, beside prompt and completion, instruction and output, "
    "or messages that end with the assistant"
)

LABELS = ("label", "kto_tag")
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@refusable
def parse(row: Row) -> Judged:
    """One prompt, one answer, one verdict."""
    turns.refuse_columns(row, "chosen", "rejected", "responses")
    label = _label(row)
    layout = alpaca if row.get("instruction") is not None else demonstrations
    prompt, said = layout.conversation(row)
    context, completion = turns.answered(row, prompt, said, "the conversation")
    return Judged(context, completion, label, turns.tools(row), number(row, "weight", unsound="weight_out_of_range"))


def _label(row: Row) -> bool:
    found = [name for name in LABELS if row.get(name) is not None]
    if len(found) != 1:
        raise Refused(
            "missing_field" if not found else "other_format", f"{len(found)} of {' and '.join(LABELS)} are there"
        )
    value = row[found[0]]
    truth = _TRUTH.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if truth is None:
        raise Refused("wrong_type", f"{found[0]} is {str(value)[:40]!r}, and true or false is needed")
    return truth
