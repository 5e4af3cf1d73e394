"""Token ids as the pieces of text that a person reads, one per token where a token is whole characters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdata.errors import UserError
from prefdata.versions import Version

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Piece:
    """The text of tokens start to end: of one, or of the few that a character is spread over."""

    text: str
    start: int
    end: int


class Decoder:
    """The tokenizer that made a version's ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """What each token adds to the text; special tokens are spelled out."""
        from tokenizers.decoders import DecodeStream

        found: list[Piece] = []
        stream, start = DecodeStream(skip_special_tokens=False), 0
        for at, token in enumerate(ids):
            try:
                text = stream.step(self._backend, token)
            except Exception as problem:  # the library's own class: bytes that are no text, decoded so far
                if type(problem) is not Exception:
                    raise
                text, stream = self._spelled(ids[start : at + 1]), DecodeStream(skip_special_tokens=False)
            if text is not None:
                found.append(Piece(text, start, at + 1))
                start = at + 1
        if start < len(ids):
            found.append(Piece(self._spelled(ids[start:]), start, len(ids)))
        return found

    def text(self, ids: Sequence[int]) -> str:
        """The ids as text."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def _spelled(self, ids: Sequence[int]) -> str:
        return self.text(ids) or REPLACEMENT


def decoder(version: Version) -> tuple[Decoder | None, str]:
    """The version's own tokenizer, or None and why there is none: it is gone, or another one stands there."""
    from prefdata import models, vocabulary

    made_by = version.manifest["tokenizer"]
    name, commit = made_by.get("name"), made_by.get("commit")
    if not name:
        return None, "the manifest names no tokenizer"
    try:
        folder = Path(models.resolve(f"{name}@{commit}" if commit else name, weights=False).folder)
        tokenizer = vocabulary.load(name, folder, False)
    except UserError as problem:
        return None, f"the tokenizer of {name} cannot be read: {problem}"
    if vocabulary.digest(tokenizer) != made_by["digest"]:
        return None, f"{name} holds another tokenizer now than the one that made these tokens"
    return Decoder(tokenizer), ""
