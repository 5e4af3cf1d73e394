"""A prompt column beside chosen and rejected, each as text or as turns.

A side given as turns is either the answer alone or the whole conversation, prompt included (UltraFeedback, binarised).
In a whole conversation a prompt given as turns must stand at its head, and a prompt given as text must be its first or
its last user turn.
"""

from prefdata.records import Comparison, Messages
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import preference, scores
from schemas import pairs

NAME = "explicit"
KIND = pairs.KIND
NEEDS = "prompt, chosen and rejected: each text or a list of turns ({role, content}); optional system, tools, scores"


@refusable
def parse(row: Row) -> Comparison:
    """One prompt, two answers, nothing inferred."""
    prompt = turns.prompt(row)
    chosen_context, chosen = turns.answered(row, *conversation(row, prompt, "chosen"), "chosen")
    rejected_context, rejected = turns.answered(row, *conversation(row, prompt, "rejected"), "rejected")
    context = turns.same_context(chosen_context, rejected_context)
    chosen_score, rejected_score = scores(row)
    return Comparison(context, chosen, rejected, turns.tools(row), chosen_score, rejected_score, preference(row))


def conversation(row: Row, prompt: Messages, name: str) -> tuple[Messages, Messages]:
    """The prompt and one side; a side that is a whole conversation stands without it."""
    side = turns.answer(row, name)
    if side[:1] and side[0].role == "assistant":
        return prompt, side
    if not opens_with(turns.context(side), prompt, prompt_is_text=isinstance(row["prompt"], str)):
        raise Refused("contexts_differ", f"{name} is a whole conversation, and not one of this prompt")
    return (), side


def opens_with(side: Messages, prompt: Messages, *, prompt_is_text: bool) -> bool:
    """Whether a whole conversation is one of this prompt."""
    if not prompt_is_text:
        return side[: len(prompt)] == prompt
    asked = [turn for turn in side if turn.role == "user"]
    return bool(asked) and prompt[0] in (asked[0], asked[-1])
