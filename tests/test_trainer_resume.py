"""An interrupted run goes on and ends in the same weights; which folder a run has, and who may write in it."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl

from prefdata import models
from prefdata.errors import UserError
from prefdata.tokens import Renderer
from prefdata.versions import Version
from tests.tiny_world import pair_rows, publish, table
from tests.trainer_world import Talk, stop_after, weights
from trainers import plan as planning
from trainers import policy, runs
from trainers.loop import Loop
from trainers.loss import parse
from trainers.options import Options
from trainers.processes import Processes
from trainers.progress import Interrupt
from trainers.run import RunResult, train
from trainers.sources import Sources


@pytest.fixture
def clean(options: Options) -> RunResult:
    """The same run without an interruption."""
    return train(replace(options, out="clean"), say=Talk())


def test_a_stopped_run_goes_on_and_ends_in_the_same_weights(options: Options, clean: RunResult) -> None:
    """12 steps of 8 among 69 rows: it goes on across the end of the first epoch."""
    talk = stop_after(6)
    stopped = train(options, say=talk)
    assert not stopped.finished
    assert stopped.steps == 7
    assert "the same command goes on" in talk.text
    talk = Talk()
    finished = train(options, say=talk)
    assert finished.continued
    assert finished.finished
    assert finished.folder == stopped.folder
    assert "going on with the unfinished run" in talk.text
    assert "from checkpoint-7" in talk.text
    assert finished.before == clean.before
    assert finished.after == clean.after
    assert finished.train["num_tokens"] == clean.train["num_tokens"]
    for name, value in weights(clean.folder).items():
        assert torch.equal(value, weights(finished.folder)[name]), name


def test_an_evaluation_that_a_stop_leaves_out_moves_no_draw_of_dropout(options: Options) -> None:
    """Stopped after step 7, whose evaluation is due and left for the end."""
    drops = replace(options, dropout=0.3, eval_every=7)
    clean = train(replace(drops, out="whole"), say=Talk())
    stopped = train(drops, say=stop_after(6))
    assert stopped.steps == 7
    finished = train(drops, say=Talk())
    assert finished.continued
    for name, value in weights(clean.folder).items():
        assert torch.equal(value, weights(finished.folder)[name]), name


def test_curves_have_every_step_once_after_a_stop(options: Options) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(options, say=stop_after(6))
    folder = train(options, say=Talk()).folder
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, 13))


def edit_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def test_a_model_whose_settings_were_edited_is_not_gone_on_with(options: Options, model: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    asked = replace(options, model=str(copy))
    stopped = train(asked, say=stop_after(1))
    edit_config(copy, rms_norm_eps=0.1)
    with pytest.raises(UserError, match=r"holds a run already, with other settings .*policy: "):
        train(replace(asked, out=str(stopped.folder)), say=Talk())
    talk = Talk()
    other = train(replace(asked, steps=12), say=talk)
    assert not other.continued
    assert other.folder != stopped.folder
    assert "is another model than the stored reference" in talk.text
    assert "with the same weights and other settings" in talk.text
    assert "warning" not in talk.text


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(options: Options, clean: RunResult) -> None:
    stopped = train(options, say=stop_after(6))
    (stopped.folder / "checkpoint-7" / "trainer_state.json").write_text('{"global_')
    talk = Talk()
    finished = train(options, say=talk)
    assert "from checkpoint-4" in talk.text
    for name, value in weights(clean.folder).items():
        assert torch.equal(value, weights(finished.folder)[name]), name


def test_a_run_killed_between_its_last_step_and_its_end_trains_no_further(
    options: Options, clean: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(policy, "save", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(options, say=Talk())
    finished = train(options, say=Talk())
    assert finished.continued
    assert finished.finished
    assert finished.steps == 12
    assert finished.before == clean.before
    assert finished.after == clean.after
    for name, value in weights(clean.folder).items():
        assert torch.equal(value, weights(finished.folder)[name]), name


def test_a_run_killed_before_its_first_checkpoint_starts_over_in_its_folder(options: Options) -> None:
    train(replace(options, save_every=100), say=stop_after(2))
    folder = Path("runs/v1-dpo-1")
    (folder / "checkpoint-3" / "trainer_state.json").unlink()
    (folder / ".rows-left.arrow").touch()
    talk = Talk()
    assert train(replace(options, save_every=100), say=talk).folder == folder
    assert "no checkpoint yet" in talk.text
    assert not (folder / ".rows-left.arrow").exists()


def test_other_settings_fresh_or_finished_runs_get_a_folder_of_their_own(options: Options) -> None:
    short = replace(options, steps=2)
    assert train(short, say=Talk()).folder.name == "v1-dpo-1"
    talk = Talk()
    assert train(short, say=talk).folder.name == "v1-dpo-2"
    assert "v1-dpo-1 is an equal run and finished" in talk.text
    assert train(replace(short, set=("beta=0.2",)), say=Talk()).folder.name == "v1-dpo-3"
    train(options, say=stop_after(1))
    assert train(replace(options, fresh=True, steps=1), say=Talk()).folder.name == "v1-dpo-5"


def test_two_processes_never_train_one_run(options: Options) -> None:
    train(options, say=stop_after(1))
    config = runs.read(Path("runs/v1-dpo-1"))
    assert config is not None
    held, _ = runs.claim(config["config"], out=None, fresh=False)
    with pytest.raises(UserError, match="being trained by another process"):
        train(options, say=Talk())
    held.release()


def test_a_run_that_another_process_finished_meanwhile_is_not_trained_again(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes between the first look at run.json and the lock."""
    train(options, say=stop_after(1))
    folder = Path("runs/v1-dpo-1")
    true_lock = runs._lock

    def finish_then_lock(where: Path) -> Any:
        content = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(content | {"status": "finished"}))
        return true_lock(where)

    monkeypatch.setattr(runs, "_lock", finish_then_lock)
    with pytest.raises(
        UserError, match="another process has just finished this very run: its model is in runs/v1-dpo-1"
    ):
        train(options, say=Talk())
    true_lock(folder).close()  # it was given back


