"""Whether a version is what its manifest says: bytes, schema, counts, ledger, hash."""

from itertools import filterfalse

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
    problems = _verify_files(version)
    if problems:
        return problems  # what damaged files hold says nothing
    return [*_verify_rows(version), *_verify_ledger(version)]


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


def _verify_files(version: Version) -> list[str]:
    listed = {entry["path"] for entry in version.manifest["files"]}
    strangers = sorted(set(version.storage.walk()) - listed - {MANIFEST})
    problems = [f"{path}: not in the manifest" for path in strangers]
    if version.storage.read(MANIFEST) != manifests.as_bytes(version.manifest):
        problems.append(f"{MANIFEST}: its bytes are not those that were published")
    for entry in version.manifest["files"]:
        problems.extend(_verify_file(version, entry))
    return problems


def _verify_file(version: Version, entry: FileEntry) -> list[str]:
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
    return []


def _verify_rows(version: Version) -> list[str]:
    problems: list[str] = []
    total = LogicalHash()
    found = dict.fromkeys(version.manifest["counts"]["rows"], 0)
    for split in SPLITS:
        for entry in version.files(split):
            table = version.read(entry)
            problems.extend(f"{entry['path']}: {problem}" for problem in row_problems(version.kind, table))
            total.add(split, table)
            found[split] = found.get(split, 0) + table.num_rows
    if found != version.manifest["counts"]["rows"]:
        problems.append(f"rows by split are {found}, the manifest says {version.manifest['counts']['rows']}")
    if not problems and total.hexdigest() != version.logical_hash:
        problems.append("the logical hash of the rows differs from the manifest's")
    return problems


def _verify_ledger(version: Version) -> list[str]:
    tally = Tally()
    made: list[str] = []
    for entry in version.files("ledger"):
        table = version.read(entry)
        tally.add(table)
        made.extend(table["made"].combine_chunks().flatten().to_pylist())
    stated = version.manifest["counts"]
    problems = count_problems(stated)
    if tally.counts([stage["stage"] for stage in stated["stages"]], stated["rows"]) != stated:
        problems.append("the ledger's sums differ from the manifest's counts")
    rows = [row for split in version.splits for row in version.table(split, ["row_id"])["row_id"].to_pylist()]
    if len(rows) != len(set(rows)):
        problems.append(f"{len(rows) - len(set(rows))} rows stand in the version more than once")
    if set(rows) != set(made):
        problems.append("the rows that the ledger says were made are not the rows of the version")
    return problems
