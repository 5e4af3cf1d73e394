"""One small interface over local folders and fsspec URLs (s3://, gs://, memory:// ...).

Two promises that the rest leans on: a file written here is whole or absent, and `create` succeeds for exactly one of
any number of callers.
"""

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from prefdata import object_store
from prefdata.errors import UserError

_TEMPORARY = ".tmp-"
_LOCK = ".tmp-lock-"
_LOCK_PATIENCE_S = 30.0  # a lock is held for the time of a rename


class Storage:
    """A folder or a prefix of an object store; every path is relative to it, with / between parts."""

    def __init__(self, url: str, **options: Any) -> None:
        from fsspec.core import url_to_fs

        try:
            self.fs, self._base = url_to_fs(url, **options)
        except (ImportError, ValueError) as problem:
            raise UserError(f"cannot open {url!r} as a place for data: {problem}") from problem
        self._base = self._base.rstrip("/") or "/"
        self.local = "file" in _protocols(self.fs)
        # a listing that was kept would hide what others wrote since; the file system object is shared in the process
        self.fs.dircache.use_listings_cache = False
        self.fs.invalidate_cache()

    @property
    def url(self) -> str:
        """What opens this storage again: an absolute path, or a URL."""
        return self._base if self.local else str(self.fs.unstrip_protocol(self._base))

    def path(self, name: str = "") -> str:
        """The full path of a name inside the file system."""
        return f"{self._base}/{name}" if name else self._base

    def at(self, name: str) -> "Storage":
        """The storage of a folder below this one."""
        below = object.__new__(Storage)
        below.fs, below.local, below._base = self.fs, self.local, self.path(name)
        return below

    def read(self, name: str) -> bytes:
        """The whole file. FileNotFoundError if there is none."""
        with self._in_words("read", name):
            data = self.fs.cat_file(self.path(name))
        return data if isinstance(data, bytes) else bytes(data)

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file so that no reader ever sees a part of it."""
        if not self.local:
            with self._in_words("write into", _parent(name)):
                self.fs.pipe_file(self.path(name), data)
            return
        temporary = self._write_temporary(name, data)
        try:
            os.replace(temporary, self.path(name))
        except BaseException:
            _unlink(temporary)
            raise

    def create(self, name: str, data: bytes) -> bool:
        """Write a file only if there is none: True for the one caller that made it, whole; False for all others.

        An object store that loses its answer and is asked again may say False to the caller that made it.
        """
        if not self.local:
            with self._in_words("write into", _parent(name)):
                return object_store.create(self.fs, self.path(name), data)
        if os.path.exists(self.path(name)):
            return False
        temporary = self._write_temporary(name, data)
        try:
            return _name_once(temporary, self.path(name))
        finally:
            _unlink(temporary)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of that name."""
        with self._in_words("look into", name):
            return bool(self.fs.exists(self.path(name)))

    def probe(self) -> None:
        """UserError if files can't be made and removed here, or if two callers could create the same one."""
        name = f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            created = [self.create(name, b"") for _ in range(2)]
            self.remove(name)
        except OSError as problem:
            raise UserError(f"cannot write into {self.url} ({problem}): {_ELSEWHERE}") from problem
        if created != [True, False]:
            raise UserError(
                f"{self.url} lets a file that is there be created again, so two builds could take the same version: it "
                f"needs conditional writes (If-None-Match). Update what serves it, or {_ELSEWHERE}"
            )

    def folders(self, name: str = "") -> list[str]:
        """Names of the folders directly below, sorted; none if the folder is absent."""
        return _folders(self._entries(name))

    def names(self, name: str = "") -> list[str]:
        """Names of the files directly below, sorted; none if the folder is absent."""
        return _files(self._entries(name))

    def walk(self, name: str = "") -> Iterator[str]:
        """Every file below a folder, at any depth, relative to that folder."""
        entries = self._entries(name)
        yield from _files(entries)
        for folder in _folders(entries):
            inside = f"{name}/{folder}" if name else folder
            yield from (f"{folder}/{file}" for file in self.walk(inside))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens if it is absent."""
        with suppress(FileNotFoundError), self._in_words("remove", name, lasting=frozenset()):
            self.fs.rm(self.path(name), recursive=True)

    def _entries(self, name: str) -> list[dict[str, Any]]:
        try:
            with self._in_words("list", name, but=NotADirectoryError):
                entries: list[dict[str, Any]] = self.fs.ls(self.path(name), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        own = self.path(name).rstrip("/")
        return [entry for entry in entries if entry["name"].rstrip("/") != own]

    def _in_words(self, act: str, name: str, **local: Any) -> AbstractContextManager[None]:
        if self.local:
            return _in_words(self.path(name), act, **local)
        return object_store.in_words(act, f"{self.url}/{name}" if name else self.url)

    def _write_temporary(self, name: str, data: bytes) -> str:
        folder = os.path.dirname(self.path(name))
        with _in_words(folder, "make", lasting=_LASTING | {errno.ENOENT}):  # as below /proc
            os.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            with _in_words(folder, "write into"), open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):  # what stopped the writing is what to tell of
                os.unlink(temporary)
            raise
        return temporary


def sha256(data: bytes) -> str:
    """sha256 hex of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


# a wrong or forbidden place stays so; any other OSError (a full disk, a network) may pass, and is left as it is
_LASTING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})
_ELSEWHERE = "choose another place for data with --root or PREFDATA_ROOT"


@contextmanager
def _in_words(
    path: str, act: str, *, but: type[OSError] | None = None, lasting: frozenset[int] = _LASTING
) -> Iterator[None]:
    """An OSError that says the place itself is wrong, as a sentence; all others and `but` pass."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in lasting or (but is not None and isinstance(problem, but)):
            problem.filename = problem.filename or path  # a failed write does not say where
            raise
        why = os.strerror(problem.errno or 0).lower()
        raise UserError(f"cannot {act} {path} ({why}): {_ELSEWHERE}") from problem


_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


def _name_once(temporary: str, path: str) -> bool:
    """Give a finished file its name unless the name is taken: True for one caller."""
    try:
        os.link(temporary, path)  # fails if the name is taken, unlike a rename
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        return _name_once_locked(temporary, path)
    return True


def _name_once_locked(temporary: str, path: str) -> bool:
    """The same where there are no hard links (exFAT, some network and FUSE mounts).

    An exclusive create of a lock lets one caller at a time look whether the name is taken, and rename. A lock is never
    broken, for its holder might only be slow: one that a killed process left is for the user to remove.
    """
    folder, name = os.path.split(path)
    with _locked(f"{folder}/{_LOCK}{name}"):
        if os.path.exists(path):
            return False
        os.rename(temporary, path)
        return True


@contextmanager
def _locked(lock: str) -> Iterator[None]:
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while not _made(lock):
        if time.monotonic() > deadline:
            raise UserError(f"{lock} was left by a process that was killed: remove it once nothing writes there")
        time.sleep(0.01)
    try:
        yield
    finally:
        _unlink(lock)


def _made(lock: str) -> bool:
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _folders(entries: list[dict[str, Any]]) -> list[str]:
    return sorted(_last(entry["name"]) for entry in entries if entry["type"] == "directory")


def _files(entries: list[dict[str, Any]]) -> list[str]:
    found = (_last(entry["name"]) for entry in entries if entry["type"] == "file")
    return sorted(entry for entry in found if entry and not entry.startswith(_TEMPORARY))


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
