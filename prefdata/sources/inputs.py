"""What a user names, as inputs to read: files, folders, globs, fsspec URLs, and data sets of the hub.

A name is a file, folder or glob if one of that name exists, and a hub data set only if none does. In a folder (or
glob), files whose names are not those of data are passed by: a card, a licence, what `datasets` notes beside its
tables, and names that begin with a dot or an underscore.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from csv import Error as CsvError
from dataclasses import dataclass, field
from io import BufferedReader, RawIOBase
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from prefdata.errors import BUGS, Unreachable, UserError
from prefdata.sources import hub, readers
from prefdata.sources.splits import is_split_name, split_of_path

NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
GLOB = re.compile(r"[*?\[]")
CHUNK = 1 << 20


@dataclass
class Tally:
    """What went by while an input was read."""

    rows: int = 0
    size: int = 0  # bytes
    hash: Any = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        """Count and hash bytes as they are stored."""
        self.size += len(data)
        self.hash.update(data)


class Input(Protocol):
    """A file, or one split of a hub data set."""

    @property
    def shown(self) -> str:
        """How it is called in a manifest, in an origin and in an error."""

    @property
    def name(self) -> str:
        """What its rows call their source when the user gives no name."""

    @property
    def split(self) -> str | None:
        """The split its own names put it in."""

    def facts(self) -> dict[str, str | None]:
        """Licence and origin, as far as the source states them."""

    def read(self, tally: Tally | None = None) -> Iterator[readers.Read]:
        """The rows, from the first to the last; `tally` is complete after the last one. A look needs none."""

    def stamp(self) -> str:
        """Names what it holds by content; costs reading it at most once."""

    def stamp_of(self, content: str) -> str:
        """The stamp it has if this is the sha256 of what `read` tallied."""


@dataclass(frozen=True)
class File:
    """One file, local or behind an fsspec URL."""

    fs: Any
    path: str
    shown: str
    name: str
    split: str | None

    def facts(self) -> dict[str, str | None]:
        """A file alone states neither."""
        return {}

    def read(self, tally: Tally | None = None) -> Iterator[readers.Read]:
        """Stream the rows; a file that is damaged anywhere is refused when the damage is met."""
        reader = readers.reader_of(self.path)
        if reader is None:
            raise UserError(f"{self.shown} is not a kind of file that can be read. Give one of: {readers.SUFFIXES}.")
        with _refusing_damage(self.shown):
            yield from self._rows(reader, tally)

    def stamp(self) -> str:
        """sha256 hex of the bytes as stored."""
        found = Tally()
        with _refusing_damage(self.shown), self._open() as stored:
            _tally(stored, found)
        return self.stamp_of(found.hash.hexdigest())

    def stamp_of(self, content: str) -> str:
        """The path as given, and the content's hash."""
        return f"{self.shown}@{content}"

    def _rows(self, reader: readers.Reader, tally: Tally | None) -> Iterator[readers.Read]:
        if readers.reads_sequentially(reader):
            with self._open(tally) as stored:
                yield from reader(cast(BinaryIO, BufferedReader(stored, CHUNK)))
            return
        with self._open() as stored:
            before = self._state()
            if tally is not None:  # from the first byte to the last, as no reader of tables goes
                _tally(stored, tally)
                stored.seek(0)
            yield from reader(cast(BinaryIO, stored))
            if self._state() != before:
                raise readers.MalformedError("it changed while it was read")

    @contextmanager
    def _open(self, tally: Tally | None = None) -> Iterator["_Stored"]:
        """The bytes as stored, tallied as they are read."""
        with self._reaching():
            opened = self.fs.open(self.path, "rb")
        with opened:
            yield _Stored(opened, self._reaching, tally)

    def _state(self) -> Any:
        """What its file system tells one state of it from another by."""
        with self._reaching():
            return self.fs.ukey(self.path)

    def _reaching(self) -> AbstractContextManager[None]:
        """What goes wrong on the way to it is no damage of the file; a disk of this machine is no way."""
        return nullcontext() if isinstance(self.fs, LocalFileSystem) else _reaching(self.shown)


class _Stored(RawIOBase):
    """A stream that tallies the bytes read through it, and goes to where they are stored inside of `reaching`."""

    def __init__(
        self, stored: BinaryIO, reaching: Callable[[], AbstractContextManager[None]], tally: Tally | None
    ) -> None:
        self._stored, self._reaching, self._tally = stored, reaching, tally

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stored.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._reaching():
            return self._stored.seek(offset, whence)

    def tell(self) -> int:
        return self._stored.tell()

    def readinto(self, buffer: Any) -> int:
        with self._reaching():
            data = self._stored.read(len(buffer))
        buffer[: len(data)] = data
        if self._tally is not None:
            self._tally.add(data)
        return len(data)


def _tally(stored: RawIOBase, tally: Tally) -> None:
    """All of a stream."""
    while block := stored.read(CHUNK):
        tally.add(block)


@contextmanager
def _refusing_damage(shown: str) -> Iterator[None]:
    try:
        yield
    except readers.MalformedError as error:
        raise UserError(f"{shown} cannot be read: {error}. Repair the file or leave it out.") from error
    except _damage() as error:
        found = f"{type(error).__name__}: {error}"
        raise UserError(f"{shown} cannot be read ({found}). Fetch it anew or leave it out.") from error


