"""The loop around the losses: counts, batches, checkpoints, resuming, refusals. On a model of 20,000 parameters."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close
from transformers import TrainerControl

from prefdata import logprobs, models
from prefdata.errors import UserError
from prefdata.tokens import Renderer, differences
from prefdata.versions import Version
from tests.tiny_world import completion_rows, pair_rows, publish, save_model, table, with_reference
from trainers import agreement, contract, data, run, runs
from trainers import train as training
from trainers.loop import Loop, NotFinite, Task, step, sum_scored
from trainers.objectives import OBJECTIVES, Pair, ReferencedPair, find
from trainers.progress import Cadence, Interrupt
from trainers.run import Options, RunResult, train

LOSSES = pytest.mark.parametrize("loss", sorted(OBJECTIVES))
PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same tokenizer, other weights."""
    return save_model(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture(scope="module")
def version(model: str, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Pairs with the policy's own log-probs as reference; some rows carry a mask."""
    train_rows = with_reference(table(pair_rows(60, seed=1) + pair_rows(9, seed=3, masked=True)), model)
    test_rows = with_reference(table(pair_rows(20, seed=2)), model)
    return publish(
        tmp_path_factory.mktemp("versions"), {"train": train_rows, "test": test_rows}, model, reference_model=model
    )


@pytest.fixture
def options(version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A run of a few steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Options(
        data=version.url, loss="dpo", lr=3e-3, steps=12, batch_size=4, accumulate=2, save_every=4, dtype="float32"
    )


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


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return dict(models.load_model(str(folder)).state_dict())


def rows_of(version: Version, loss: str, tmp_path: Path, split: str = "train") -> data.Rows:
    return data.load(version, split, find(loss).batch, tmp_path)


def task_of(loss: str, kind: str = "pairs") -> Task:
    objective = find(loss)
    return Task(objective, {name: knob.default for name, knob in objective.knobs.items()}, kind)


# -- rows and batches ----------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_are_stored(version: Version, tmp_path: Path) -> None:
    rows = rows_of(version, "dpo", tmp_path)
    stored = version.table("train").to_pylist()
    assert len(rows) == len(stored)
    for place in (0, 5, 59, 60, 68):
        row, expected = rows[place], stored[place]
        assert row.row_id == expected["row_id"]
        assert row.prompt_ids.tolist() == expected["prompt_ids"]
        assert [side.ids.tolist() for side in row.sides] == [expected["chosen_ids"], expected["rejected_ids"]]
        assert row.sides[0].tokens == expected["chosen_tokens"] == int(row.sides[0].scored.sum())
        assert row.sides[0].reference == pytest.approx(expected["ref_chosen_logps"], abs=1e-5)
        assert row.sides[1].reference == pytest.approx(expected["ref_rejected_logps"], abs=1e-5)
    assert list(tmp_path.iterdir()) == []  # the spooled file has no name


def test_rows_span_record_batches(version: Version) -> None:
    whole = version.table("train").combine_chunks()
    pieces = [whole.slice(start, 10).combine_chunks().to_batches()[0] for start in range(0, len(whole), 10)]
    rows = data.Rows(pieces, ("chosen", "rejected"))
    assert [rows[place].row_id for place in range(len(rows))] == whole["row_id"].to_pylist()
    assert rows.longest == max(
        prompt + max(len(chosen), len(rejected))
        for prompt, chosen, rejected in zip(
            whole["prompt_tokens"].to_pylist(),
            whole["chosen_ids"].to_pylist(),
            whole["rejected_ids"].to_pylist(),
            strict=True,
        )
    )


def test_every_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    order = data.EpochOrder(np.arange(50) % 7, seed=3, rows_per_step=8)
    first = list(order)
    assert sorted(first) == list(range(50))
    assert first != list(range(50))
    order.set_epoch(1)
    second = list(order)
    assert second != first
    assert sorted(second) == sorted(first)
    again = data.EpochOrder(np.arange(50) % 7, seed=3, rows_per_step=8)
    again.set_epoch(1)
    assert list(again) == second
    assert list(data.EpochOrder(np.arange(50) % 7, seed=4, rows_per_step=8)) != first


def test_lengths_reorder_a_step_but_never_move_rows_between_steps() -> None:
    def steps(lengths: Any) -> list[set[int]]:
        order = list(data.EpochOrder(lengths, seed=0, rows_per_step=8))
        return [set(order[start : start + 8]) for start in range(0, 48, 8)]

    lengths = np.random.default_rng(0).integers(1, 99, 48)
    assert steps(lengths) == steps(np.ones(48, np.int64))
    order = list(data.EpochOrder(lengths, seed=0, rows_per_step=8))
    assert all(lengths[order[place]] >= lengths[order[place + 1]] for place in range(7))


def test_sums_leave_out_what_the_mask_leaves_out_even_if_it_is_not_finite() -> None:
    logps = [torch.tensor([-1.0, -math.inf, -2.0], requires_grad=True), torch.tensor([-4.0], requires_grad=True)]
    sums = sum_scored(logps, torch.tensor([[True, False, True], [True, False, False]]))
    assert sums.tolist() == [-3.0, -4.0]
    sums.sum().backward()
    assert logps[0].grad is not None
    assert logps[0].grad.tolist() == [1.0, 0.0, 1.0]


def test_sums_of_many_tokens_keep_their_digits() -> None:
    lp = torch.full((2000,), -2.35)
    assert sum_scored([lp], torch.ones(1, 2000, dtype=torch.bool)).item() == pytest.approx(
        2000 * float(lp[0]), abs=1e-9
    )


# -- the loss of a batch -------------------------------------------------------------------------------------------


@LOSSES
def test_padding_and_neighbours_change_no_row(version: Version, model: str, tmp_path: Path, loss: str) -> None:
    rows, net, task = rows_of(version, loss, tmp_path), models.load_model(model), task_of(loss)
    picked = [rows[place] for place in (0, 3, 61, 65)]
    together = step(net, data.collate(picked), task).losses
    alone = torch.cat([step(net, data.collate([row]), task).losses for row in picked])
    assert_close(together, alone, rtol=1e-5, atol=1e-5)


@LOSSES
def test_only_the_policy_has_a_gradient(version: Version, model: str, tmp_path: Path, loss: str) -> None:
    rows, task = rows_of(version, loss, tmp_path), task_of(loss)
    batch = data.collate([rows[0], rows[1]])
    scores = logprobs.forward(models.load_model(model), batch.trees)
    made = task.batch(batch, scores.logps)
    for name, value in vars(made).items():
        assert value.requires_grad == (not name.startswith("ref_") and not name.endswith("_tokens")), name


def test_stored_reference_log_probs_give_the_loss_of_a_live_reference(
    version: Version, model: str, other_model: str, tmp_path: Path
) -> None:
    """Policy and reference differ here; loss and gradient norm agree to 1e-5."""
    rows, task = rows_of(version, "dpo", tmp_path), task_of("dpo")
    batch = data.collate([rows[place] for place in range(60, 69)])
    policy, reference = models.load_model(other_model), models.load_model(model)

    def loss_and_norm(reference_sums: torch.Tensor | None) -> tuple[float, float]:
        policy.zero_grad()
        loss = step(policy, replace(batch, reference=reference_sums), task).losses.mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), math.inf)
        return float(loss.detach()), float(norm)

    with torch.no_grad():
        live = sum_scored(logprobs.forward(reference, batch.trees).logps, batch.scored).reshape(-1, 2)
    stored_loss, stored_norm = loss_and_norm(batch.reference)
    live_loss, live_norm = loss_and_norm(live)
    assert abs(stored_loss - math.log(2)) > 1e-2  # the two models do differ
    assert stored_loss == pytest.approx(live_loss, abs=1e-5)
    assert stored_norm == pytest.approx(live_norm, abs=1e-5 * max(1.0, live_norm))


def test_policy_equal_to_the_stored_reference_costs_ln2(version: Version, model: str, tmp_path: Path) -> None:
    rows = rows_of(version, "dpo", tmp_path)
    losses = step(models.load_model(model), data.collate([rows[place] for place in range(69)]), task_of("dpo")).losses
    assert_close(losses, torch.full((69,), math.log(2), dtype=torch.float64), atol=1e-6, rtol=0)


@LOSSES
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 8), (4, 2), (3, 3)])
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(
    version: Version, model: str, tmp_path: Path, loss: str, batch_size: int, accumulate: int
) -> None:
    """Rows differ in length and some are masked, so a mean of micro-batch means would differ. 9 rows cut 3 ways."""
    count = batch_size * accumulate

    def gradient(size: int, times: int) -> torch.Tensor:
        net, rows = models.load_model(model), rows_of(version, loss, tmp_path)
        arguments = run_arguments(tmp_path, size, times)
        loop = Loop(
            net,
            arguments,
            task=task_of(loss),
            train_rows=rows,
            test_rows=None,
            cadence=Cadence(log_every=1, eval_every=None, save_every=1),
        )
        batches = [
            data.collate([rows[60 + i] if i % 2 and 60 + i < 69 else rows[i] for i in range(at, at + size)])
            for at in range(0, count, size)
        ]
        items = loop._get_num_items_in_batch(batches, torch.device("cpu"))
        loop.current_gradient_accumulation_steps = times
        for batch in batches:
            loop.training_step(net, batch, items)  # type: ignore[arg-type]
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    cut, whole = gradient(batch_size, accumulate), gradient(count, 1)
    # 1e-6 is asked of entries near 0, or what float32 keeps beside entries above 1: losses differ in slope by orders
    assert_close(cut, whole, rtol=1e-4, atol=1e-6 * max(1.0, float(whole.abs().max())))


