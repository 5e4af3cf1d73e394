"""OpenAI's preference fine-tuning: an input of messages and tools, a preferred output and one that is not.

An output is what the assistant said: one turn, or several with the tools' answers between them, of which the assistant's
own are scored. `parallel_tool_calls` asks something of OpenAI's service and says nothing of the rows.
"""

from collections.abc import Mapping

from prefdata.records import Comparison, Messages
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from schemas import pairs

NAME = "openai_preference"
KIND = pairs.KIND
NEEDS = "input: {messages, tools}, preferred_output and non_preferred_output: lists of turns"


@refusable
def parse(row: Row) -> Comparison:
    """One input, two outputs."""
    given = turns.column(row, "input")
    if not isinstance(given, Mapping):
        raise Refused("wrong_type", "input is not an object of messages and tools")
    prompt = turns.prompt(given, "messages")
    context, chosen = _output(row, prompt, "preferred_output")
    other, rejected = _output(row, prompt, "non_preferred_output")
    return Comparison(turns.same_context(context, other), chosen, rejected, turns.tools(given))


def _output(row: Row, prompt: Messages, name: str) -> tuple[Messages, Messages]:
    output = turns.messages(turns.column(row, name), name)
    if output[:1] and output[0].role != "assistant":
        raise Refused("no_assistant_turn", f"{name} begins with a {output[0].role} turn")
    if not output:
        raise Refused("no_assistant_turn", f"{name} holds no turn")
    return turns.answered(row, prompt, output, name, several=True)
