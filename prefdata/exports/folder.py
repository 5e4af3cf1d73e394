"""A folder that is there whole or not at all: filled beside its place, then given its name.

A process that is killed leaves a folder `NAME.part-...`, which no reader takes for an export; the next export to the
same place removes it. A lock tells a folder that was left from one that is being filled.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from prefdata.errors import UserError, faults_in_words
from prefdata.storage import Storage
from schemas.manifest import FileEntry

PART = ".part-"
LOCK = ".lock"
_CHUNK = 1 << 20
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class Taken(UserError):
    """Something else came to stand in the place meanwhile."""


@contextmanager
def filled(place: Path) -> Iterator[Path]:
    """A folder to fill. It gets its name when the block ends, and is removed if the block fails."""
    with _in_words(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(place)
        part = place.with_name(f"{place.name}{PART}{secrets.token_hex(4)}")
        part.mkdir()
    try:
        with _in_words(place), (part / LOCK).open("w") as lock:
            _hold(lock)
            yield part
            (part / LOCK).unlink()
            Storage(str(part)).sync()
            _name(part, place)
            Storage(str(place)).sync()
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Files:
    """The files of a folder as they are written: one after the other, or several side by side, hashed on the way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[IO[bytes], Any, FileEntry]] = {}
        self.entries: list[FileEntry] = []

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._open.values():
            opened[0].close()

    def put(self, path: str, data: bytes, rows: int | None = None) -> None:
        """A whole file."""
        self.append(path, data, rows)
        self._end(path)

    def append(self, path: str, data: bytes, rows: int | None = None) -> None:
        """The beginning of a file, or more of it."""
        if path not in self._open:
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            entry: FileEntry = {"path": path, "sha256": "", "bytes": 0}
            self._open[path] = (self._folder / path).open("xb"), hashlib.sha256(), entry
        file, digest, entry = self._open[path]
        file.write(data)
        digest.update(data)
        entry["bytes"] += len(data)
        if rows is not None:
            entry["rows"] = entry.get("rows", 0) + rows

    def end(self) -> list[FileEntry]:
        """Everything on the disk; what was written, by path."""
        for path in list(self._open):
            self._end(path)
        return sorted(self.entries, key=lambda entry: entry["path"])

    def _end(self, path: str) -> None:
        file, digest, entry = self._open.pop(path)
        with file:
            file.flush()
            os.fsync(file.fileno())
        entry["sha256"] = digest.hexdigest()
        self.entries.append(entry)


def changed(folder: Path, entries: list[FileEntry], *, but: str) -> str | None:
    """The first file that is not as it was written, is missing, or should not be there; `but`: the one that lists them."""
    expected = {entry["path"]: entry["sha256"] for entry in entries}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    odd = sorted((found ^ expected.keys()) - {but})
    return (
        odd[0] if odd else next((path for path in sorted(expected) if _sha256(folder / path) != expected[path]), None)
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _name(part: Path, place: Path) -> None:
    """A folder takes the place of nothing, or of an empty folder; the system refuses any other."""
    try:
        part.rename(place)
    except OSError as problem:
        if problem.errno not in _TAKEN:
            raise
        raise Taken(
            f"{place} came to be while this was written: look at what is there, or give another folder."
        ) from None


def _remove_left(place: Path) -> None:
    """What killed exports to this place left: their locks are free."""
    for part in place.parent.glob(f"{_literal(place.name)}{PART}*"):
        with suppress(OSError), (part / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)


def _hold(lock: IO[str]) -> None:
    with suppress(OSError):  # where there are no locks, what is left stays
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _literal(name: str) -> str:
    """A name in which no character stands for others."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


@contextmanager
def _in_words(place: Path) -> Iterator[None]:
    try:
        with faults_in_words(place):
            yield
    except (FileExistsError, NotADirectoryError) as problem:
        raise UserError(f"{place} cannot be a folder: {problem.filename} is a file. Give another with -o.") from problem