def run_arguments(folder: Path, batch_size: int, accumulate: int) -> Any:
    config = {"batch_size": batch_size, "accumulate": accumulate, "lr": 1e-3, "warmup": 0.0, "seed": 0}
    with (folder / "lock").open("w") as lock:
        return training._arguments(runs.Run(folder, config, False, lock), 1)


# -- a whole run ---------------------------------------------------------------------------------------------------


@LOSSES
def test_a_short_run_learns_and_leaves_a_model_that_loads(options: Options, model: str, loss: str) -> None:
    talk = Talk()
    # slower than the other tests: a quadratic loss shows rows learnt by heart as held-out margins that scatter
    result = train(replace(options, loss=loss, steps=30, lr=1e-3), say=talk)
    assert result.finished
    assert result.steps == 30
    assert not result.continued
    assert result.folder == Path(f"runs/v1-{loss}-1")
    assert result.after["loss"] < result.before["loss"]
    if loss != "sft":
        assert result.after["logps/accuracies"] >= result.before["logps/accuracies"]
    stored = Renderer.load(model).fingerprint
    assert differences(stored, Renderer.load(str(result.folder)).fingerprint) == []
    after = weights(result.folder)
    assert any(not torch.equal(value, after[name]) for name, value in weights(model).items())
    left = {path.name for path in result.folder.iterdir()}
    assert {"run.json", "model.safetensors", "config.json", "tensorboard"} <= left
    assert not any(name.startswith(("checkpoint", "training_args", ".rows")) for name in left)
    content = json.loads((result.folder / "run.json").read_text())
    assert content["status"] == "finished"
    assert content["config"]["loss"] == loss
    assert content["after"]["loss"] == result.after["loss"]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"temperature": 0.9, "top_p": 0.6}, 0.9), ({"temperature": 0.9, "num_beams": 1, "early_stopping": True}, None)],
)
def test_sampling_defaults_that_cannot_be_written_do_not_stop_a_run(
    options: Options, model: str, tmp_path: Path, settings: dict[str, Any], kept: float | None
) -> None:
    folder = tmp_path / "sampling"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    result = train(replace(options, model=str(folder), steps=1), say=Talk())
    written = json.loads((result.folder / "generation_config.json").read_text())
    assert written.get("temperature") == kept
    assert written["eos_token_id"]


