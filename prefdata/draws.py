"""Per-row randomness: counter-based, so that neither order nor shard size changes a draw."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefdata.identity import digest


def row_seed(seed: int, row_id: str, purpose: str, round_: int = 0, index: int = 0, attempt: int = 0) -> int:
    """A 63-bit seed that depends on nothing but its arguments."""
    counter = {"seed": seed, "row": row_id, "purpose": purpose, "round": round_, "index": index, "attempt": attempt}
    return int(digest(counter)[:16], 16) >> 1


def generator(seed: int) -> np.random.Generator:
    """A counter-based generator (Philox) of a row seed."""
    return np.random.Generator(np.random.Philox(key=seed))


def uniform(seed: int, ids: Sequence[str], purpose: str, round_: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(rows,) one number in [0, 1) for each id, for many rows at once: a hash of all arguments, mixed by SplitMix64."""
    start = np.uint64(row_seed(seed, "all rows", purpose, round_))
    names = np.fromiter((_name(each) for each in ids), np.uint64, len(ids))
    return _number(_mixed(names ^ start))


def of_both(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(rows,) one number in [0, 1) for each pair of draws of `uniform`, independent of either alone."""
    bits, others = ((draws * 2.0**53).astype(np.uint64) for draws in (one, other))
    with np.errstate(over="ignore"):
        return _number(_mixed(_mixed(bits) + others))


def _mixed(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """SplitMix64."""
    with np.errstate(over="ignore"):  # unsigned arithmetic wraps around, as it is meant to
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _number(bits: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _name(row_id: str) -> int:
    """64 bits of an id, which is a hash already but in tests."""
    try:
        return int(row_id[:16], 16) if len(row_id) == 64 else _hashed(row_id)
    except ValueError:
        return _hashed(row_id)


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