@pytest.mark.parametrize("same", [True, False])
def test_a_run_that_another_process_began_meanwhile_is_seen_under_the_lock(
    options: Options, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """It is begun, and killed, between the first look at an empty folder and the lock."""
    config = {"data": {"version": "v1"}, "loss": "dpo", "steps": 1}
    true_lock = runs._lock

    def begin_then_lock(where: Path) -> Any:
        runs.Run(where, config if same else config | {"steps": 2}, False, None).write("begun")
        return true_lock(where)

    monkeypatch.setattr(runs, "_lock", begin_then_lock)
    if same:
        run, said = runs.claim(config, out="here", fresh=False)
        assert run.continues
        assert "going on" in said
        run.release()
    else:
        with pytest.raises(UserError, match=r"here holds a run already, with other settings \(steps: 2 then, 1 now\)"):
            runs.claim(config, out="here", fresh=False)


def test_a_run_folder_that_cannot_be_written_is_one_sentence(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    train(options, say=stop_after(1))
    folder = Path("runs/v1-dpo-1")
    (folder / "lock").unlink()
    (folder / "lock").mkdir()  # not even root can open it
    with pytest.raises(UserError, match="cannot write in the run folder runs/v1-dpo-1: Is a directory"):
        train(options, say=Talk())
    (folder / "lock").rmdir()

    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", read_only)
        with pytest.raises(UserError, match="cannot write in the run folder runs/v1-dpo-1: Read-only file system"):
            train(options, say=Talk())
    assert train(options, say=Talk()).finished


def test_a_file_system_without_locks_is_not_another_process(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(UserError, match="v1-dpo-1 cannot be locked: No locks available"):
        train(options, say=Talk())
    assert not list(Path("runs").iterdir())


def test_an_edited_template_is_another_run_and_a_renamed_one_is_not(
    options: Options, version: Version, model: str, tmp_path: Path
) -> None:
    text = "{% for m in messages %}{{ m.content }} </s>{% endfor %}"
    first, renamed = tmp_path / "first.jinja", tmp_path / "renamed.jinja"
    first.write_text(text)
    renamed.write_text(text)

    def config() -> dict[str, Any]:
        renderer = Renderer.load(model, chat_template=str(first))
        asked = replace(options, chat_template=str(first))
        sources = Sources((version,))
        return planning._config(asked, sources, parse("dpo", None, ()), models.describe(model), renderer, Processes())

    before = config()
    first.write_text("{# edited #}" + text)
    assert config() != before
    first.write_text(text)
    assert config() == before

    templated = publish(
        tmp_path / "templated",
        {"train": table(pair_rows(9))},
        model,
        tokenizer=Renderer.load(model, chat_template=str(first)).fingerprint,
    )
    asked = replace(options, data=templated.url, loss="sft", model=model, steps=3)
    stopped = train(replace(asked, chat_template=str(first)), say=stop_after(1))
    assert train(replace(asked, chat_template=str(renamed)), say=Talk()).folder == stopped.folder


def test_a_signal_is_heard_at_once_and_spoken_of_at_the_end_of_the_step() -> None:
    """A print from the handler could cut into a print under way, which raises."""
    talk = Talk()
    state, control = SimpleNamespace(global_step=3, max_steps=9), TrainerControl()
    with Interrupt(talk) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        assert talk == []
        for _ in range(2):
            interrupt.on_step_end(None, state, control)
        assert control.should_save
        assert control.should_training_stop
        assert len(talk) == 1
        assert "stopping after this step" in talk.text
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_out_is_the_folder_and_never_overwrites(options: Options, tmp_path: Path) -> None:
    here = replace(options, out="here", steps=1)
    first = train(here, say=Talk())
    assert first.folder == Path("here")
    for wrong, why in ((replace(here, fresh=True), "--fresh"), (replace(here, steps=2), "steps: 1 then, 2 now")):
        with pytest.raises(UserError, match=why):
            train(wrong, say=Talk())
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    talk = Talk()
    again = train(here, say=talk)
    assert "nothing was trained" in talk.text
    assert (again.after, again.before, again.steps) == (first.after, first.before, 1)
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == written
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match="exists and is no run"):
        train(replace(options, out="full"), say=Talk())
    with pytest.raises(UserError, match=r"cannot make the run folder --out full/thesis\.txt/run: Not a directory"):
        train(replace(options, out="full/thesis.txt/run"), say=Talk())


@pytest.mark.parametrize("left", [["lock"], ["lock", ".run.json.tmp"]])
def test_a_run_killed_while_its_folder_was_made_begins_there(options: Options, left: list[str]) -> None:
    Path("here").mkdir()
    for name in left:
        (Path("here") / name).touch()
    assert train(replace(options, out="here", steps=1), say=Talk()).folder == Path("here")


def test_half_a_checkpoint_is_never_in_sight(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is being written or removed, each checkpoint-N that can be seen has all its files."""
    files = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    seen: list[int] = []

    def look(*_: Any) -> None:
        visible = list(Path("runs/v1-dpo-1").glob("checkpoint-*"))
        seen.append(len(visible))
        for checkpoint in visible:
            assert files <= {path.name for path in checkpoint.iterdir()}

    def watched(function: Any) -> Any:
        def call(*given: Any, **settings: Any) -> Any:
            look()
            done = function(*given, **settings)
            look()
            return done

        return call

    for owner, name in (
        (Loop, "_save"),
        (Loop, "_save_optimizer_and_scheduler"),
        (Loop, "_save_rng_state"),
        (os, "unlink"),
        (os, "rename"),
        (os, "replace"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    train(replace(options, save_every=2), say=Talk())
    assert max(seen) == 3  # the two that stay and the one about to go


def test_a_finished_run_sheds_what_a_kill_at_its_very_end_left(options: Options) -> None:
    here = replace(options, out="here", steps=2)
    train(here, say=Talk())
    leave_checkpoint(Path("here"))
    assert "nothing was trained" in talk_of(here).text
    assert not list(Path("here").glob("checkpoint-*"))
    train(replace(options, steps=2), say=Talk())
    leave_checkpoint(Path("runs/v1-dpo-1"))
    train(replace(options, steps=2), say=Talk())
    assert not list(Path("runs/v1-dpo-1").glob("checkpoint-*"))


def talk_of(options: Options) -> Talk:
    talk = Talk()
    train(options, say=talk)
    return talk


def leave_checkpoint(folder: Path) -> None:
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": 2}')