def test_tensorboard_has_training_and_held_out_curves(options: Options) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(options, say=Talk())
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for name in (
        "loss",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "entropy",
        "mean_token_accuracy",
        "nll_loss",
    ):
        assert {f"train/{name}", f"eval/{name}"} <= tags
    assert events.Scalars("eval/loss")[-1].value == pytest.approx(result.after["loss"], rel=1e-5)


def test_the_logged_loss_of_a_step_is_that_of_its_rows(
    options: Options, version: Version, model: str, tmp_path: Path
) -> None:
    """At the first step the weights are the initial ones, so the log can be checked against one plain forward."""
    result = train(replace(options, loss="sft", steps=1), say=Talk())
    rows = rows_of(version, "sft", tmp_path)
    picked = list(data.EpochOrder(rows.lengths, 0, 8))[:8]
    outcome = step(models.load_model(model), data.collate([rows[place] for place in picked]), task_of("sft"))
    tokens = sum(rows[place].sides[0].tokens for place in picked)
    assert result.train["loss"] == pytest.approx(float(outcome.losses.detach().sum()) / tokens, rel=1e-5)
    assert result.train["nll_loss"] == pytest.approx(result.train["loss"], rel=1e-6)


def test_sft_reads_completions_too(model: str, options: Options, tmp_path: Path) -> None:
    version = publish(tmp_path / "c", {"train": table(completion_rows(20), "completions")}, model, kind="completions")
    talk = Talk()
    result = train(replace(options, data=version.url, loss="sft", steps=3), say=talk)
    assert result.finished
    assert result.after == {}
    assert "none held out" in talk.text
    assert "stores no reference log-probs" in talk.text


