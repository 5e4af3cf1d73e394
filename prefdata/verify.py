"""Whether a version is what its manifest says: bytes, schema, counts, ledger, hash."""

from itertools import filterfalse

import pyarrow as pa

from prefdata import manifests, parquet, versions
from prefdata.counts import Tally
from prefdata.counts import problems as count_problems
from prefdata.errors import UserError
from prefdata.logical import LogicalHash, row_problems
from prefdata.storage import sha256
from prefdata.versions import MANIFEST, SPLITS, Version
from prefdata.work import Work
from schemas.manifest import FileEntry


def verify(version: Version) -> list[str]:
    """Everything that is wrong with a version, in words; empty when it is sound.

    Re-hashes every file, looks for files that don't belong, and checks schema, row counts, ledger sums, the rows the
    ledger says were made, and the logical hash.
    """
    problems = _verify_listing(version)
    content = _Content(version)
    for entry in version.manifest["files"]:
        problems.extend(_verify_file(version, entry, content))
    return problems or content.problems()  # what damaged files hold says nothing


def verify_beside(root: str) -> list[str]:
    """What is wrong below a root with what is no version: tags that name none, and damaged work units."""
    problems = []
    for tag in versions.tags(root):
        try:
            versions.find(tag, root=root)
        except UserError as problem:
            problems.append(f"tags/{tag}: {problem}")
    work = Work(root)
    damaged = filterfalse(work.sound, work.keys())
    return problems + [f"{work.path(key)}: damaged; a build that needs it computes it again" for key in damaged]


def _verify_listing(version: Version) -> list[str]:
    listed = {entry["path"] for entry in version.manifest["files"]}
    strangers = sorted(set(version.storage.walk()) - listed - {MANIFEST})
    problems = [f"{path}: not in the manifest" for path in strangers]
    if version.storage.read(MANIFEST) != manifests.as_bytes(version.manifest):
        problems.append(f"{MANIFEST}: its bytes are not those that were published")
    return problems


def _verify_file(version: Version, entry: FileEntry, content: "_Content") -> list[str]:
    """Read a file, once: what is wrong with its bytes; where nothing is, `content` is given its rows."""
    path = entry["path"]
    try:
        data = version.storage.read(path)
    except FileNotFoundError:
        return [f"{path}: missing"]
    if len(data) != entry["bytes"]:
        return [f"{path}: {len(data)} bytes, the manifest says {entry['bytes']}"]
    if sha256(data) != entry["sha256"]:
        return [f"{path}: sha256 differs from the manifest's"]
    if "rows" in entry and (rows := parquet.rows(data)) != entry["rows"]:
        return [f"{path}: {rows} rows, the manifest says {entry['rows']}"]
    content.add(path, data)
    return []


class _Content:
    """What the row and ledger files of a version hold, file by file, against its manifest."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._stated = version.manifest["counts"]
        self._problems: list[str] = []  # of the rows, each with its file
        self._hash = LogicalHash()
        self._rows = dict.fromkeys(self._stated["rows"], 0)
        self._ids: set[str] = set()
        self._tally = Tally()
        self._made: set[str] = set()

    def add(self, path: str, data: bytes) -> None:
        """Take in a file: rows of a split, or lines of the ledger; others hold nothing to compare."""
        folder = path.partition("/")[0]
        if folder in SPLITS:
            self._add_rows(folder, path, parquet.read(data))
        elif folder == "ledger":
            lines = parquet.read(data)
            self._tally.add(lines)
            self._made.update(lines["made"].combine_chunks().flatten().to_pylist())

    def _add_rows(self, split: str, path: str, table: pa.Table) -> None:
        self._problems.extend(f"{path}: {problem}" for problem in row_problems(self._version.kind, table))
        self._hash.add(split, table)
        self._rows[split] = self._rows.get(split, 0) + table.num_rows
        self._ids.update(table["row_id"].to_pylist())

    def problems(self) -> list[str]:
        """What is wrong, once every file was taken in."""
        return [*self._row_problems(), *self._ledger_problems()]

    def _row_problems(self) -> list[str]:
        problems = list(self._problems)
        if self._rows != self._stated["rows"]:
            problems.append(f"rows by split are {self._rows}, the manifest says {self._stated['rows']}")
        if not problems and self._hash.hexdigest() != self._version.logical_hash:
            problems.append("the logical hash of the rows differs from the manifest's")
        return problems

    def _ledger_problems(self) -> list[str]:
        problems = count_problems(self._stated)
        stages = [stage["stage"] for stage in self._stated["stages"]]
        if self._tally.counts(stages, self._stated["rows"]) != self._stated:
            problems.append("the ledger's sums differ from the manifest's counts")
        if again := sum(self._rows.values()) - len(self._ids):
            problems.append(f"{again} rows stand in the version more than once")
        if self._ids != self._made:
            problems.append("the rows that the ledger says were made are not the rows of the version")
        return problems
