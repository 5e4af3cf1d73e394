"""Remove what killed builds left behind: stale claims with their staged files, temporary files, and, asked for, work units.

Only what prefdata itself writes is removed, by name; a folder with a manifest, tags and anything unknown stay. Age is
that of the newest trace, so whoever still writes is left alone, and so is anything dated a little in the future. What
is dated weeks ahead was written under a clock that was wrong: its date tells nothing, and it stays unless the process
that claimed it is known to have ended; it is named each time.

A builder that was silent for long may only seem dead. Its claim is set aside before its files go, and a publisher looks
at claim and files once more after its manifest is written: whichever of the two comes second sees the other and gives way.
"""

import json
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prefdata import work
from prefdata.errors import UserError
from prefdata.storage import LOCK, TEMPORARY, Entry, Storage
from prefdata.versions import CLAIM, MANIFEST, numbers

_COLLECTED = "claim-collected"  # a claim that was set aside
_STAGED = re.compile(r"claim|claim-collected|README\.md|(train|test|ledger)/part-\d{5,}\.parquet|stats/\w+\.parquet")
_AHEAD_S = 7 * 24 * 3600.0  # further ahead than clocks that are right about the day
_TEMPORARY_S = 15 * 60.0  # nothing tells whose a temporary file is, so one that may still be written stays in any case


@dataclass(frozen=True)
class File:
    """A file as a listing shows it."""

    path: str  # relative to the root
    bytes: int
    modified: float  # seconds since the epoch
    regular: bool  # neither a link nor anything else that is not a plain file

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def lock(self) -> bool:
        """A lock is never broken: its holder may only be slow."""
        return self.name.startswith(LOCK)

    @property
    def temporary(self) -> bool:
        return self.regular and self.name.startswith(TEMPORARY)


@dataclass(frozen=True)
class Leftover:
    """Files to be removed together."""

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
    """Remove a leftover, as far as it is still as it was planned; the bytes that went."""
    try:
        return _remove_claimed(storage, leftover, leftover.folder) if leftover.folder else _remove(storage, leftover)
    except OSError as problem:
        where = problem.filename or storage.path(leftover.folder or "")
        raise UserError(f"cannot remove {where}: {problem.strerror or problem}") from problem


def _remove(storage: Storage, leftover: Leftover) -> int:
    folders = dict.fromkeys(file.path.rpartition("/")[0] for file in leftover.files)
    there = {file for folder in folders for file in _listed(storage, folder)}
    going = [file for file in leftover.files if file in there]
    storage.remove_files(file.path for file in going)
    return sum(file.bytes for file in going)


def _remove_claimed(storage: Storage, leftover: Leftover, folder: str) -> int:
    """Remove what was staged, and the claim at the end if it is to go; nothing where there is a sign of life by now."""
    claim, collected = f"{folder}/{CLAIM}", f"{folder}/{_COLLECTED}"
    there = set(_walk(storage, folder))
    if any(file.path not in (claim, collected) for file in there.difference(leftover.files)):
        return 0  # a manifest, or a file that was written since
    with suppress(FileNotFoundError):  # set aside by a gc that was stopped, or is at it now
        storage.rename(claim, collected)
    if storage.exists(f"{folder}/{MANIFEST}"):
        _rename_back(storage, collected, claim)
        return 0
    going = [file for file in leftover.files if file in there]
    claims = [file for file in going if file.path in (claim, collected)]
    storage.remove_files(file.path for file in going if file not in claims)
    if claims:
        storage.remove_files([collected])
    else:
        _rename_back(storage, collected, claim)
    if storage.local:
        _remove_empty(storage.path(folder))
    return sum(file.bytes for file in going)


def _rename_back(storage: Storage, collected: str, claim: str) -> None:
    with suppress(FileNotFoundError):  # another gc was faster
        storage.rename(collected, claim)


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
    # the highest claim stays, so that its number is not given to another
    going = [file for file in files if not (highest and file.name in (CLAIM, _COLLECTED))]
    if going:
        found.leftovers.append(
            Leftover(f"{folder}: {'files of a ' if highest else ''}stale claim", tuple(going), folder)
        )


def _alive_or_unknown(storage: Storage, folder: str, files: list[File], older_than_s: float, now: float) -> str | None:
    """None for a stale claim; else why the folder stays: a sentence, or nothing where there is nothing to tell."""
    names = {file.path.removeprefix(f"{folder}/"): file for file in files}
    claimed = next((name for name in (CLAIM, _COLLECTED) if name in names), None)
    if claimed is None:
        return ""
    claim = _read_claim(storage, f"{folder}/{claimed}")
    if claim is None:
        return "its claim can't be read"
    newest = max(claim["time"], *(file.modified for file in files))
    misdated = _AHEAD_S < newest - now < math.inf
    if not (misdated or _old(newest, older_than_s, now)):
        return ""
    if locks := [file for file in files if file.lock]:
        return _locked(locks[0])
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
        old = _old(file.modified, max(older_than_s, _TEMPORARY_S), now)
        if file.lock and old:
            found.kept.append(_locked(file))
        elif file.temporary and old:
            found.leftovers.append(Leftover(f"{file.path}: temporary file", (file,)))
        elif file.temporary and _AHEAD_S < file.modified - now < math.inf:
            days = (file.modified - now) / 86400
            found.kept.append(
                f"{file.path}: it is dated {days:,.0f} days ahead of this machine's clock; remove it once nothing writes there"
            )


def _locked(lock: File) -> str:
    return f"{lock.path}: it is a lock, perhaps left by a process that was killed; remove it once nothing writes there"


def _is_unit(file: File) -> bool:
    return file.regular and work.UNIT.fullmatch(file.path.removeprefix(f"{work.FOLDER}/")) is not None


def _is_link(storage: Storage, name: str) -> bool:
    return storage.local and os.path.islink(storage.path(name))


# -- listing: without following links ------------------------------------------------------------------------------


def _listed(storage: Storage, folder: str) -> list[File]:
    """The files directly in a folder; nothing if it is absent or a link."""
    return [_file(storage, entry, folder) for entry in _entries(storage, folder) if entry.kind != "directory"]


def _walk(storage: Storage, folder: str) -> Iterator[File]:
    for entry in _entries(storage, folder):
        if entry.kind == "directory":
            yield from _walk(storage, f"{folder}/{entry.name}")
        else:
            yield _file(storage, entry, folder)


def _entries(storage: Storage, folder: str) -> list[Entry]:
    return [] if folder and _is_link(storage, folder) else storage.listed(folder)


def _file(storage: Storage, entry: Entry, folder: str) -> File:
    """Where a place does not tell when a file was written, it is not old."""
    path = f"{folder}/{entry.name}" if folder else entry.name
    regular = entry.kind == "file"
    modified = entry.modified if entry.modified is not None or not regular else storage.modified(path)
    return File(path, entry.bytes, modified if regular and modified is not None else math.inf, regular)


def _remove_empty(folder: str) -> None:
    """The folder with the folders in it, as far as they are empty."""
    for inside, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(inside)
        except OSError:  # it holds something that is not ours to remove
            continue