# -- going on ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean(options: Options) -> RunResult:
    """The same run without an interruption."""
    return train(replace(options, out="clean"), say=Talk())


def stop_after(step_number: int) -> Talk:
    """Ctrl-C while that step's line is printed."""
    return Talk(lambda line: os.kill(os.getpid(), signal.SIGINT) if line.startswith(f"step {step_number}/") else None)


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
    for name, value in weights(clean.folder).items():
        assert torch.equal(value, weights(finished.folder)[name]), name


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
        patch.setattr(training, "_save", lambda *_: os.kill(os.getpid(), signal.SIGINT))
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
        return training._config(asked, version, find("dpo"), {}, models.describe(model), renderer)

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


# -- what stops a run ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_row(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_forward = logprobs.forward
    calls = {"training": 0}

    def forward(net: Any, trees: Any, **asked: Any) -> Any:
        scores = true_forward(net, trees, **asked)
        calls["training"] += net.training
        if calls["training"] == 2 * 5 + 1:  # the first micro-batch of step 6
            broken = scores.logps[0] * float("nan")
            return replace(scores, logps=(broken, *scores.logps[1:]))
        return scores

    monkeypatch.setattr("prefdata.logprobs.forward", forward)
    with pytest.raises(NotFinite) as stopped:
        train(options, say=Talk())
    assert "the loss is not finite at step 6" in str(stopped.value)
    rows = data.load(find_version(options), "train", ReferencedPair, ".")
    picked = list(data.EpochOrder(rows.lengths, 0, 8))[40:44]
    assert f"row {rows[picked[0]].row_id}." in str(stopped.value)
    assert (Path("runs/v1-dpo-1") / "checkpoint-4" / "model.safetensors").exists()
    kept = weights("runs/v1-dpo-1/checkpoint-4")
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_a_last_step_that_ruins_the_model_is_no_finished_run(options: Options) -> None:
    with pytest.raises(NotFinite, match="the held-out loss is nan after step 1"):
        train(replace(options, steps=1, lr=1e38), say=Talk())
    assert json.loads(Path("runs/v1-dpo-1/run.json").read_text())["status"] == "begun"
    assert not list(Path("runs/v1-dpo-1").glob("checkpoint-*"))


def test_weights_ruined_by_the_very_last_update_are_never_saved(model: str, options: Options, tmp_path: Path) -> None:
    """No test rows, so nothing after that update looks at the model."""
    version = publish(tmp_path / "c", {"train": table(completion_rows(20), "completions")}, model, kind="completions")
    with pytest.raises(NotFinite, match="is not finite after step 1"):
        train(replace(options, data=version.url, loss="sft", steps=1, lr=1e39), say=Talk())
    folder = Path("runs/v1-sft-1")
    assert json.loads((folder / "run.json").read_text())["status"] == "begun"
    assert not list(folder.rglob("*.safetensors"))


def find_version(options: Options) -> Version:
    from prefdata import versions

    return versions.find(options.data)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * math.inf

    monkeypatch.setattr("trainers.loop.sum_scored", lambda logps, scored: Explodes.apply(sum_scored(logps, scored)))
    with pytest.raises(NotFinite, match="the gradient is not finite at step 1"):
        train(options, say=Talk())


def test_another_tokenizer_is_refused_and_leaves_no_run(options: Options, tmp_path: Path) -> None:
    foreign = save_model(tmp_path / "foreign", words=40)
    with pytest.raises(UserError, match="were not made with the tokenizer"):
        train(replace(options, model=foreign), say=Talk())
    assert not Path("runs").exists()


