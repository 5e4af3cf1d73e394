"""A recipe that was built is recognised without opening a model or a tokenizer: by itself and by the state of its files.

Kept beside the work units: lost, or with any doubt, the builds are asked one by one, which takes seconds longer.
"""

import json
import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from prefdata import versions
from prefdata.errors import UserError
from prefdata.identity import digest, spelled
from prefdata.recipe.reading import Recipe, Step
from prefdata.storage import Storage
from prefdata.versions import Version
from prefdata.work import FOLDER

_PLACE = "recipes"
# of these options, what is no file on this machine has a state that only the hub or a store could tell
_ELSEWHERE = ("source", "model", "reference", "decontaminate", "split_like")
_COMMIT = re.compile(r".+@[0-9a-f]{40}")


def find(recipe: Recipe, root: str) -> list[Version] | None:
    """The versions that it made, if it was built and nothing that it names has changed since."""
    key = _key(recipe)
    if key is None:
        return None
    try:
        names = json.loads(Storage(root).at(FOLDER).at(_PLACE).read(key))
        return [versions.find(name, root=root) for name in names]
    except (FileNotFoundError, ValueError, UserError):
        return None


def keep(recipe: Recipe, root: str, made: list[Version]) -> None:
    """Remember what it made."""
    key = _key(recipe)
    if key is not None:
        names = json.dumps([version.name for version in made])
        Storage(root).at(FOLDER).at(_PLACE).write(key, names.encode())


def _key(recipe: Recipe) -> str | None:
    """Names the recipe and the state of all files in it; None if there is something whose state can't be told."""
    first = recipe.steps[0]
    if first.build == "ingest" and "model" not in first.options:
        return None  # it takes the last ingest's, whichever that is
    said = [{"build": step.build, "options": dict(step.options)} for step in recipe.steps]
    states = [state for step in recipe.steps for state in _states(step)]
    if None in states:
        return None
    return digest({"recipe": spelled(said), "version": recipe.version, "files": states})


def _states(step: Step) -> Iterator[str | None]:
    for name, value in step.options.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                yield _state(name, text)


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
