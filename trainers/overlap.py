"""What the versions of a run have in common: rows that several hold, prompts held out, answers ranked both ways."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.errors import UserError
from prefdata.versions import Version
from trainers import data
from trainers.loss import Loss, Reading

if TYPE_CHECKING:
    from trainers.sources import Sources


@dataclass(frozen=True)
class Overlap:
    """Rows of a split that have to do with rows of another version."""

    repeated: int = 0  # not read again after an earlier version
    held_out: int = 0  # not read, since another version keeps their prompt for testing
    contradicting: int = 0  # read, though an earlier version has the same two answers the other way round

    def sentences(self, split: str) -> Iterator[str]:
        """What to tell a person; nothing if the versions have nothing in common."""
        if self.repeated:
            yield f"{self.repeated:,} {split} rows stand in more than one version; each is read once"
        if self.held_out:
            yield f"{self.held_out:,} {split} rows are left out, since another version holds out their prompts"
        if self.contradicting:
            yield (
                f"notice: {self.contradicting:,} {split} rows contradict an earlier version, which prefers the other of the same"
                " two answers; both are read"
            )


def masks(sources: "Sources", split: str, loss: Loss) -> tuple[dict[Version, data.Mask], Overlap]:
    """For each version, which of the split's rows are read; nothing to decide for a single one.

    UserError if two versions hold one row with other tokens, or with others of them scored.
    """
    if len(sources.versions) == 1:
        return {}, Overlap()
    kept: dict[Version, data.Mask] = {}
    seen: list[pa.Table] = []  # the rows of the versions before
    repeated = held_out = contradicting = 0
    for version in sources.holding(split):
        facts = _facts(version, split, loss)
        tested = _among(facts["prompt_id"], _held_out(sources, version) if split == "train" else [])
        again = _among(facts["row_id"], _chunks(seen, "row_id")) & ~tested
        changed = again & ~_among(facts["content"], _chunks(seen, "content"))
        if changed.any():
            raise _differs(sources, split, version, facts["row_id"][int(changed.argmax())].as_py())
        kept[version] = ~tested & ~again
        contradicting += int((_among(facts["reversed"], _chunks(seen, "answers")) & kept[version]).sum())
        seen.append(facts.select(["row_id", "content", "answers"]).filter(pa.array(kept[version])))
        held_out += int(tested.sum())
        repeated += int(again.sum())
    return kept, Overlap(repeated, held_out, contradicting)


def _facts(version: Version, split: str, loss: Loss) -> pa.Table:
    """Of every row its ids; as hashes its content (tokens, and which are scored), its two answers in order, and reversed.

    The last two are null for a loss that compares no answers.
    """
    reading = Reading(loss.reading(version.kind).sides, {})
    names = ["prompt_id", *data.columns(version.columns(), reading)]
    parts = [_facts_of(table, reading) for table in version.batches(split, columns=names, rows=data.ROWS_PER_BATCH)]
    return pa.concat_tables(parts)


def _facts_of(table: pa.Table, reading: Reading) -> pa.Table:
    hashed: dict[str, list[bytes | None]] = {"content": [], "answers": [], "reversed": []}
    rows = chain.from_iterable(map(data.each_row, table.combine_chunks().to_batches(), repeat(reading)))
    for prompt_id, row in zip(table["prompt_id"].to_pylist(), rows, strict=True):
        scored = [side.scored.tobytes() for side in row.sides]
        ids = [side.ids.tobytes() for side in row.sides]
        hashed["content"].append(_hash(row.row_id.encode(), row.prompt_ids.tobytes(), *ids, *scored))
        compared = len(ids) > 1
        hashed["answers"].append(_hash(prompt_id.encode(), *ids) if compared else None)
        hashed["reversed"].append(_hash(prompt_id.encode(), *reversed(ids)) if compared else None)
    binary = {name: pa.array(values, pa.binary()) for name, values in hashed.items()}
    return pa.table({"row_id": table["row_id"], "prompt_id": table["prompt_id"], **binary})


def _hash(*parts: bytes) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()


def _differs(sources: "Sources", split: str, version: Version, row_id: str) -> UserError:
    """Two versions hold one row, and training on the first would not be training on the second."""
    before = sources.holding(split)[: sources.holding(split).index(version)]
    first = next(one for one in before if row_id in one.table(split, columns=["row_id"])["row_id"].to_pylist())
    return UserError(
        f"data versions {sources.label(first)} and {sources.label(version)} cannot be trained on together: both hold row"
        f" {row_id}, with other tokens or a different loss mask. Name one of them, or build one again as the other was."
    )


def _held_out(sources: "Sources", version: Version) -> list[Any]:
    """The prompts that the other versions test on."""
    others = [other for other in sources.holding("test") if other is not version]
    return _chunks([other.table("test", columns=["prompt_id"]) for other in others], "prompt_id")


def _chunks(tables: Sequence[pa.Table], name: str) -> list[Any]:
    """A column of all of them."""
    return [chunk for table in tables for chunk in table[name].chunks]


def _among(values: pa.ChunkedArray, known: Sequence[Any]) -> data.Mask:
    """Which of the values are known."""
    if not known:
        return np.zeros(len(values), np.bool_)
    found: data.Mask = pc.is_in(values, value_set=pa.chunked_array(known).combine_chunks(), skip_nulls=True).to_numpy()
    return found
