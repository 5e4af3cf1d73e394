"""A message's content of several text blocks, as one JSON string: blocks are not joined, for nobody says with what.

A single block is its text, so a content is blocks if it is the JSON list of two or more of them, in exactly this
spelling. A source's own text of that spelling would be taken for blocks, and is set aside (`text_like_blocks`).
"""

import json
from collections.abc import Sequence

_OPENING = '[{"text":"'
_TYPE = "text"


class Blocks(str):
    """A content that was made of blocks, as against a text that is only spelled so."""

    __slots__ = ()


def content_of(texts: Sequence[str]) -> str:
    """The content of these text blocks, of which some are not blank."""
    return texts[0] if len(texts) == 1 else Blocks(_spelled(texts))


def texts_in(content: str) -> list[str] | None:
    """The texts of a content's blocks; None if it is no blocks but a text."""
    if not content.startswith(_OPENING):
        return None
    try:
        found = json.loads(content)
        texts = [block["text"] for block in found]
        is_blocks = len(texts) > 1 and _spelled(texts) == content
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return texts if is_blocks else None


def blocks_in(content: str) -> list[dict[str, str]] | None:
    """The blocks as a chat template takes them; None if the content is a text."""
    texts = texts_in(content)
    return None if texts is None else [{"type": _TYPE, "text": text} for text in texts]


def _spelled(texts: Sequence[str]) -> str:
    blocks = [{"text": text, "type": _TYPE} for text in texts]
    return json.dumps(blocks, ensure_ascii=False, separators=(",", ":"))
