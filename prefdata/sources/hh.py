r"""Anthropic's transcripts: whole dialogues as text, each turn opened by "\n\nHuman:" or "\n\nAssistant:".

The dialogue is cut at the markers, and white space around a turn is layout of the transcript. Where a marker also
stands inside a turn (models write the other side's turns too), nobody can say where turns end, so the row is set aside.
A prompt column that is itself the head of a transcript is read too.
"""

import re

from prefdata.records import Comparison, Message, Messages
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.scores import preference, scores
from schemas import pairs

NAME = "hh"
KIND = pairs.KIND
NEEDS = r"chosen and rejected: transcripts with \n\nHuman: and \n\nAssistant: before each turn"

MARKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
# at the start of a line, or of a sentence; "To Sell Is Human: a book" is neither
STRAY_MARKER = re.compile(r"^\W*(?i:human|assistant):|[.?!\"”)\]]\s+\(?(?:Human|Assistant):", re.MULTILINE)


@refusable
def parse(row: Row) -> Comparison:
    """Two transcripts of one dialogue that part at the last assistant turn."""
    sides = {name: split(transcript(row, name), name) for name in ("chosen", "rejected")}
    (chosen_context, chosen), (rejected_context, rejected) = sides.values()
    for name, (context, answer) in sides.items():
        refuse_stray_markers((*context, *answer), name)
    prompt = turns.same_context(chosen_context, rejected_context)
    chosen_score, rejected_score = scores(row)
    return Comparison(
        prompt, chosen, rejected, chosen_score=chosen_score, rejected_score=rejected_score, preference=preference(row)
    )


def transcript(row: Row, name: str) -> str:
    """The whole dialogue of one side; a prompt column, if there is one, is its head."""
    side = turns.text(row, name)
    if row.get("prompt") is not None:
        head = turns.text(row, "prompt")
        if not turns.is_transcript_head(head):
            raise Refused("other_format", "prompt is not the head of a transcript")
        side = side if side.startswith(head) else head + side
    if not MARKER.match(side):
        raise Refused("other_format", rf"{name} does not open with \n\nHuman: or \n\nAssistant:")
    return side


def split(dialogue: str, name: str) -> tuple[Messages, Messages]:
    """(context, answer) of a transcript."""
    _, *pieces = MARKER.split(dialogue)
    roles, texts = pieces[::2], pieces[1::2]
    return turns.split_answer(
        tuple(Message(ROLES[role], text.strip()) for role, text in zip(roles, texts, strict=True)), name
    )


def refuse_stray_markers(dialogue: Messages, name: str) -> None:
    """Refuse a dialogue in which a turn's text holds a role marker."""
    for number, turn in enumerate(dialogue, start=1):
        if found := STRAY_MARKER.search(turn.content):
            raise Refused("role_marker_in_text", f"{name}, turn {number} holds {found.group().strip()!r}")
