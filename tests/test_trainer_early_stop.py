"""Early stopping: the held-out loss decides, the best step is kept, and an interrupted run goes on counting."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from prefdata import models
from prefdata.errors import UserError
from tests.tiny_world import pair_rows, publish, table
from tests.trainer_world import Talk, World, rows_of, task_of, weights
from trainers import data
from trainers.loop import step
from trainers.options import Options
from trainers.progress import EarlyStop
from trainers.run import RunResult, summary, train


def hasty(world: World) -> Options:
    """Too fast to stay good: the held-out loss rises after a few steps."""
    return replace(world.options, lr=3e-2, steps=40, eval_every=1, save_every=5, early_stop=3)


@pytest.fixture
def options(world: World, options: Options) -> Options:
    """In a folder of its own."""
    return hasty(world)


@pytest.fixture(scope="module")
def stopped(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Talk]:
    talk = Talk()
    return train(replace(hasty(world), out=str(tmp_path_factory.mktemp("stopped") / "run")), say=talk), talk


def stop_in_evaluation(number: int) -> Talk:
    """Ctrl-C while that step is evaluated: the run ends after the next one."""
    begin = f"step {number}  held out"
    return Talk(lambda line: os.kill(os.getpid(), signal.SIGINT) if line.startswith(begin) else None)


def held_out_losses(talk: Talk) -> dict[int, str]:
    """Of every step that was evaluated, the loss as it was said."""
    lines = [line.split() for line in talk if line.startswith("step ") and "held out:" in line]
    return {int(words[1]): words[words.index("loss") + 1] for words in lines}


def simulate(losses: list[float], patience: int) -> tuple[int, int | None]:
    """After which evaluation a run stops, and which was the best, by the callback alone. Losses of steps 1, 2, ..."""
    state, early = TrainerState(max_steps=99), EarlyStop(patience, Talk())
    for number, loss in enumerate(losses, start=1):
        control = TrainerControl()
        state.global_step = number
        state.log_history.append({"eval_loss": loss, "step": number})
        early.on_evaluate(SimpleNamespace(), state, control, metrics={"eval_loss": loss})
        # what a kill now would have to know is written
        assert control.should_save == (state.best_global_step == number or control.should_training_stop)
        if control.should_training_stop:
            break
    return state.global_step, state.best_global_step


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([3, 2, 4, 5, 6, 1], 3, (5, 2)),
        ([3, 2, 4, 1, 6, 7, 0.5], 3, (7, 7)),  # a new best starts the count again
        ([3, 4, 0], 1, (2, 1)),
        ([3, 2.5, 2.5, 2], 2, (4, 4)),  # an equal loss is no better one
        ([1, 2, 3], 5, (3, 1)),
    ],
)
def test_patience_counts_evaluations_since_the_best(
    losses: list[float], patience: int, expected: tuple[int, int]
) -> None:
    assert simulate(losses, patience) == expected


def test_a_run_stops_early_and_keeps_the_best_step(
    stopped: tuple[RunResult, Talk], world: World, tmp_path: Path
) -> None:
    result, talk = stopped
    losses = {at: float(loss) for at, loss in held_out_losses(talk).items() if at > 0}
    best = min(losses, key=lambda at: losses[at])
    assert result.finished
    assert 0 < best < result.steps == best + 3 < 40
    assert result.best_step == best
    assert f"step {result.steps}  no better held-out loss in 3 evaluations: stopping early" in talk
    assert any(line.startswith(f"kept step {best}, whose held-out loss") for line in talk)
    assert f"done: {result.steps} steps, those of step {best} kept" in summary(result)
    rows = rows_of(world.version, "dpo", tmp_path, "test")
    net = models.load_model(str(result.folder))
    with torch.no_grad():
        kept = step(net, data.collate([rows[place] for place in range(len(rows))]), task_of("dpo")).losses.mean()
    assert float(kept) == pytest.approx(result.after["loss"], abs=1e-5)
    assert float(kept) == pytest.approx(losses[best], rel=1e-3)
    content = json.loads((result.folder / "run.json").read_text())
    assert content["best_step"] == best
    assert not list(result.folder.glob("checkpoint-*"))


def test_the_best_step_is_that_of_a_run_which_ends_there(
    stopped: tuple[RunResult, Talk], options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are those that the same run has after that step; the schedule is that of 40 steps."""
    result, _ = stopped
    assert result.best_step is not None
    interrupted = train(replace(options, early_stop=99), say=stop_in_evaluation(result.best_step - 1))
    there = weights(interrupted.folder / f"checkpoint-{result.best_step}")
    for name, value in weights(result.folder).items():
        assert torch.equal(value, there[name]), name


@pytest.mark.parametrize("waited", [1, 2])
def test_an_interrupted_run_goes_on_counting(stopped: tuple[RunResult, Talk], options: Options, waited: int) -> None:
    clean, _ = stopped
    assert clean.best_step is not None
    assert not train(options, say=stop_in_evaluation(clean.best_step + waited - 1)).finished
    again = train(options, say=Talk())
    assert again.continued
    assert (again.steps, again.best_step, again.after) == (clean.steps, clean.best_step, clean.after)
    for name, value in weights(clean.folder).items():
        assert torch.equal(value, weights(again.folder)[name]), name


def test_a_run_that_is_not_stopped_takes_all_steps_and_keeps_the_best(options: Options) -> None:
    talk = Talk()
    result = train(replace(options, steps=4, lr=1e-3, early_stop=4), say=talk)
    losses = {at: float(loss) for at, loss in held_out_losses(talk).items() if at > 0}
    assert result.steps == 4
    assert len(losses) == 4
    assert losses[result.best_step or 0] == min(losses.values())
    assert "stopping early" not in talk.text


def test_nothing_to_watch_is_said_before_anything_is_done(world: World, options: Options, tmp_path: Path) -> None:
    version = publish(tmp_path / "d", {"train": table(pair_rows(20))}, world.model)
    with pytest.raises(
        UserError, match="--early-stop watches the held-out loss, and data version v1 holds out no rows"
    ):
        train(replace(options, data=version.url, loss="orpo"), say=Talk())
    assert not Path("runs").exists()
