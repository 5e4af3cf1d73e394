"""Versions of a data set: claim, stage, publish, open. The only code that writes a version.

A version is a folder `vN` below the root. Its number is claimed by an exclusive create, its files are written into the
folder, and the manifest is written last: a folder without a manifest is no version, so readers see all of it or none.
"""

import errno
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from prefdata import counts, logical, manifests, parquet
from prefdata.errors import UserError
from prefdata.storage import Storage, sha256
from schemas.ledger import LEDGER
from schemas.manifest import FORMAT, FileEntry, Manifest, Parent

MANIFEST = "manifest.json"
CLAIM = "claim"
ROWS_PER_FILE = 8192
_READERS = 16  # manifests read at a time
SPLITS = ("train", "test")

_NUMBERED = re.compile(r"v([1-9][0-9]*)")
_TAG = re.compile(r"[^\W_][\w.-]*")  # no separators, nothing hidden, nothing that reads like an option
_TAG_BYTES = 100
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file of Windows is called so
# a folder in its place, no permission, a link to itself, a socket: what is wrong with a file, and not with its disk
_OF_ONE_FILE = frozenset({errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO})
_log = logging.getLogger(__name__)


class DamagedVersion(UserError):
    """A manifest that can't be read, or a file of a version that is not what its manifest says."""


class Version:
    """An opened version. Every file is checked against the manifest when it is read."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.storage = storage
        self.manifest = manifest

    @property
    def name(self) -> str:
        return self.manifest["version"]

    @property
    def url(self) -> str:
        return self.storage.url

    @property
    def root(self) -> str:
        """The folder or URL that its folder stands in."""
        return self.url.rsplit("/", 1)[0]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def logical_hash(self) -> str:
        return self.manifest["logical_hash"]

    @property
    def parents(self) -> list[str]:
        """What `find` opens its parents by: vN, or the URL of one that stands below another root."""
        return [parent.get("url") or parent["version"] for parent in self.manifest["parents"]]

    @property
    def splits(self) -> list[str]:
        """The splits that hold rows, train first."""
        rows = self.manifest["counts"]["rows"]
        return [split for split in SPLITS if rows.get(split)]

    def files(self, folder: str) -> list[FileEntry]:
        """The Parquet files of a split, of `ledger` or of `stats`, in order."""
        inside = [entry for entry in self.manifest["files"] if entry["path"].startswith(f"{folder}/")]
        return sorted(inside, key=lambda entry: entry["path"])

    def paths(self, folder: str) -> list[str]:
        """Full paths or URLs of those files."""
        return [f"{self.url}/{entry['path']}" for entry in self.files(folder)]

    def read(self, entry: FileEntry, columns: Sequence[str] | None = None) -> pa.Table:
        """One Parquet file. DamagedVersion if its bytes are not those that were published."""
        wanted = None if columns is None else list(columns)
        return parquet.read(self.content(entry), wanted)

    def check(self, entry: FileEntry) -> None:
        """DamagedVersion if a file is not as it was published."""
        self.content(entry)

    def content(self, entry: FileEntry) -> bytes:
        """A file's bytes. DamagedVersion if they are not those that were published."""
        try:
            data = self.storage.read(entry["path"])
        except FileNotFoundError:
            raise DamagedVersion(f"{self.name}: {entry['path']} is missing from {self.url}") from None
        if sha256(data) != entry["sha256"]:
            raise DamagedVersion(
                f"{self.name}: {entry['path']} is not the file that was published (its sha256 differs). "
                f"Look with `prefdata verify {self.name}`, then restore the file or build the version again."
            )
        return data

    def batches(self, split: str, columns: Sequence[str] | None = None, rows: int = 4096) -> Iterator[pa.Table]:
        """The rows of a split in order, at most `rows` at a time."""
        for entry in self.files(split):
            table = self.read(entry, columns)
            for start in range(0, table.num_rows, rows):
                yield table.slice(start, rows)

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a split."""
        entries = self.files(split)
        if not entries:
            raise UserError(f"{self.name} has no {split!r} rows; it holds: {', '.join(self.splits) or 'none'}")
        return pa.concat_tables([self.read(entry, columns) for entry in entries])

    def columns(self) -> list[str]:
        """Names of the columns of the row files."""
        return list(self.schema.names)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the row files, meanings included."""
        for split in SPLITS:
            for entry in self.files(split):
                return pq.read_schema(pa.BufferReader(self.content(entry)))
        return pa.schema([])

    def ledger(self) -> pa.Table:
        """One line per row of the direct parent."""
        entries = self.files("ledger")
        return pa.concat_tables([self.read(entry) for entry in entries]) if entries else LEDGER.empty_table()


# -- finding -------------------------------------------------------------------------------------------------------


