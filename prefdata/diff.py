"""What differs between two versions: their rows by row_id, their columns, and what their manifests say of how they came about.

Rows are read file by file. A first pass keeps the id, the place and one digest of every row; a second one reads again
only the files that hold rows with different digests, and looks which columns differ.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa

from prefdata.versions import SPLITS, Version

TOLERANCE = 1e-4  # nats per token: what float32 log-probs differ by between machines and batches

_FACTS = ("kind", "build", "round", "config", "seeds", "tokenizer", "generator", "reference")


@dataclass
class SplitDiff:
    """The rows of one split: in one version alone, or in both and different."""

    split: str
    before: int = 0
    after: int = 0
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)  # in anything but log-probs
    logps_changed: list[str] = field(default_factory=list)  # log-probs further apart than the tolerance
    columns: Counter[str] = field(default_factory=Counter)  # rows that differ in a column, log-probs included
    logps_close: int = 0  # rows whose log-probs differ, all within the tolerance
    logps_apart: float = 0.0  # largest difference in nats per token

    @property
    def differs(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.logps_changed)


@dataclass
class Difference:
    """Everything that differs between two versions."""

    logical_hashes: tuple[str, str]
    facts: list[tuple[str, str, str]]  # key, old, new: values as JSON
    columns: list[tuple[str, str, str]]  # name, old type, new type
    splits: list[SplitDiff]

    @property
    def differs(self) -> bool:
        """Log-probs within the tolerance are no difference."""
        hashes = self.logical_hashes[0] != self.logical_hashes[1]
        return bool(hashes or self.facts or self.columns or any(split.differs for split in self.splits))


def compare(old: Version, new: Version) -> Difference:
    """Read both versions and tell what differs. DamagedVersion if a file is not what was published."""
    return Difference(
        (old.logical_hash, new.logical_hash),
        _facts(old, new),
        _columns(old, new),
        [_split(old, new, split) for split in SPLITS if split in {*old.splits, *new.splits}],
    )


def flat(name: str, value: Any) -> dict[str, Any]:
    """One entry per value of a nested fact: `tokenizer.digest`. A chat template is told by its digest alone."""
    if not isinstance(value, dict):
        return {name: value}
    told: dict[str, Any] = {}
    for key, item in value.items():
        if key != "template":
            told |= flat(f"{name}.{key}", item)
    return told


# -- manifests -----------------------------------------------------------------------------------------------------


def _facts(old: Version, new: Version) -> list[tuple[str, str, str]]:
    before, after = _told(old.manifest), _told(new.manifest)
    keys = list(dict.fromkeys([*before, *after]))
    return [
        (key, before.get(key, "null"), after.get(key, "null"))
        for key in keys
        if before.get(key, "null") != after.get(key, "null")
    ]


def _told(manifest: Mapping[str, Any]) -> dict[str, str]:
    told: dict[str, Any] = {}
    for name in _FACTS:
        told |= flat(name, manifest[name])
    return {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in told.items()}


def _columns(old: Version, new: Version) -> list[tuple[str, str, str]]:
    """Columns that one version lacks or holds under another type. A version without rows has no columns to compare."""
    if not (old.splits and new.splits):
        return []
    types = [{column.name: str(column.type) for column in version.schema} for version in (old, new)]
    names = dict.fromkeys([*types[0], *types[1]])
    told = [(name, types[0].get(name, "absent"), types[1].get(name, "absent")) for name in names]
    return [line for line in told if line[1] != line[2]]


# -- rows ----------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a row stands, and the digest of its content."""

    file: int
    row: int
    digest: bytes


