"""Checkpoints of a run folder: checkpoint-N, renamed into place and out of it, so that one is there whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

STAGED = ".checkpoint"  # holds one while it is written
DISCARDED = ".checkpoint-old"  # holds one while it is removed
KEPT = 2  # the newest ones
STATE = "trainer_state.json"

_NAME = re.compile(r"checkpoint-([0-9]+)")


def path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was saved after."""
    return int(checkpoint.name.rpartition("-")[2])


def last(folder: Path) -> Path | None:
    """The newest checkpoint. One that something else than this program cut short is removed."""
    for step, checkpoint in _every(folder):
        if _stated_step(checkpoint) == step:
            return checkpoint
        _discard(checkpoint)
    return None


def stage(folder: Path) -> Path:
    """An empty folder to write the next checkpoint in; what a killed process left there is removed."""
    staged = folder / STAGED
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    return staged


def publish(folder: Path, step: int) -> None:
    """The staged checkpoint becomes the run's, in one rename."""
    target = path(folder, step)
    if target.exists():
        _discard(target)
    os.replace(path(folder / STAGED, step), target)
    (folder / STAGED).rmdir()


def prune(folder: Path, keep: Collection[int]) -> None:
    """Remove all but the newest ones and those named."""
    for step, checkpoint in _every(folder)[KEPT:]:
        if step not in keep:
            _discard(checkpoint)


def clear(folder: Path) -> None:
    """Remove all: they serve to go on with an unfinished run, and a finished one has its model in the folder itself."""
    for _, checkpoint in _every(folder):
        _discard(checkpoint)
    for name in (STAGED, DISCARDED):
        shutil.rmtree(folder / name, ignore_errors=True)


def _discard(checkpoint: Path) -> None:
    """Out of sight first: half a checkpoint is never seen as one."""
    aside = checkpoint.parent / DISCARDED
    shutil.rmtree(aside, ignore_errors=True)  # a killed process left it
    with suppress(FileNotFoundError):  # of a finished run, another process may remove it too
        os.replace(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _every(folder: Path) -> list[tuple[int, Path]]:
    """Newest first."""
    found = [(int(match[1]), at) for at in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(at.name))]
    return sorted(found, reverse=True)


def _stated_step(checkpoint: Path) -> int | None:
    try:
        return int(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
