"""What tests of the trainer share: a tiny policy, pairs with its log-probs, and options of a run of a few steps."""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from prefdata import models
from prefdata.versions import Version
from tests.tiny_world import pair_rows, publish, save_model, scored, table, with_reference
from trainers import data, run
from trainers.loss import parse
from trainers.options import Options
from trainers.task import Task


@dataclass(frozen=True)
class World:
    """A policy and a version that has it for its reference."""

    model: str
    version: Version

    @property
    def options(self) -> Options:
        """A run of a few steps; 12 steps of 8 rows go on into a second epoch."""
        return Options(
            data=self.version.url,
            loss="dpo",
            lr=3e-3,
            steps=12,
            batch_size=4,
            accumulate=2,
            save_every=4,
            dtype="float32",
        )


def make_world(folder: Path, *, plain: int = 60, masked: int = 9, held_out: int = 20) -> World:
    """Pairs to train on, some with a mask, and pairs held out; all scored."""
    model = save_model(folder / "model")
    train_rows = with_reference(table(scored(pair_rows(plain, seed=1) + pair_rows(masked, seed=3, masked=True))), model)
    test_rows = with_reference(table(scored(pair_rows(held_out, seed=2))), model)
    version = publish(folder / "data", {"train": train_rows, "test": test_rows}, model, reference_model=model)
    return World(model, version)


class Talk(list[str]):
    """What was said; `hook` sees every line."""

    def __init__(self, hook: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.hook = hook

    def __call__(self, text: str) -> None:
        self.append(text)
        if self.hook is not None:
            self.hook(text)

    @property
    def text(self) -> str:
        return "\n".join(self)


def stop_after(step_number: int) -> Talk:
    """Ctrl-C while that step's line is printed."""
    return Talk(lambda line: os.kill(os.getpid(), signal.SIGINT) if line.startswith(f"step {step_number}/") else None)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a model folder."""
    return dict(models.load_model(str(folder)).state_dict())


def rows_of(version: Version, loss: str, folder: Path, split: str = "train") -> data.Rows:
    """A split as a loss reads it."""
    return data.load(version, split, parse(loss, None, ()).reading(version.kind), folder)


def task_of(loss: str, kind: str = "pairs") -> Task:
    """A loss with its knobs as they are unless set."""
    return Task(parse(loss, None, ()), kind)


# -- runs in processes of their own, which can be killed -----------------------------------------------------------

# forked from a process that has imported everything, so that a run begins in no time and not in ten seconds
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["trainers.run", "trainers.loop", "trainers.sources", "peft", "torch.utils.tensorboard"])
SAID = "said.txt"


def arguments(options: Options) -> list[str]:
    """The command line of options."""
    line: list[str] = []
    for field in fields(Options):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if field.name != "set" and value == field.default:
            continue
        for one in value if field.name == "set" else (value,):
            line += [flag] if one is True else [flag, str(one)]
    return line


class Started:
    """`trainers.run` in one process, or in several that know each other as under torchrun."""

    def __init__(
        self, folder: Path, options: Options, *, processes: int = 1, before: Callable[[], None] | None = None
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        told = _told(processes)
        self._processes = [
            _FORKS.Process(target=_main, args=(folder, arguments(options), own, before), daemon=True) for own in told
        ]
        for process in self._processes:
            process.start()

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def wait(self, timeout_s: float = 120) -> list[int | None]:
        """The exit codes, by rank."""
        for process in self._processes:
            process.join(timeout_s)
        return [process.exitcode for process in self._processes]

    def kill(self) -> bool:
        """SIGKILL; False if it had ended."""
        was_running = self.running
        for process in self._processes:
            process.kill()
        self.wait()
        return was_running

    def said(self, rank: int = 0) -> str:
        """What a process printed, errors included."""
        return (self.folder / f"{rank}-{SAID}").read_text()


def _told(processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [{"RANK": "0", "WORLD_SIZE": "1"}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _main(folder: Path, line: list[str], told: Mapping[str, str], before: Callable[[], None] | None) -> None:
    os.chdir(folder)
    os.environ.update(told)
    torch.set_num_threads(1)
    with (folder / f"{told['RANK']}-{SAID}").open("w", buffering=1) as said:
        sys.stdout = sys.stderr = said
        try:
            if before is not None:
                before()
            code = run.main(line)
        except Exception:  # said where the tests look, and not where a process without a terminal would
            traceback.print_exc(file=said)
            code = 1
        sys.exit(code)
