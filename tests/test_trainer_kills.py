"""SIGKILL at drawn moments of a training run; the same command again; and the weights of a clean run, bit for bit.

`make torture` kills many more times: PREFDATA_KILLS says how often.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_world import Started, World
from trainers import checkpoints, runs
from trainers.loop import Loop
from trainers.options import Options

KILLS = int(os.environ.get("PREFDATA_KILLS", "5"))
RUN = "run"
DAWDLE_S = 0.01
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def variant(small_world: World, number: int) -> Options:
    """What is trained: one of five ways, each with a checkpoint and an evaluation every second step."""
    often = replace(small_world.options, out=RUN, steps=8, eval_every=2, save_every=2)
    ways = (
        replace(often, batch_size=2, accumulate=4, loss="sft"),
        replace(often, dtype="bfloat16"),
        replace(often, lora_rank=4),
        replace(often, dropout=0.1, gradient_checkpointing=True),
        replace(often, early_stop=1, lr=0.3),  # too fast, so that it stops early
    )
    return ways[number % len(ways)]


class Clean:
    """What a run comes to that nobody kills, and how long it takes."""

    def __init__(self, folder: Path, options: Options) -> None:
        begun = time.monotonic()
        started = Started(folder, options, before=dawdle)
        assert started.wait() == [0], started.said()
        self.seconds = time.monotonic() - begun
        self.weights = weights(folder / RUN)
        self.result = runs.read(folder / RUN)
        assert self.result is not None
        assert (self.result["steps"] < (options.steps or 0)) == (options.early_stop is not None)


@pytest.fixture(scope="module")
def clean(small_world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Options], Clean]:
    known: dict[Options, Clean] = {}

    def of(options: Options) -> Clean:
        if options not in known:
            known[options] = Clean(tmp_path_factory.mktemp("clean"), options)
        return known[options]

    return of


@pytest.fixture(scope="module")
def killed() -> list[bool]:
    """Of every kill, whether it came before the run's end."""
    return []


def weights(folder: Path) -> bytes:
    """The weights that a run left, as they are on disk."""
    (found,) = (folder / name for name in WEIGHTS if (folder / name).exists())
    return found.read_bytes()


def dawdle() -> None:
    """A slow disk: the moments in which something is written or removed are long enough to be hit."""

    def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **settings: Any) -> Any:
            time.sleep(DAWDLE_S)
            return function(*given, **settings)

        return call

    for owner, name in (
        (Loop, "_save"),
        (Loop, "_save_optimizer_and_scheduler"),
        (Loop, "_save_rng_state"),
        (Loop, "evaluate"),
        (checkpoints, "publish"),
        (checkpoints, "clear"),
        (runs.Run, "write"),
        (os, "replace"),
        (os, "unlink"),
    ):
        setattr(owner, name, slowed(getattr(owner, name)))


def moment(folder: Path, seconds: float, rng: random.Random) -> Callable[[], bool]:
    """When to kill: at any time, while a checkpoint is written or removed, or between the final save and its mark."""
    where = rng.choice(("any time", "any time", "writing", "removing", "end"))
    if where == "writing":
        return (folder / checkpoints.STAGED).exists
    if where == "removing":
        return (folder / checkpoints.DISCARDED).exists
    if where == "end":
        return lambda: any((folder / name).exists() for name in WEIGHTS)
    until = time.monotonic() + rng.uniform(0, 0.9 * seconds)
    return lambda: time.monotonic() > until


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_in_the_weights_of_a_clean_one(
    small_world: World, clean: Callable[[Options], Clean], killed: list[bool], tmp_path: Path, number: int
) -> None:
    rng = random.Random(number)
    options = variant(small_world, number)
    expected = clean(options)
    folder = tmp_path / RUN
    for _ in range(2):
        now, delay_s = moment(folder, expected.seconds, rng), rng.uniform(0, DAWDLE_S)
        started = Started(tmp_path, options, before=dawdle)
        while started.running and not now():
            time.sleep(0.001)
        time.sleep(delay_s)
        killed.append(started.kill())
        for checkpoint in folder.glob("checkpoint-*"):  # what is visible is whole
            assert (checkpoint / checkpoints.STATE).exists()
            assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {path.name for path in checkpoint.iterdir()}
            assert weights(checkpoint)

    last = Started(tmp_path, options)
    assert last.wait() == [0], last.said()
    result = runs.read(folder)
    assert result is not None
    assert expected.result is not None
    assert result["status"] == "finished"
    assert [result[name] for name in ("steps", "before", "after", "best_step")] == [
        expected.result[name] for name in ("steps", "before", "after", "best_step")
    ]
    assert weights(folder) == expected.weights
    left = {path.name for path in folder.iterdir()}
    assert not any(name.startswith(("checkpoint", ".checkpoint", runs.SPOOL)) for name in left)


@pytest.mark.slow
def test_the_kills_came_before_the_ends(killed: list[bool]) -> None:
    """Or the tests above would say nothing; one that comes too late now and then is part of drawing the moment."""
    assert sum(killed) > 0
    assert sum(killed) >= 0.7 * len(killed)