def test_another_template_is_refused_unless_it_is_asked_for(options: Options, model: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    chatty = save_model(tmp_path / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = (
        "{% for m in messages %}<s> {{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(chatty)
    with pytest.raises(UserError, match="the chat template is plain there"):
        train(replace(options, model=chatty), say=Talk())
    result = train(replace(options, model=chatty, chat_template="version", steps=1), say=Talk())
    assert differences(Renderer.load(model).fingerprint, Renderer.load(str(result.folder)).fingerprint) == []


def test_rows_longer_than_the_model_are_refused_and_leave_no_run(options: Options, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has positions for 12"):
        train(replace(options, model=save_model(tmp_path / "short", positions=12), chat_template="version"), say=Talk())
    assert not list(Path("runs").iterdir())


def test_a_model_that_is_gone_is_asked_for(version: Version, options: Options, tmp_path: Path) -> None:
    manifest = json.loads((Path(version.url) / "manifest.json").read_text())
    moved = tmp_path / "moved" / "v1"
    moved.mkdir(parents=True)
    for folder in ("train", "test"):
        (moved / folder).symlink_to(Path(version.url) / folder)
    manifest["reference"]["name"] = "gone/away/model"
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="made with a model that is not there now"):
        train(replace(options, data=str(moved)), say=Talk())


def test_a_model_with_other_weights_than_the_manifest_says_must_be_asked_for(
    version: Version, options: Options, tmp_path: Path
) -> None:
    moved = tmp_path / "moved" / "v1"
    moved.mkdir(parents=True)
    for folder in ("train", "test"):
        (moved / folder).symlink_to(Path(version.url) / folder)
    manifest = json.loads((Path(version.url) / "manifest.json").read_text())
    manifest["reference"]["digest"] = "0" * 64
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="with digest 000000000000"):
        train(replace(options, data=str(moved)), say=Talk())
    for loss in ("orpo", "sft"):  # they don't read it
        talk = Talk()
        assert train(replace(options, data=str(moved), loss=loss, steps=1), say=talk).finished
        [notice] = [line for line in talk if line.startswith("notice: ")]
        assert "with digest 000000000000" in notice
        assert f"--loss {loss} does not read that reference" in notice


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0, "steps": None}, "--epochs is 0"),
        ({"epochs": 2.0}, "--steps 12 and --epochs 2 both say how long the run is"),
        ({"lr": -1.0}, "--lr is -1"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"lr": math.nan}, "--lr is nan"),
        ({"warmup": -0.1}, "--warmup"),
        ({"dropout": 1.0}, "--dropout"),
        ({"loss": "rpo"}, "3 meanings"),
        ({"set": ("gamma=1",)}, "no knob called 'gamma'"),
        ({"data": "v99"}, "v99"),
        ({"model": "/no/such/model"}, "no such folder"),
    ],
)
def test_bad_options_are_one_sentence(options: Options, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        train(replace(options, **wrong), say=Talk())
    assert said in str(refused.value)
    assert not Path("runs").exists()


def test_an_ambiguous_loss_is_told_apart_in_one_message() -> None:
    with pytest.raises(UserError) as refused:
        find("RPO")
    assert str(refused.value) == (
        "--loss RPO has 3 meanings: Relative Preference Optimization (Yin et al. 2024) = relative_po; DPO with a likelihood"
        " term on chosen (IRPO, Llama 3.1) = dpo_nll; Reward-aware Preference Optimization (Nemotron-4). None of these is"
        f" offered yet; the losses there are: {', '.join(sorted(OBJECTIVES))}."
    )


def test_an_ambiguous_loss_says_which_of_its_meanings_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "dpo_nll", OBJECTIVES["dpo"])
    with pytest.raises(UserError, match=r"Of these there is dpo_nll; the losses there are: .*dpo_nll"):
        find("rpo")


def test_a_run_is_one_epoch_unless_its_length_is_said(options: Options) -> None:
    """69 rows in steps of 64."""
    wide = replace(options, batch_size=64, accumulate=1, steps=None)
    assert train(wide, say=Talk()).steps == 2
    assert train(replace(wide, epochs=1.0, out="same"), say=Talk()).steps == 2
    asked = [json.loads((Path(at) / "run.json").read_text())["config"] for at in ("runs/v1-dpo-1", "same")]
    assert asked[0] == asked[1]
    assert train(replace(wide, epochs=2.0), say=Talk()).steps == 4