def _split(old: Version, new: Version, split: str) -> SplitDiff:
    found = SplitDiff(split)
    shared = [name for name in old.columns() if name in new.columns()]
    before, after = _index(old, split, shared), _index(new, split, shared)
    found.before, found.after = len(before), len(after)
    found.removed = [row_id for row_id in before if row_id not in after]
    found.added = [row_id for row_id in after if row_id not in before]
    suspects = [
        (row_id, before[row_id], place)
        for row_id, place in after.items()
        if row_id in before and before[row_id].digest != place.digest
    ]
    # file by file in both, so that each pair of files is read once however the rows are ordered
    suspects.sort(key=lambda suspect: (suspect[2].file, suspect[1].file, suspect[2].row))
    old_file, new_file = _reader(old, split, shared), _reader(new, split, shared)
    for row_id, was, now in suspects:
        _compare_row(found, row_id, _row(old_file(was.file), was.row), _row(new_file(now.file), now.row))
    return found


def _index(version: Version, split: str, columns: list[str]) -> dict[str, _Place]:
    index: dict[str, _Place] = {}
    for number, entry in enumerate(version.files(split)):
        table = version.read(entry, columns)
        for row, (row_id, digest) in enumerate(zip(table["row_id"].to_pylist(), _digests(table), strict=True)):
            index[_unused(row_id, index)] = _Place(number, row, digest)
    return index


def _unused(row_id: str, index: Mapping[str, _Place]) -> str:
    """A version holds each id once; should one hold it twice, the second counts as a row of its own."""
    while row_id in index:
        row_id += " (again)"
    return row_id


def _reader(version: Version, split: str, columns: list[str]) -> Any:
    entries = version.files(split)

    @lru_cache(maxsize=1)
    def read(number: int) -> pa.Table:
        return version.read(entries[number], columns)

    return read


def _row(table: pa.Table, number: int) -> dict[str, Any]:
    row: dict[str, Any] = table.slice(number, 1).to_pylist()[0]
    return row


def _digests(table: pa.Table) -> Iterator[bytes]:
    """One digest per row. Unequal digests only raise a suspicion: the values themselves are compared after."""
    cells = [_cells(table[name]) for name in table.column_names]
    for number in range(table.num_rows):
        joined = hashlib.blake2b(digest_size=16)
        for column in cells:
            joined.update(len(column[number]).to_bytes(8, "big") + column[number])
        yield joined.digest()


def _cells(column: pa.ChunkedArray) -> list[bytes]:
    if not _is_numbers(column.type) or column.null_count:
        return [repr(value).encode("utf-8", "surrogatepass") for value in column.to_pylist()]
    found = []
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        found += [values[start:end].tobytes() for start, end in pairwise(offsets)]
    return found


def _is_numbers(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind)) and kind.value_type in (pa.int32(), pa.int64(), pa.float32(), pa.float64())


def _compare_row(found: SplitDiff, row_id: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    unequal = [name for name in was if repr(was[name]) != repr(now[name])]  # repr: NaN equals NaN, 1 is not True
    logps = {name: _apart(was[name], now[name], _tokens(name, was)) for name in unequal if name.endswith("logps")}
    far = [name for name in logps if logps[name] > TOLERANCE]
    others = [name for name in unequal if name not in logps]
    found.columns.update([*others, *far])
    if others:
        found.changed.append(row_id)
    if far:
        found.logps_changed.append(row_id)
    found.logps_close += bool(logps and not far)
    found.logps_apart = max([found.logps_apart, *logps.values()])


def _tokens(name: str, row: Mapping[str, Any]) -> int:
    """How many tokens a sum of log-probs is taken over; 1 for log-probs of single tokens."""
    side = name.removeprefix("ref_").removesuffix("_logps")
    return max(row.get(f"{side}_tokens") or 1, 1)


def _apart(was: Any, now: Any, tokens: int) -> float:
    """The largest difference in nats per token; infinite where the values can't be compared one by one."""
    left, right = (value if isinstance(value, list) else [value] for value in (was, now))
    if len(left) != len(right):
        return math.inf
    return max((_gap(a, b) for a, b in zip(left, right, strict=True)), default=math.inf) / tokens


def _gap(a: float | None, b: float | None) -> float:
    if repr(a) == repr(b):
        return 0.0
    gap = math.inf if a is None or b is None else abs(a - b)
    return math.inf if math.isnan(gap) else gap
