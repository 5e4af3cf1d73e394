"""Run folders: runs/<version>-<loss>-<n>, each with a run.json that says what was asked and how far it came.

The same command finds its unfinished run by its configuration and goes on with it. A lock in the folder keeps two
processes from training one run; it is the system's, so a killed process leaves none behind.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prefdata.errors import UserError
from trainers import checkpoints

RUNS = "runs"
RUN = "run.json"
LOCK = "lock"
SPOOL = ".rows-"  # a file that lives while the rows are read
FORMAT = "prefdata-run/1"

_STAGED = f".{RUN}.tmp"


@dataclass
class Run:
    """A run folder that this process holds, or follows the holder into."""

    folder: Path
    config: Mapping[str, Any]
    continues: bool  # it was begun before
    lock: IO[str] | None  # None: the first of the run's processes holds it
    made: bool = False  # this process made the folder

    def write(self, status: str, **facts: Any) -> None:
        """Replace run.json whole."""
        content = {"format": FORMAT, "status": status, "config": self.config, **facts}
        staged = self.folder / _STAGED
        staged.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(staged, self.folder / RUN)

    def discard_if_new(self) -> None:
        """Nothing was trained: a folder made for this leaves no trace, and another's is as it was."""
        if self.lock is None or self.continues:
            return
        if self.made:
            shutil.rmtree(self.folder)
        else:
            for name in (RUN, LOCK):
                (self.folder / name).unlink(missing_ok=True)

    def release(self) -> None:
        """Let another process have the folder."""
        if self.lock is not None:
            self.lock.close()


def claim(config: Mapping[str, Any], *, out: str | None, fresh: bool, runs: str | Path = RUNS) -> tuple[Run, str]:
    """The folder of this run, and a sentence on how it was found."""
    if out is not None:
        return _claim_named(Path(out), config, fresh)
    done: Path | None = None
    otherwise = ""
    if not fresh:
        for folder in _numbered(Path(runs), config):
            known = read(folder)
            if known is None:
                continue
            if known["config"] != config:
                otherwise = otherwise or _in_other_processes(folder, known, config)
                continue
            if not finished(folder, config):
                return _take(folder, config), _going_on(folder)
            done = folder
    folder = _next(Path(runs), config)
    said = f"{done} is an equal run and finished; this is another, {folder}" if done else f"new run {folder}"
    said += otherwise
    try:
        return _take(folder, config, made=True), said
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)  # this process made it, and it holds nothing
        raise


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """run.json of a folder that holds this very run, finished; None otherwise."""
    known = read(folder)
    if not known or known["status"] != "finished" or known["config"] != config:
        return None
    checkpoints.clear(folder)  # what a kill at its very end left
    return known