# -- step 0 --------------------------------------------------------------------------------------------------------


def test_step_0_says_that_policy_and_reference_are_one(options: Options) -> None:
    talk = Talk()
    train(replace(options, steps=1), say=talk)
    said = next(line for line in talk if line.startswith("step 0: "))
    assert "the policy is the stored reference" in said
    assert "warning" not in said


def test_step_0_says_another_policy_and_trains_it(options: Options, other_model: str) -> None:
    talk = Talk()
    result = train(replace(options, steps=1, model=other_model), say=talk)
    said = next(line for line in talk if line.startswith("step 0: "))
    assert result.finished
    assert "is another model than the stored reference" in said
    assert "warning" not in said


def test_step_0_warns_when_the_same_weights_disagree(version: Version, model: str) -> None:
    rows = agreement.probe(version, "test", ("chosen", "rejected"))
    assert rows is not None
    net = models.load_model(model)

    def measured(shift: float) -> agreement.Agreement:
        shifted = rows
        for name in ("ref_chosen_token_logps", "ref_rejected_token_logps"):
            values = [[value - shift for value in row] for row in rows[name].to_pylist()]
            shifted = shifted.set_column(
                shifted.column_names.index(name), name, pa.array(values, pa.list_(pa.float32()))
            )
        return agreement.measure(
            net, shifted, ("chosen", "rejected"), same_model=True, dtype="float32", context=torch.no_grad()
        )

    assert not measured(0.0).suspicious
    assert measured(0.0).mean < 1e-5
    assert measured(0.01).suspicious
    assert measured(0.01).mean == pytest.approx(0.01, rel=1e-3)
    assert "warning" in measured(0.01).sentence({}, {})
    assert not replace(measured(0.01), same_model=False).suspicious


# -- precision and dropout -----------------------------------------------------------------------------------------


def test_bfloat16_stays_near_float32_and_keeps_float32_weights(options: Options, clean: RunResult) -> None:
    result = train(replace(options, dtype="bfloat16"), say=Talk())
    assert result.after["loss"] == pytest.approx(clean.after["loss"], abs=3e-2)
    assert all(value.dtype is torch.float32 for value in weights(result.folder).values())


def test_dropout_is_off_unless_asked_for(options: Options) -> None:
    same = [train(replace(options, steps=2, fresh=True), say=Talk()) for _ in range(2)]
    dropped = train(replace(options, steps=2, dropout=0.5), say=Talk())
    assert same[0].after == same[1].after
    assert same[0].train["entropy"] != dropped.train["entropy"]


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def command(options: Options) -> list[str]:
    return ["--data", options.data, "--lr", "3e-3", "--steps", "2", "--batch-size", "4", "--accumulate", "1"]


def test_the_command_line_trains_and_sums_up(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*command, "--loss", "orpo", "--set", "lam=0.2"]) == 0
    said = capsys.readouterr().out
    assert "done: 2 steps" in said
    assert "tensorboard --logdir runs/v1-orpo-1/tensorboard" in said
    content = json.loads(Path("runs/v1-orpo-1/run.json").read_text())
    assert content["config"]["knobs"] == {"lam": 0.2}


def test_a_refusal_is_one_sentence_on_stderr_and_exit_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*command, "--loss", "rpo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "3 meanings" in captured.err


def test_the_list_names_every_loss_with_what_it_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, objective in OBJECTIVES.items():
        block = next(part for part in said.split("\n\n") if part.startswith(f"{name}\n"))
        assert objective.batch.reads in block
        assert objective.source in block
        assert all(str(knob) in block for knob in objective.knobs.values())


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, trainers.run; trainers.run.parser().format_help(); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_and_command_line_agree_on_every_default() -> None:
    given = vars(run.parser().parse_args(["--data", "v1", "--loss", "sft"]))
    given.pop("list")
    assert Options(**{**given, "set": tuple(given["set"])}) == Options(data="v1", loss="sft")


def test_contract_columns_are_columns_of_the_schema() -> None:
    from schemas import pairs

    for objective in OBJECTIVES.values():
        assert set(objective.batch.columns) <= set(pairs.REFERENCE.names)
    assert contract.usable_losses("pairs", pairs.BASE.names) == sorted(
        name for name, one in OBJECTIVES.items() if not one.batch.columns and "pairs" in one.batch.sides
    )
    assert issubclass(ReferencedPair, Pair)