def root(given: str | None = None) -> str:
    """Where versions live: the argument, else $PREFDATA_ROOT, else ./data."""
    return given or os.environ.get("PREFDATA_ROOT") or "data"


def numbers(storage: Storage) -> list[int]:
    """Every number that is taken, whole or not."""
    return sorted(int(match[1]) for name in storage.folders() if (match := _NUMBERED.fullmatch(name)))


def writable(given_root: str | None = None) -> None:
    """UserError unless files can be made below a root: asked before a model is loaded, not after hours of work."""
    Storage(root(given_root)).probe()


def _warn(damage: DamagedVersion) -> None:
    _log.warning("passed over: %s", damage)


def every(given_root: str | None = None, *, damaged: Callable[[DamagedVersion], None] = _warn) -> list[Version]:
    """All whole versions below a root, by number.

    One damaged version must not stop work on the others: `damaged` hears of each that is passed over.
    """
    storage = Storage(root(given_root))
    found = []
    with ThreadPoolExecutor(_READERS) as pool:  # an object store takes its time for each manifest
        for opened in pool.map(partial(_opened, storage), numbers(storage)):
            if isinstance(opened, DamagedVersion):
                damaged(opened)
            elif opened is not None:
                found.append(opened)
    return found


def _opened(storage: Storage, number: int) -> Version | DamagedVersion | None:
    try:
        return _open_numbered(storage, f"v{number}")
    except DamagedVersion as damage:
        return damage


def find(ref: str, *, root: str | None = None, kinds: Sequence[str] | None = None) -> Version:
    """The version that `vN`, a tag, `latest`, or a path or URL names.

    `latest` is the newest version of one of `kinds`. UserError if there is none, or if it is of another kind.
    """
    where = globals()["root"](root)
    version = _latest(where, kinds) if ref == "latest" else _named(ref, where)
    if kinds is not None and version.kind not in kinds:
        raise UserError(f"{version.name} holds {version.kind}, and this reads {' or '.join(kinds)}")
    return version


def find_build(build_key: str, given_root: str | None = None) -> Version | None:
    """The first version that an equal build made, if any."""
    return next((version for version in every(given_root) if version.manifest["build_key"] == build_key), None)


def tags(given_root: str | None = None) -> dict[str, str]:
    """Tag names and the versions they name."""
    return {name: named for name, (named, _) in _tags(root(given_root)).items()}


def _tags(where: str) -> dict[str, tuple[str, str | None]]:
    """Per tag the version it names, and that version's logical hash; None in a file written by hand."""
    storage = Storage(where).at("tags")
    found = {}
    for name in filter(_TAG.fullmatch, storage.names()):
        try:
            content = storage.read(name)
        except FileNotFoundError:  # removed meanwhile
            continue
        named, _, logical_hash = content.decode(errors="replace").strip().partition(" ")
        found[name] = named, logical_hash or None
    return found


def tag(name: str, ref: str, given_root: str | None = None) -> tuple[Version, str | None]:
    """Let a tag name a whole version of this root: that version, and which one the tag named before, if any."""
    if wrong := tag_problem(name):
        raise UserError(f"{name!r} can't be a tag: {wrong}")
    storage = Storage(root(given_root))
    version = find(ref, root=given_root)
    if version.url != storage.at(version.name).url:
        raise UserError(f"{version.url} is not in {storage.url}: a tag names a version beside it")
    before = tags(given_root).get(name)
    storage.at("tags").write(name, f"{version.name} {version.logical_hash}\n".encode())
    return version, before


def untag(name: str, given_root: str | None = None) -> str:
    """Remove a tag; returns what it named. The version stays."""
    there = tags(given_root)
    if name not in there:  # also keeps a name with a / from reaching anything but a tag
        raise UserError(f"there is no tag {name!r} in {root(given_root)!r}; tags there: {', '.join(there) or 'none'}")
    Storage(root(given_root)).at("tags").remove(name)
    return there[name]


def tag_problem(name: str) -> str | None:
    """Why this can't be the name of a tag; None if it can."""
    if re.fullmatch(r"v\d*|latest", name, re.IGNORECASE):
        return "it reads like a version (vN) or like latest"
    if not _TAG.fullmatch(name) or len(name.encode()) > _TAG_BYTES:
        return f"use letters, digits, and . _ - after the first letter or digit, at most {_TAG_BYTES} bytes in UTF-8"
    if name.endswith(".") or _DEVICE.fullmatch(name):
        return "not every machine can keep a file of that name"
    return None


def parent_entry(parent: Version, given_root: str | None = None) -> Parent:
    """How the manifest of a version below a root names its parent: with its URL if that stands anywhere else."""
    entry: Parent = {"version": parent.name, "logical_hash": parent.logical_hash}
    if parent.url != Storage(root(given_root)).at(parent.name).url:
        entry["url"] = parent.url
    return entry