def _damage() -> tuple[type[Exception], ...]:
    """What the readers raise on a file that is cut or corrupt, and a disk on one that it cannot read."""
    from pyarrow import ArrowException

    return (OSError, EOFError, zlib.error, CsvError, UnicodeDecodeError, ArrowException)


def locate(names: Sequence[str], *, hub_options: hub.Options) -> list[tuple[int, Input]]:
    """Every input that the names stand for, in order, with the number of its name; one that is named twice is read once."""
    found = [(number, each) for number, name in enumerate(names) for each in _locate(name, hub_options)]
    asked = ", ".join(name for name, value in vars(hub_options).items() if value)
    if asked and not any(isinstance(each, hub.HubSplit) for _, each in found):
        raise UserError(f"{asked}: asked of a data set of the hub, and {', '.join(names)} is none. Leave it out.")
    first: dict[str, tuple[int, Input]] = {}
    for number, each in found:
        first.setdefault(each.shown, (number, each))
    return list(first.values())


def _locate(name: str, hub_options: hub.Options) -> Sequence[Input]:
    fs, path = _opened(name)
    with _reaching(name):
        is_file, is_folder = fs.isfile(path), fs.isdir(path)
        matches = sorted(fs.glob(path)) if GLOB.search(name) and not (is_file or is_folder) else []
    if is_file:
        return [_file(fs, path, name, PurePosixPath(path).name)]
    if is_folder:
        return _folder(fs, path, name, hub_options)
    if matches:
        return _matches(fs, path, name, matches)
    if hub.may_be_name(name) and readers.reader_of(name) is None:
        return hub.splits(name, hub_options)
    where = "" if os.path.isabs(name) or "://" in name else f" (looked in {os.getcwd()})"
    raise UserError(
        f"There is no file or folder {name}{where}. "
        "Give a file, a folder, a glob, a URL, or a hub data set as OWNER/NAME."
    )


def _opened(name: str) -> tuple[Any, str]:
    """The file system of a name, and the path in it. Some kinds need more than a URL can say, a TypeError to fsspec."""
    try:
        with _reaching(name):
            return cast(tuple[Any, str], fsspec.core.url_to_fs(name))
    except TypeError as error:
        raise UserError(f"{name} cannot be opened ({error}). Give a file, a folder, or another kind of URL.") from error


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Each object store has errors of its own, all of which mean that the name cannot be reached."""
    try:
        yield
    except BUGS:
        raise
    except Exception as error:
        raise Unreachable(
            f"{name} cannot be reached ({type(error).__name__}: {error}). Look at its address and try again."
        ) from error


def _folder(fs: Any, path: str, name: str, hub_options: hub.Options) -> Sequence[Input]:
    local = isinstance(fs, LocalFileSystem)
    if local and hub.has_card_configs(path):
        return hub.splits(name, hub_options)
    base = path.rstrip("/")
    with _reaching(name):
        below = sorted(fs.find(path))
    members = [(member, member.removeprefix(base).lstrip("/")) for member in below]
    files = [
        _file(fs, member, f"{name.rstrip('/')}/{relative}", relative, folder=base)
        for member, relative in _data(members, name)
    ]
    if files:
        return files
    if local:
        return hub.splits(name, hub_options)
    raise UserError(f"The folder {name} holds no file that can be read. Known are {readers.SUFFIXES}.")


def _matches(fs: Any, pattern: str, name: str, matches: list[str]) -> Sequence[Input]:
    fixed = GLOB.split(pattern)[0].rpartition("/")[0]
    with _reaching(name):
        members = [(match, match.removeprefix(fixed).lstrip("/")) for match in matches if fs.isfile(match)]
    files = [_file(fs, match, _shown(fs, match, name), relative) for match, relative in _data(members, name)]
    if not files:
        raise UserError(f"{name} matches no file that can be read. Known are {readers.SUFFIXES}.")
    return files


def _data(members: Sequence[tuple[str, str]], name: str) -> Iterator[tuple[str, str]]:
    """The (path, path below the folder) of data files."""
    for path, relative in members:
        parts = relative.split("/")
        if parts[-1] in NOT_DATA or any(part.startswith((".", "_")) for part in parts):
            continue
        if readers.reader_of(relative):
            yield path, relative
        elif any(suffix.lower() in readers.READERS for suffix in PurePosixPath(relative).suffixes):
            raise UserError(
                f"{name} holds {relative}, which looks like data but cannot be read. Unpack it or move it away."
            )


def _file(fs: Any, path: str, shown: str, relative: str, *, folder: str | None = None) -> File:
    stem = PurePosixPath(relative).name.split(".")[0]
    parent = PurePosixPath(path).parent.name
    own_name = PurePosixPath(folder).name if folder else (parent if is_split_name(stem) and parent else stem)
    refuse_unwritable(shown, own_name)
    return File(fs, path, shown, own_name, split_of_path(relative))


def refuse_unwritable(*texts: str | None) -> None:
    """Refuse what a command line or a file system holds that is not UTF-8: no version could hold it."""
    for text in texts:
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{text!r} is not UTF-8, and a version says where it comes from. Rename it.") from None


def _shown(fs: Any, path: str, name: str) -> str:
    if not isinstance(fs, LocalFileSystem):
        return str(fs.unstrip_protocol(path))
    return path if os.path.isabs(name) or "://" in name else os.path.relpath(path)
