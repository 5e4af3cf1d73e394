"""Texts as vectors: by sentence-transformers where that is installed and the model is one of its own, otherwise as the mean
of a transformers model's last hidden states over the text's tokens.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from prefdata import models, vocabulary
from prefdata.errors import UserError

TOKENS_PER_BATCH = 8192  # padding included
LIBRARY = "sentence_transformers"
_OWN = "modules.json"  # what sentence-transformers writes beside a model
_POOLING = "1_Pooling/config.json"

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Embedder(Protocol):
    """A model that is loaded."""

    def embed(self, texts: Sequence[str], tell: Callable[[float], None]) -> tuple[Vectors, int]:
        """(texts, size) vectors, and how many tokens were read; `tell` hears what share is done."""
        ...


def describe(name: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The manifest's entry of an embedding model; `fingerprint` is a sha256 of what decides its vectors."""
    description = models.describe(name)
    source = models.resolve(name, remote_code=trust_remote_code)
    tokenizer = vocabulary.digest(vocabulary.load(name, source.folder, trust_remote_code))
    pooling = _pooling(name)
    parts = [description["digest"], description["config_digest"], tokenizer, pooling]
    return {**description, "pooling": pooling, "fingerprint": hashlib.sha256(json.dumps(parts).encode()).hexdigest()}


def load(name: str, *, trust_remote_code: bool = False) -> Embedder:
    """The model as `describe` says that it is read."""
    if _pooling(name) != "mean":
        return _Sentences(name, trust_remote_code)
    return _MeanPooled(name, trust_remote_code)


def _pooling(name: str) -> str:
    """mean, or the library that pools as the model says. UserError if that is another way and the library is not there."""
    folder = models.resolve(name).folder
    if not (folder / _OWN).is_file():
        return "mean"
    if find_spec(LIBRARY):
        return f"sentence-transformers {metadata.version('sentence-transformers')}"
    stated = folder / _POOLING
    if stated.is_file() and not json.loads(stated.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens", True):
        raise UserError(
            f"model {name} does not pool by the mean of its tokens, and sentence-transformers, which reads such models, is"
            " not installed: pip install sentence-transformers, or name another model."
        )
    return "mean"


class _MeanPooled:
    """Mean over all tokens of a text, special ones that the tokenizer adds included; what is too long is cut at its end."""

    def __init__(self, name: str, trust_remote_code: bool) -> None:
        source = models.resolve(name, remote_code=trust_remote_code)
        self._tokenizer = vocabulary.load(name, source.folder, trust_remote_code)
        self._model = models.load_encoder(name, trust_remote_code=trust_remote_code)
        limits = (models.config_positions(self._model.config), self._tokenizer.model_max_length)
        self._longest = min(limit for limit in limits if limit is not None)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], tell: Callable[[float], None]) -> tuple[Vectors, int]:
        """Longest first, in batches that depend on nothing but these texts."""
        ids = [self._tokenizer(text)["input_ids"][: self._longest] for text in texts]
        size = self._model.config.get_text_config().hidden_size
        found = np.full((len(texts), size), np.nan, np.float32)  # a text without a token has no vector
        done = 0
        for places in _batches([len(each) for each in ids]):
            rows = [torch.tensor(ids[place], device=self._model.device) for place in places]
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            hidden = self._model(input_ids=pad_sequence(rows, batch_first=True), attention_mask=mask).last_hidden_state
            kept = mask[:, :, None].to(torch.float32)
            means = (hidden.float() * kept).sum(dim=1) / kept.sum(dim=1)
            found[places] = means.cpu().numpy()
            done += len(places)
            tell(done / len(texts))
        return found, sum(map(len, ids))


class _Sentences:
    """A model as sentence-transformers reads it, with the pooling that it says."""

    def __init__(self, name: str, trust_remote_code: bool) -> None:
        from importlib import import_module

        source = models.resolve(name, remote_code=trust_remote_code)
        where = {"revision": source.commit} if source.commit else {}
        self._model: Any = import_module(LIBRARY).SentenceTransformer(
            source.name if source.commit else str(source.folder), trust_remote_code=trust_remote_code, **where
        )

    def embed(self, texts: Sequence[str], tell: Callable[[float], None]) -> tuple[Vectors, int]:
        """All at once: the library makes its own batches."""
        vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        tell(1.0)
        tokens = sum(len(self._model.tokenizer(text)["input_ids"]) for text in texts)
        return np.asarray(vectors, np.float32), tokens


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts with tokens, longest first, so many together that padding included they stay below the limit."""
    order = sorted(
        (place for place, length in enumerate(lengths) if length), key=lambda place: (-lengths[place], place)
    )
    start = 0
    while start < len(order):
        count = max(1, TOKENS_PER_BATCH // lengths[order[start]])
        yield order[start : start + count]
        start += count