def _open(storage: Storage) -> Version | None:
    try:
        data = storage.read(MANIFEST)
    except FileNotFoundError:
        return None
    except (OSError, UserError) as problem:
        found = problem.__cause__ if isinstance(problem, UserError) else problem
        if not (storage.local and isinstance(found, OSError) and found.errno in _OF_ONE_FILE):
            raise
        raise DamagedVersion(f"{storage.url}/{MANIFEST} can't be read: {found.strerror}") from problem
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise DamagedVersion(f"{storage.url}/{MANIFEST} can't be read as JSON: {problem}") from problem
    if wrong := manifests.problem(manifest):
        raise DamagedVersion(f"{storage.url}/{MANIFEST} can't be read as a manifest: {wrong}")
    return Version(storage, cast(Manifest, manifest))


def _open_numbered(storage: Storage, name: str) -> Version | None:
    """The version vN below a root. A copy of another version is none of the root's: `v1` would stand there twice."""
    version = _open(storage.at(name))
    if version is not None and version.name != name:
        raise DamagedVersion(
            f"{version.url} holds a manifest of {version.name}, as a copied folder does; "
            f"move it out of {storage.url} and open it by its path"
        )
    return version


def _latest(where: str, kinds: Sequence[str] | None) -> Version:
    suitable = [version for version in every(where) if kinds is None or version.kind in kinds]
    if not suitable:
        wanted = f"version of kind {' or '.join(kinds)}" if kinds else "version"
        raise UserError(f"there is no {wanted} in {where!r} yet; make one with:  python -m flows.ingest --help")
    return suitable[-1]


def _named(ref: str, where: str) -> Version:
    if "/" in ref or "\\" in ref or "://" in ref:
        version = _open(Storage(ref))
        if version is None:
            raise UserError(f"{ref!r} is not a version: it has no {MANIFEST}")
        return version
    name, logical_hash = (ref, None) if _NUMBERED.fullmatch(ref) else _tags(where).get(ref, (None, None))
    version = _open_numbered(Storage(where), name) if name and _NUMBERED.fullmatch(name) else None
    if version is None:
        raise UserError(_absent(ref, name, where))
    if logical_hash not in (None, version.logical_hash):
        raise UserError(
            f"the tag {ref!r} names {name} as it does not stand there: the logical hash beside it differs. If {name} is "
            f"the one to name, give the tag again:  prefdata tag {ref} {name}"
        )
    return version


def _absent(ref: str, name: str | None, where: str) -> str:
    names = [version.name for version in every(where)]
    listed = ", ".join(names[-12:]) if names else "none yet"
    if name not in (None, ref):
        return f"the tag {ref!r} names {name!r}, which is not in {where!r}; versions there: {listed}"
    return f"there is no version or tag {ref!r} in {where!r}; versions there: {listed}"


# -- publishing ----------------------------------------------------------------------------------------------------


