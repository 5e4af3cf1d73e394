"""Per-row randomness: counter-based, so that neither order nor shard size changes a draw."""

import numpy as np

from prefdata.identity import digest


def row_seed(seed: int, row_id: str, purpose: str, round_: int = 0, index: int = 0, attempt: int = 0) -> int:
    """A 63-bit seed that depends on nothing but its arguments."""
    counter = {"seed": seed, "row": row_id, "purpose": purpose, "round": round_, "index": index, "attempt": attempt}
    return int(digest(counter)[:16], 16) >> 1


def generator(seed: int) -> np.random.Generator:
    """A counter-based generator (Philox) of a row seed."""
    return np.random.Generator(np.random.Philox(key=seed))
