"""MinHash sketches of texts: how alike two are can be told from their sketches alone.

The similarity is the Jaccard index of the sets of runs of three words (Broder 1997); where two sketches agree in a share s
of their slots, s estimates it, with a standard error of at most 0.045. Sketches come from rensa's R-MinHash.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefdata.facts import Ragged
from prefdata.steps.words import ngrams, words

Sketches = np.ndarray[Any, np.dtype[np.uint32]]

SLOTS = 128
SHINGLE = 3  # words
_SEED = 42
_ROWS = 8192  # sketched together; rensa hands its matrix back as Python numbers


def sketches(texts: Sequence[str]) -> Sketches:
    """(texts, SLOTS) of texts that are `words.normal`. A text without a word is alike to its equals only."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    distinct = list(places)
    parts = [_sketched(distinct[start : start + _ROWS]) for start in range(0, len(distinct), _ROWS)]
    own = np.concatenate(parts) if parts else np.zeros((0, SLOTS), np.uint32)
    return own[[places[text] for text in texts]]


def _sketched(texts: list[str]) -> Sketches:
    from rensa import RMinHash

    shingles = _never_empty(texts, ngrams(words(texts), SHINGLE))
    offsets = np.concatenate([[0], shingles.ends]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles.values, offsets, SLOTS, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(texts), SLOTS)


def _never_empty(texts: list[str], shingles: Ragged) -> Ragged:
    empty = np.flatnonzero(shingles.lengths == 0)
    if not len(empty):
        return shingles
    whole = [
        int.from_bytes(hashlib.sha256(texts[place].encode("utf-8", "surrogatepass")).digest()[:8]) for place in empty
    ]
    values = np.insert(shingles.values, (shingles.ends - shingles.lengths)[empty], np.array(whole, np.uint64))
    return Ragged(values, np.maximum(shingles.lengths, 1))