def read(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder; None if there is none that can be read."""
    try:
        content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _claim_named(folder: Path, config: Mapping[str, Any], fresh: bool) -> tuple[Run, str]:
    known = read(folder)
    if known is None and folder.exists() and (not folder.is_dir() or _holds_something(folder)):
        raise UserError(f"--out {folder} exists and is no run: give a folder that is new or empty.")
    if known is not None and fresh:
        raise _holds_a_run(folder, "and --fresh wants another")
    run = _take(folder, config, made=_make(folder))
    return run, _going_on(folder) if run.continues else f"new run {folder}"


def _make(folder: Path) -> bool:
    """Whether this process made it, and not another or the user."""
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        if folder.is_dir():
            return False
        raise UserError(f"cannot make the run folder --out {folder}: {problem.strerror or problem}.") from problem
    return True


def _holds_a_run(folder: Path, why: str) -> UserError:
    return UserError(f"--out {folder} holds a run already, {why}: give another folder, or leave --out away.")


def _holds_something(folder: Path) -> bool:
    """Whether there is more than what a run killed at its very start leaves."""
    return any(path.name not in (LOCK, _STAGED) for path in folder.iterdir())


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {old.get(name)} then, {new.get(name)} now" for name in names[:3])


def _in_other_processes(folder: Path, known: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A remark on an unfinished run that differs in nothing but its number of processes; empty if it is none."""
    processes = known["config"].get("processes")
    if known["status"] == "finished" or known["config"] != {**config, "processes": processes}:
        return ""
    return f" ({folder} is this run in {processes} processes, unfinished; only as many can go on with it)"


def _going_on(folder: Path) -> str:
    return f"going on with the unfinished run {folder}"


def _take(folder: Path, config: Mapping[str, Any], *, made: bool = False) -> Run:
    """Hold the folder. UserError if another run is in it, if another process has it or has just finished it, or if nothing
    can be written there.
    """
    run = Run(folder, config, False, _lock(folder), made)
    try:
        known = read(folder)  # others may have been here between the first look and the lock
        if known is not None and known["config"] != config:
            raise _holds_a_run(folder, f"with other settings ({_differences(known['config'], config)})")
        if finished(folder, config):
            raise UserError(f"another process has just finished this very run: its model is in {folder}.")
        run.continues = known is not None
        for spooled in folder.glob(f"{SPOOL}*"):  # what a killed process left
            spooled.unlink()
        run.write("begun")
    except UserError:
        run.release()
        raise
    except OSError as problem:
        run.release()
        raise _not_writable(folder, problem) from problem
    return run


def _lock(folder: Path) -> IO[str]:
    try:
        handle = (folder / LOCK).open("a", encoding="utf-8")
    except OSError as problem:
        raise _not_writable(folder, problem) from problem
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UserError(
            f"{folder} is being trained by another process: wait for it, or start another run with --fresh."
        ) from None
    except OSError as problem:
        handle.close()
        raise UserError(
            f"the run folder {folder} cannot be locked: {problem.strerror or problem}. Give one on a file system that has"
            " locks with --out."
        ) from problem
    return handle


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Weights or a checkpoint on their way into a folder. UserError where the disk does not take them."""
    from safetensors import SafetensorError

    try:
        yield
    except Exception as problem:
        found = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        of_the_disk = isinstance(problem, OSError | SafetensorError)
        if not (of_the_disk or _of_torch_save(problem, found) or _of_tokenizers(problem, found)):
            raise
        free = shutil.disk_usage(folder.parent).free
        raise UserError(
            f"cannot save the model in {folder}: {found} ({free:,} bytes are free there). Make room or mend the disk, then"
            " give the same command again: it goes on from the last whole checkpoint."
        ) from problem


def _of_tokenizers(problem: Exception, message: str) -> bool:
    """tokenizers raises a plain Exception with the number of the system's error in its text."""
    return type(problem) is Exception and "(os error " in message


def _of_torch_save(problem: Exception, message: str) -> bool:
    """torch.save tells of a full disk by no other type and by no number."""
    return isinstance(problem, RuntimeError) and any(
        name in message for name in ("inline_container", "PytorchStreamWriter", "iostream")
    )


def _not_writable(folder: Path, problem: OSError) -> UserError:
    return UserError(
        f"cannot write in the run folder {folder}: {problem.strerror or problem}. Make it writable, or give another folder"
        " with --out."
    )


def _stem(config: Mapping[str, Any]) -> str:
    return f"{config['data']['version']}-{config['loss']}-"


def _numbered(runs: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Folders of this version and loss, newest first."""
    stem = _stem(config)
    found = [
        (int(folder.name[len(stem) :]), folder)
        for folder in runs.glob(f"{stem}*")
        if folder.name[len(stem) :].isdigit()
    ]
    return (folder for _, folder in sorted(found, reverse=True))


def _next(runs: Path, config: Mapping[str, Any]) -> Path:
    """The next free folder, made by this process and no other."""
    stem = _stem(config)
    number = max((int(folder.name[len(stem) :]) for folder in _numbered(runs, config)), default=0) + 1
    try:
        runs.mkdir(parents=True, exist_ok=True)
        while True:
            folder = runs / f"{stem}{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except OSError as problem:
        raise UserError(f"cannot make a run folder in {runs}: {problem.strerror or problem}.") from problem