class Staging:
    """The files of a version on their way: written into its claimed folder, unseen until `publish`.

    Use it as a context manager: if it is left without `publish`, what was staged is removed.
    """

    def __init__(self, given_root: str | None, schema: pa.Schema, build_key: str) -> None:
        self._root = Storage(root(given_root))
        self.schema = schema
        claim = _claim_data(build_key)
        self.number = _claim(self._root, claim)
        self.storage = self._root.at(f"v{self.number}")
        self.files = [_entry(CLAIM, claim)]
        self.rows: dict[str, int] = {}
        self._pending: dict[str, list[pa.Table]] = {}
        self._parts: dict[str, int] = {}
        self._hash = logical.LogicalHash()
        self._tally = counts.Tally()
        self.published = False
        self._under_way = False  # the manifest is asked for, and nobody knows yet whether it will be written

    @property
    def name(self) -> str:
        return f"v{self.number}"

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.published or self._under_way:
            return
        try:
            _discard(self.storage)
        except Exception as problem:
            if kind is None:
                raise
            # what stopped the build is what to tell of
            _log.warning("what was staged of %s stays until `prefdata gc`: %s", self.name, problem)

    def add(self, split: str, rows: pa.Table) -> None:
        """Stage rows of a split, in order."""
        if rows.num_rows == 0:
            return
        table = rows.select(self.schema.names).cast(self.schema)
        self._hash.add(split, table)
        self.rows[split] = self.rows.get(split, 0) + table.num_rows
        self._put(split, table)

    def ledger(self, lines: pa.Table) -> None:
        """Stage ledger lines, in the parent's order."""
        if lines.num_rows == 0:
            return
        table = lines.select(LEDGER.names).cast(LEDGER)
        self._tally.add(table)
        self._put("ledger", table)

    def flush(self) -> None:
        """Write what is still pending."""
        for folder in list(self._pending):
            self._write_part(folder, self._pending.pop(folder))

    def small_table(self, name: str, table: pa.Table) -> None:
        """A statistics table, under `stats/`."""
        self._write_parquet(f"stats/{name}.parquet", table)

    def text(self, path: str, text: str) -> None:
        """A text file, such as the dataset card."""
        self._write(path, text.encode())

    def counts(self, stages: Sequence[str]) -> Any:
        """What went in and came out, from the ledger lines staged so far."""
        return self._tally.counts(stages, self.rows)

    def manifest(self, stages: Sequence[str], fields: Mapping[str, Any]) -> Manifest:
        """The manifest as it would be written now."""
        content = {
            "format": FORMAT,
            "version": self.name,
            **fields,
            "logical_hash": self._hash.hexdigest(),
            "counts": self.counts(stages),
            "files": sorted(self.files, key=lambda entry: entry["path"]),
            "packages": _packages(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return manifests.sealed(content)

    def publish(self, manifest: Manifest) -> Version:
        """Write the manifest: from here on the version exists."""
        self._refuse_losses()
        data = manifests.as_bytes(manifest)
        if wrong := manifests.problem(json.loads(data)):
            raise ValueError(f"no reader would open this manifest: {wrong}")
        self.storage.sync()  # a power cut must not leave the manifest without the files
        # a request to an object store may still be carried out after the one who made it was interrupted or gave up
        self._under_way = not self.storage.local
        created = self.storage.create(MANIFEST, data)
        self._under_way = False
        # an object store whose answer was lost and that is asked again refuses what the first request wrote
        if not created and self.storage.read(MANIFEST) != data:
            raise UserError(f"{self.storage.url} was published by another process meanwhile; nothing was changed")
        self._refuse_losses(take_back=True)
        self.storage.sync()
        self.published = True
        return Version(self.storage, manifest)

    def _refuse_losses(self, *, take_back: bool = False) -> None:
        """A publisher that was silent for long may have been taken for dead, and its files collected.

        Asked again once the manifest is written: `gc` sets the claim aside before it looks for a manifest.
        """
        gone = {entry["path"] for entry in self.files} - set(self.storage.walk())
        if not gone:
            return
        if take_back:
            self.storage.remove(MANIFEST)
        raise UserError(
            f"{self.name} lost {', '.join(sorted(gone)[:3])} while it was staged, perhaps to `prefdata gc`; nothing "
            "was published, and the same command makes it again from the units that are done"
        )

    def _put(self, folder: str, table: pa.Table) -> None:
        pending = self._pending.setdefault(folder, [])
        pending.append(table)
        while sum(part.num_rows for part in pending) >= ROWS_PER_FILE:
            joined = pa.concat_tables(pending)
            self._write_part(folder, [joined.slice(0, ROWS_PER_FILE)])
            pending[:] = [joined.slice(ROWS_PER_FILE)]

    def _write_part(self, folder: str, tables: list[pa.Table]) -> None:
        joined = pa.concat_tables(tables)
        if joined.num_rows == 0:
            return
        number = self._parts.get(folder, 0)
        self._parts[folder] = number + 1
        self._write_parquet(f"{folder}/part-{number:05d}.parquet", joined)

    def _write_parquet(self, path: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._write(path, bytes(sink.getvalue()), rows=table.num_rows)

    def _write(self, path: str, data: bytes, rows: int | None = None) -> None:
        self.storage.write(path, data)
        self.files.append(_entry(path, data, rows))


def _entry(path: str, data: bytes, rows: int | None = None) -> FileEntry:
    entry: FileEntry = {"path": path, "sha256": sha256(data), "bytes": len(data)}
    if rows is not None:
        entry["rows"] = rows
    return entry


def _claim_data(build_key: str) -> bytes:
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "build_key": build_key}
    return json.dumps(claim).encode()


def _claim(storage: Storage, data: bytes) -> int:
    number = max(numbers(storage), default=0) + 1
    while not storage.create(f"v{number}/{CLAIM}", data):
        number += 1
    return number


def _discard(storage: Storage) -> None:
    """Remove what was staged of a version that was not published; nothing where there is a manifest.

    The manifest alone decides, for whoever publishes can be stopped after writing it and before knowing that it did.
    The claim stays: were it removed, another publisher could take the number while files still vanish around it.
    """
    names = list(storage.walk())
    for name in names if MANIFEST not in names else []:
        if name != CLAIM:
            storage.remove(name)


def _packages() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("prefdata", "torch", "transformers", "tokenizers", "pyarrow", "vllm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ledger_lines(lines: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A ledger table from plain lines; `made` and `shortfall` default to none."""
    filled = [{"made": [], "shortfall": [], **line} for line in lines]
    return pa.Table.from_pylist(filled, schema=LEDGER)
