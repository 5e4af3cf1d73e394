"""Exports: the rows of a version in the layouts that other programs read.

A target is one file here and one line of `registry.TARGETS`. An export is a folder that is there whole or not at all, with
a note of which version it was made from and what the target has no place for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefdata.beside import beside
from prefdata.errors import UserError
from prefdata.exports import registry
from prefdata.exports.folder import Taken, filled
from prefdata.exports.target import Progress, Target
from prefdata.versions import Version

FOLDER = "exports"


@dataclass(frozen=True)
class Exported:
    """A folder, and what it holds."""

    folder: Path
    was_there: bool
    rows: dict[str, int]  # by split
    left_out: dict[str, int]  # by reason, over all splits


def export(
    version: Version,
    to: str,
    *,
    out: str | None = None,
    splits: Sequence[str] = (),
    progress: Progress = lambda rows: None,
) -> Exported:
    """Write a version's splits (default: all) in the form of a target; nothing is written twice.

    UserError if there is no such target or split, no form for the kind, or something else in the folder.
    """
    target = registry.find(to, version)
    splits = _splits(version, splits)
    target.check(version, splits)
    place = Path(out).expanduser() if out else _default(version, target, splits)
    _refuse_url(out)
    was_there = _is_there(place, target, version, splits)
    if not was_there:
        try:
            with filled(place) as folder:
                target.write(folder, version, splits, progress)
        except Taken:
            # another process may just have written the very same
            if not _is_there(place, target, version, splits):
                raise
            was_there = True
    return _exported(place, was_there, target.tally(place, version))


def _splits(version: Version, asked: Sequence[str]) -> list[str]:
    """In the version's own order."""
    there = version.splits
    if missing := [split for split in asked if split not in there]:
        raise UserError(f"{version.name} has no {missing[0]!r} rows; it holds: {', '.join(there)}")
    return [split for split in there if not asked or split in asked]


def _default(version: Version, target: Target, splits: Sequence[str]) -> Path:
    some = "" if set(splits) == set(version.splits) else f"-{'-'.join(splits)}"
    return beside(version, FOLDER) / f"{version.name}-{target.name}{some}"


def _refuse_url(out: str | None) -> None:
    if out is not None and "://" in out:
        raise UserError(f"an export is a local folder, and {out} is a URL: give a folder with -o, then copy it there.")


def _is_there(place: Path, target: Target, version: Version, splits: Sequence[str]) -> bool:
    """False where there is nothing yet. UserError if there is something else."""
    if (place.is_dir() and not any(place.iterdir())) or not (place.exists() or place.is_symlink()):
        return False
    if place.is_dir() and target.holds(place, version, splits):
        return True
    raise UserError(
        f"{place} is there and is not {version.url} ({', '.join(splits)}) for {target.name}: give another folder with -o, "
        "or move that one away."
    )


def _exported(place: Path, was_there: bool, tally: dict[str, dict[str, int]]) -> Exported:
    rows = {split: counts.pop("") for split, counts in tally.items()}
    left_out: Counter[str] = Counter()
    for counts in tally.values():
        left_out.update(counts)
    return Exported(place, was_there, rows, dict(left_out))
