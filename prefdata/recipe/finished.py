"""A recipe that was built is recognised without opening a model or a tokenizer: by itself and by the state of its files.

Kept beside the work units: lost, or with any doubt, the builds are asked one by one, which takes seconds longer.
"""

import json
import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from prefdata import scorers, versions
from prefdata.errors import UserError
from prefdata.identity import digest, spelled
from prefdata.recipe.reading import Recipe, Step
from prefdata.storage import Storage
from prefdata.versions import Version
from prefdata.work import FOLDER

_PLACE = "recipes"
# of these options, what is no file on this machine has a state that only the hub or a store could tell
_ELSEWHERE = ("source", "model", "reference", "embeddings", "decontaminate")
_VERSIONS = ("split_like", "calibrate_on")  # these name versions, and a tag may name another one by now
_NAMED = ("tokenizer", "generator", "reference")  # by a manifest, and read by builds that are not told which model
_COMMIT = re.compile(r".+@[0-9a-f]{40}")


def find(key: str | None, root: str) -> list[Version] | None:
    """The versions that the recipe of this key made, if it was built."""
    if key is None:
        return None
    try:
        names = json.loads(Storage(root).at(FOLDER).at(_PLACE).read(key))
        return [versions.find(name, root=root) for name in names]
    except (FileNotFoundError, ValueError, UserError):
        return None


def keep(key: str | None, root: str, made: list[Version]) -> None:
    """Remember what it made."""
    if key is not None:
        names = json.dumps([version.name for version in made])
        Storage(root).at(FOLDER).at(_PLACE).write(key, names.encode())


def key_of(recipe: Recipe, root: str) -> str | None:
    """Names the recipe and the state of all that it names; None if there is something whose state can't be told.

    To be asked before the builds, for a file may change while they run. UserError for a version that is not there.
    """
    first = recipe.steps[0]
    if first.build == "ingest" and "model" not in first.options:
        return None  # it takes the last ingest's, whichever that is
    said = [{"build": step.build, "options": dict(step.options)} for step in recipe.steps]
    states = [state for step in recipe.steps for state in _states(step, root)]
    if recipe.version is not None:
        states += _of_version(recipe.version, root)
    if None in states:
        return None
    return digest({"recipe": spelled(said), "files": states})


def _of_version(named: str, root: str) -> list[str | None]:
    """Which version a name stands for now, and the models in it."""
    version = versions.find(named, root=root)
    entries = (version.manifest[entry] for entry in _NAMED)  # type: ignore[literal-required]
    return [f"{version.name} {version.logical_hash}", *(_state("", entry["name"]) for entry in entries if entry)]


def _states(step: Step, root: str) -> Iterator[str | None]:
    for name, value in step.options.items():
        for text in value if isinstance(value, tuple) else (value,):
            if name in _VERSIONS and text is not None:
                yield from _of_version(text, root)
            elif name == "scorer":
                yield _of_scorer(text)
            elif isinstance(text, str):
                yield _state(name, text)


def _of_scorer(text: str) -> str | None:
    """A verifier is code, which may stand anywhere."""
    called = scorers.parse(text)
    if called.kind == "reward_model":
        return _state("model", called.what or "")
    return None if called.kind == "verifier" else text


def _state(option: str, text: str) -> str | None:
    """Path, size and time of each file that a text names; the text if it names none and is about nothing else."""
    places = (
        [Path(text).expanduser()] if "*" not in text else [Path(found) for found in sorted(glob(text, recursive=True))]
    )
    files = [file for place in places for file in _files(place)]
    if files:
        return "|".join(f"{file}:{stat.st_size}:{stat.st_mtime_ns}" for file in files for stat in (file.stat(),))
    return None if option in _ELSEWHERE and not _COMMIT.fullmatch(text) else text


def _files(place: Path) -> list[Path]:
    try:
        if place.is_file():
            return [place.resolve()]
        return sorted(path.resolve() for path in place.rglob("*") if path.is_file()) if place.is_dir() else []
    except OSError:
        return []
