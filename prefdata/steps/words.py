"""What is compared of a text: its normal form, its words as 64-bit hashes, and runs of words (n-grams).

Words are runs of letters, marks and digits; in scripts that put no spaces between words each character is one. The
hashes depend on nothing but the text, so results are the same on every machine and in every order. Vectorised: a
million prompts take seconds.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from prefdata.facts import Ragged

Hashes = np.ndarray[Any, np.dtype[np.uint64]]

_CHARACTERS = 1 << 22  # of texts that are worked on together: some 200 MB
_CODE_POINTS = 0x110000
_GAP, _LETTER, _ALONE, _SYMBOL = range(4)
# first and last code points of scripts that are written without spaces: Thai to Lao, Myanmar, Khmer, then kana,
# bopomofo and Chinese characters with their extensions
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x312F)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
)
_OPERATORS = "*/%-"  # punctuation to Unicode, and what tells one sum from another
_BASE, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)  # odd, with bits well spread


def normal(text: str) -> str:
    """NFKC, without case, runs of white space as one space."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split())


def words(texts: Sequence[str], *, symbols: bool = True) -> Ragged:
    """A hash for every word of every text, in order. Texts should be `normal`.

    symbols: operators and other symbols are words too (3 + 4 is not 3 - 4); other punctuation never is.
    """
    found = [_words(part, symbols) for part in _parts(texts)]
    if not found:
        return Ragged(np.zeros(0, np.uint64), np.zeros(0, np.int64))
    return Ragged(*(np.concatenate(each) for each in zip(*found, strict=True)))


def ngrams(words: Ragged, n: int) -> Ragged:
    """A hash for every run of n words of every row; a row of fewer, but not none, has one of all of them."""
    lengths, total = words.lengths, len(words.values)
    place = np.arange(total) - np.repeat(words.ends - lengths, lengths)
    length = np.repeat(lengths, lengths)
    first = np.flatnonzero(place <= np.maximum(length - n, 0))
    runs = np.zeros(len(first), np.uint64)
    with np.errstate(over="ignore"):  # unsigned arithmetic wraps around, as it is meant to
        for ahead in range(n):
            inside = place[first] + ahead < length[first]
            word = words.values[np.minimum(first + ahead, max(total - 1, 0))]
            runs = runs * _STEP + np.where(inside, word, np.uint64(0))
    return Ragged(mixed(runs), np.where(lengths > 0, np.maximum(lengths - n + 1, 1), 0))


def mixed(values: Hashes) -> Hashes:
    """Each value with all its bits stirred (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > _CHARACTERS:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def _words(texts: list[str], symbols: bool) -> tuple[Hashes, Any]:
    codes = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _classes()[codes]
    if not symbols:
        classes = np.where(classes == _SYMBOL, np.uint8(_GAP), classes)
    letter = classes == _LETTER
    goes_on = np.zeros(len(codes), bool)
    goes_on[1:] = letter[1:] & letter[:-1]
    inside = np.flatnonzero(classes)
    starts = np.flatnonzero(~goes_on[inside])  # among those inside
    bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
    lengths = np.diff(np.searchsorted(inside[starts], bounds))
    if not len(starts):
        return np.zeros(0, np.uint64), lengths
    sizes = np.diff(starts, append=len(inside))
    place = np.arange(len(inside)) - np.repeat(starts, sizes)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(sizes.max(), _BASE, np.uint64))
        spelled = (codes[inside].astype(np.uint64) + np.uint64(1)) * powers[place]
        return mixed(np.add.reduceat(spelled, starts)), lengths


@cache
def _classes() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What every code point is."""
    found = np.zeros(_CODE_POINTS, np.uint8)
    for code in range(_CODE_POINTS):
        kind = unicodedata.category(chr(code))[0]
        found[code] = _LETTER if kind in "LMN" else _SYMBOL if kind == "S" else _GAP
    for first, last in _UNSPACED:
        part = found[first : last + 1]
        part[part == _LETTER] = _ALONE
    found[[ord(each) for each in _OPERATORS]] = _SYMBOL
    return found
