"""Remove what killed builds left behind: stale claims with their staged files, temporary files, and, asked for, work units.

Only what prefdata itself writes is removed, by name; a folder with a manifest, tags and anything unknown stay. Age is
that of the newest trace, so whoever still writes is left alone, and so is anything dated a little in the future. What
is dated weeks ahead was written under a clock that was wrong: its date tells nothing, and it stays unless the process
that claimed it is known to have ended; it is named each time.
"""

import json
import math
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prefdata import work
from prefdata.errors import UserError
from prefdata.storage import Storage
from prefdata.versions import CLAIM, MANIFEST, numbers

_TEMPORARY = ".tmp-"
_STAGED = re.compile(r"claim|README\.md|(train|test|ledger)/part-\d{5,}\.parquet|stats/\w+\.parquet")
_AHEAD_S = 7 * 24 * 3600.0  # further ahead than clocks that are right about the day
_UNIT = re.compile(r"units/[0-9a-f]{2}/[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """A file as a listing shows it."""

    path: str  # relative to the root
    bytes: int
    modified: float  # seconds since the epoch
    regular: bool  # neither a link nor anything else that is not a plain file

    @property
    def temporary(self) -> bool:
        return self.regular and self.path.rsplit("/", 1)[-1].startswith(_TEMPORARY)


@dataclass(frozen=True)
class Leftover:
    """Files to be removed together, in this order."""

    what: str
    files: tuple[File, ...]
    folder: str | None = None  # the claimed folder they stand in; it must still be without a manifest

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass
class Plan:
    """What would be removed, and what looks like a leftover but stays, with the reason."""

    leftovers: list[Leftover] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def plan(storage: Storage, *, older_than_s: float, now: float, with_work: bool = False) -> Plan:
    """What can be removed below a root. Nothing is changed."""
    found = Plan()
    taken = numbers(storage)
    for number in taken:
        _claimed(storage, number, number == taken[-1], older_than_s, now, found)
    elsewhere = [*_listed(storage, ""), *_listed(storage, "tags"), *_walk(storage, work.FOLDER)]
    _temporaries(elsewhere, older_than_s, now, found)
    if with_work:
        units = [file for file in elsewhere if _is_unit(file) and _old(file.modified, older_than_s, now)]
        if units:
            found.leftovers.append(Leftover(f"{len(units)} finished work units", tuple(units)))
    return found


def remove(storage: Storage, leftover: Leftover) -> int:
    """Remove a leftover; the bytes that went. Stops where a manifest has appeared meanwhile."""
    gone = 0
    for file in leftover.files:
        if leftover.folder and storage.exists(f"{leftover.folder}/{MANIFEST}"):
            break
        try:
            storage.remove(file.path)
        except FileNotFoundError:  # another gc was faster
            continue
        except OSError as problem:
            raise UserError(f"cannot remove {storage.path(file.path)}: {problem.strerror or problem}") from problem
        gone += file.bytes
    if storage.local and leftover.folder:
        _remove_empty(storage.path(leftover.folder))
    return gone


def _claimed(storage: Storage, number: int, highest: bool, older_than_s: float, now: float, found: Plan) -> None:
    """What can go of a numbered folder: nothing of a version, all of a stale claim, old temporary files of any other."""
    folder = f"v{number}"
    if _is_link(storage, folder) or storage.exists(f"{folder}/{MANIFEST}"):
        return
    files = list(_walk(storage, folder))
    why = _alive_or_unknown(storage, folder, files, older_than_s, now)
    if why is not None:
        if why:
            found.kept.append(f"{folder}: {why}")
        _temporaries(files, older_than_s, now, found)
        return
    claim = [file for file in files if file.path == f"{folder}/{CLAIM}"]
    staged = [file for file in files if file not in claim]
    # The highest claim stays, so that its number is not given to another; elsewhere it goes last, so that a gc that is
    # stopped half-way can be run again.
    going = staged if highest else [*staged, *claim]
    if going:
        found.leftovers.append(
            Leftover(f"{folder}: {'files of a ' if highest else ''}stale claim", tuple(going), folder)
        )


def _alive_or_unknown(storage: Storage, folder: str, files: list[File], older_than_s: float, now: float) -> str | None:
    """None for a stale claim; else why the folder stays: a sentence, or nothing where there is nothing to tell."""
    names = {file.path.removeprefix(f"{folder}/"): file for file in files}
    if CLAIM not in names:
        return ""
    claim = _read_claim(storage, f"{folder}/{CLAIM}")
    if claim is None:
        return "its claim can't be read"
    newest = max(claim["time"], *(file.modified for file in files))
    misdated = _AHEAD_S < newest - now < math.inf
    if not (misdated or _old(newest, older_than_s, now)):
        return ""
    strange = [
        name for name, file in names.items() if not file.regular or not (_STAGED.fullmatch(name) or file.temporary)
    ]
    if strange:
        return f"it holds {strange[0]}, which prefdata did not write"
    here = claim.get("host") == socket.gethostname()
    if here and _running(claim.get("pid")):
        return f"process {claim['pid']}, which claimed it, is still running"
    if misdated and not here:
        return (
            f"it is dated {(newest - now) / 86400:,.0f} days ahead of this machine's clock, and host {claim.get('host')!r} "
            "claimed it; remove the folder once nothing writes there"
        )
    return None


def _read_claim(storage: Storage, path: str) -> dict[str, Any] | None:
    try:
        claim = json.loads(storage.read(path))
        written = float(claim["time"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    return {**claim, "time": written} if isinstance(claim, dict) and math.isfinite(written) else None


def _running(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _old(modified: float, older_than_s: float, now: float) -> bool:
    """A time in the future, as after a clock was set back, is not old."""
    return now - modified >= older_than_s


def _temporaries(files: list[File], older_than_s: float, now: float, found: Plan) -> None:
    for file in files:
        if file.temporary and _old(file.modified, older_than_s, now):
            found.leftovers.append(Leftover(f"{file.path}: temporary file", (file,)))
        elif file.temporary and _AHEAD_S < file.modified - now < math.inf:
            days = (file.modified - now) / 86400
            found.kept.append(
                f"{file.path}: it is dated {days:,.0f} days ahead of this machine's clock; remove it once nothing writes there"
            )


def _is_unit(file: File) -> bool:
    return file.regular and _UNIT.fullmatch(file.path.removeprefix(f"{work.FOLDER}/")) is not None


def _is_link(storage: Storage, name: str) -> bool:
    return storage.local and os.path.islink(storage.path(name))


# -- listing: unlike Storage, with sizes, times and temporary files, and without following links ---------------------


def _listed(storage: Storage, folder: str) -> list[File]:
    """The files directly in a folder; nothing if it is absent or a link."""
    return [_file(storage, entry, folder) for entry in _entries(storage, folder) if not _is_folder(entry)]


def _walk(storage: Storage, folder: str) -> Iterator[File]:
    for entry in _entries(storage, folder):
        if _is_folder(entry):
            yield from _walk(storage, f"{folder}/{_last(entry)}")
        else:
            yield _file(storage, entry, folder)


def _entries(storage: Storage, folder: str) -> list[dict[str, Any]]:
    if folder and _is_link(storage, folder):
        return []
    storage.fs.invalidate_cache()
    own = storage.path(folder)
    try:
        listed: list[dict[str, Any]] = storage.fs.ls(own, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as problem:
        raise UserError(f"cannot list {own}: {problem.strerror or problem}") from problem
    return sorted((entry for entry in listed if entry["name"].rstrip("/") != own.rstrip("/")), key=_last)


def _is_folder(entry: dict[str, Any]) -> bool:
    return entry["type"] == "directory" and not entry.get("islink")


def _file(storage: Storage, entry: dict[str, Any], folder: str) -> File:
    path = f"{folder}/{_last(entry)}" if folder else _last(entry)
    regular = entry["type"] == "file" and not entry.get("islink")
    return File(path, entry.get("size") or 0, _modified(storage, entry) if regular else math.inf, regular)


def _modified(storage: Storage, entry: dict[str, Any]) -> float:
    """Each file system has its own name for it. One that does not tell has no old files."""
    value = entry.get("mtime", entry.get("LastModified", entry.get("created")))
    if not isinstance(value, int | float | datetime):
        try:
            value = storage.fs.modified(entry["name"])
        except (NotImplementedError, FileNotFoundError):  # it keeps no times, or the file went meanwhile
            return math.inf
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _last(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _remove_empty(folder: str) -> None:
    """The folder with the folders in it, as far as they are empty."""
    for inside, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(inside)
        except OSError:  # it holds something that is not ours to remove
            continue
