"""One small interface over local folders and fsspec URLs (s3://, gs://, memory:// ...).

Two promises that the rest leans on: a file written here is whole or absent, and `create` succeeds for exactly one of
any number of callers.
"""

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefdata import object_store
from prefdata.errors import UserError

TEMPORARY = ".tmp-"
LOCK = ".tmp-lock-"
_LOCK_PATIENCE_S = 30.0  # a lock is held for the time of a rename


@dataclass(frozen=True)
class Entry:
    """A file or folder as a listing shows it."""

    name: str  # its last part
    kind: str  # "file", "directory", or another for what is neither, such as a link
    bytes: int
    modified: float | None  # seconds since the epoch; None where the listing does not tell


class Storage:
    """A folder or a prefix of an object store; every path is relative to it, with / between parts."""

    def __init__(self, url: str, **options: Any) -> None:
        try:
            self.fs, self._base = _opened(url, options)
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
        name = f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            created = [self.create(name, b"") for _ in range(2)]
            self.remove(name)
        except OSError as problem:
            raise UserError(f"cannot write into {self.url} ({problem}): {_ELSEWHERE}") from problem
        if created[1]:  # the first may be False too, where an object store lost its answer and was asked again
            raise UserError(
                f"{self.url} lets a file that is there be created again, so two builds could take the same version: it "
                f"needs conditional writes (If-None-Match). Update what serves it, or {_ELSEWHERE}"
            )

    def folders(self, name: str = "") -> list[str]:
        """Names of the folders directly below, sorted; none if the folder is absent."""
        return _folders(self.listed(name))

    def names(self, name: str = "") -> list[str]:
        """Names of the files directly below, sorted; none if the folder is absent."""
        return _files(self.listed(name))

    def walk(self, name: str = "") -> Iterator[str]:
        """Every file below a folder, at any depth, relative to that folder."""
        entries = self.listed(name)
        yield from _files(entries)
        for folder in _folders(entries):
            inside = f"{name}/{folder}" if name else folder
            yield from (f"{folder}/{file}" for file in self.walk(inside))

    def listed(self, name: str = "") -> list[Entry]:
        """All that is directly below, by name, temporary files and links included; nothing if the folder is absent."""
        try:
            with self._in_words("list", name, but=NotADirectoryError):
                found: list[dict[str, Any]] = self.fs.ls(self.path(name), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        own = self.path(name).rstrip("/")
        entries = [_entry(each) for each in found if each["name"].rstrip("/") != own]
        return sorted(entries, key=lambda entry: entry.name)

    def modified(self, name: str) -> float | None:
        """When a file was written, in seconds since the epoch, asked for singly; None if the place keeps no times."""
        with self._in_words("look at", name):
            try:
                return _seconds(self.fs.modified(self.path(name)))
            except (NotImplementedError, FileNotFoundError):
                return None

    def rename(self, name: str, to: str) -> None:
        """Give a file another name here. In an object store it has both names for a moment."""
        with self._in_words("rename", name, lasting=frozenset()):
            if self.local:
                os.rename(self.path(name), self.path(to))
                return
            self.fs.cp_file(self.path(name), self.path(to))
            object_store.remove(self.fs, [self.path(name)])

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens if it is absent."""
        with suppress(FileNotFoundError), self._in_words("remove", name, lasting=frozenset()):
            if self.local:
                self.fs.rm(self.path(name), recursive=True)
            else:
                object_store.remove(self.fs, self.fs.find(self.path(name)))

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files; those that are absent are passed over."""
        if not self.local:
            with self._in_words("remove files of", ""):
                object_store.remove(self.fs, [self.path(name) for name in names])
            return
        for name in names:
            _unlink(self.path(name))

    def sync(self) -> None:
        """Let what stands in this folder, in those below and beside it outlast a power cut: local disks only.

        A file is on the disk when it was written here; the folder that names it may not be.
        """
        if self.local:
            for folder in (os.path.dirname(self._base), *(inside for inside, _, _ in os.walk(self._base))):
                _sync_folder(folder)

    def _in_words(self, act: str, name: str, **local: Any) -> AbstractContextManager[None]:
        if self.local:
            return _local_in_words(self.path(name), act, **local)
        return object_store.in_words(act, f"{self.url}/{name}" if name else self.url)

    def _write_temporary(self, name: str, data: bytes) -> str:
        folder = os.path.dirname(self.path(name))
        with _local_in_words(folder, "make", lasting=_LASTING | {errno.ENOENT}):  # as below /proc
            os.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with _local_in_words(folder, "write into"), open(temporary, "xb") as file:
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
def _local_in_words(
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
        # over NFS a request that is sent twice finds the name taken by itself: then the file has two names
        return os.stat(temporary).st_nlink == 2
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
    with _locked(f"{folder}/{LOCK}{name}"):
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


def _opened(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system of a place, and the place's path in it. Without :// it is a folder, whatever its name."""
    import fsspec

    if "://" not in url:
        from fsspec.implementations.local import LocalFileSystem

        scheme, colon, _ = url.partition(":")
        if colon and scheme in fsspec.available_protocols():
            raise ValueError(f"a URL begins with {scheme}://, and for a folder of that name write ./{url}")
        return LocalFileSystem(**options), LocalFileSystem._strip_protocol(url)
    if "::" in url:  # fsspec would open one place inside another
        raise ValueError("a URL must not hold ::")
    fs, path = fsspec.url_to_fs(url, **options)
    return fs, str(path)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _entry(listed: dict[str, Any]) -> Entry:
    """What fsspec says of a file. Each file system has its own name for the time."""
    written = listed.get("mtime", listed.get("LastModified", listed.get("created")))
    kind = "link" if listed.get("islink") else listed["type"]
    name = listed["name"].rstrip("/").rsplit("/", 1)[-1]
    return Entry(name, kind, listed.get("size") or 0, _seconds(written))


def _seconds(written: object) -> float | None:
    if isinstance(written, datetime):
        return written.timestamp()
    return float(written) if isinstance(written, int | float) else None


def _folders(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries if entry.kind == "directory"]


def _files(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries if entry.kind == "file" and not entry.name.startswith(TEMPORARY)]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


_NO_SYNC = {errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


def _sync_folder(path: str) -> None:
    try:
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as problem:
        if problem.errno not in _NO_SYNC:  # not every file system can do it
            problem.filename = path
            raise


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
