"""What stops a run, before it begins and on its way: one sentence, and nothing lost."""

import errno
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefdata import logprobs, manifests
from prefdata.errors import UserError
from prefdata.tokens import Renderer, differences
from prefdata.versions import Version
from tests.tiny_models import save_llama
from tests.tiny_world import completion_rows, publish, save_model, table
from tests.trainer_world import Talk, weights
from trainers import data, steps
from trainers.loop import NotFinite
from trainers.loss import Reading
from trainers.objectives import OBJECTIVES, ReferencedPair, find
from trainers.options import Options
from trainers.run import train
from trainers.task import _summed


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
    rows = data.load(find_version(options), "train", Reading.of("pairs", ReferencedPair), ".")
    picked = list(steps.EpochOrder(rows.lengths, 0, 8))[40:44]
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

    monkeypatch.setattr("trainers.task._summed", lambda values, kept: Explodes.apply(_summed(values, kept)))
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


def test_token_ids_beyond_the_embeddings_are_refused_and_leave_no_run(
    options: Options, model: str, tmp_path: Path
) -> None:
    few = Path(shutil.copytree(model, tmp_path / "few"))
    save_llama(few, vocabulary=40, positions=64)
    with pytest.raises(UserError, match=r"holds token id 62, and .*few has embeddings for ids below 40"):
        train(replace(options, model=str(few)), say=Talk())
    assert not list(Path("runs").iterdir())


def test_a_warm_up_longer_than_the_epochs_is_refused_and_leaves_no_run(options: Options) -> None:
    """69 rows in steps of 64: how many steps there are is known once the rows are."""
    with pytest.raises(UserError, match="--warmup is 2 steps and the run has 2: "):
        train(replace(options, batch_size=64, accumulate=1, steps=None, warmup=2), say=Talk())
    assert not list(Path("runs").iterdir())


def test_a_folder_of_the_user_stays_when_nothing_was_trained(options: Options, tmp_path: Path) -> None:
    short = save_model(tmp_path / "short", positions=12)
    Path("mine").mkdir()
    for out in ("mine", "new"):
        with pytest.raises(UserError, match="has positions for 12"):
            train(replace(options, model=short, chat_template="version", out=out), say=Talk())
    assert list(Path("mine").iterdir()) == []
    assert not Path("new").exists()


def test_a_full_disk_is_one_sentence_and_leaves_no_run(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainers.data.tempfile.mkstemp", full)
    with pytest.raises(UserError, match="stopped by the machine: no space left on device"):
        train(options, say=Talk())
    assert not list(Path("runs").iterdir())


def scored(model: str, folder: Path, scores: list[float | None]) -> Version:
    rows = [row | {"score": score} for row, score in zip(completion_rows(len(scores)), scores, strict=True)]
    return publish(folder, {"train": table(rows, "completions")}, model, kind="completions")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([-19.0, None, 0.0, -3.5], "scores from -19 to 0, and --loss sft imitates all of them alike"),
        ([1.0, 1.0, None, 1.0], None),
        ([None] * 4, None),
    ],
)
def test_imitating_good_and_bad_answers_alike_is_said(
    options: Options, model: str, tmp_path: Path, scores: list[float | None], said: str | None
) -> None:
    version, talk = scored(model, tmp_path / "scored", scores), Talk()
    train(replace(options, data=version.url, loss="sft", steps=1), say=talk)
    notices = [line for line in talk if line.startswith("notice: ")]
    assert len(notices) == (said is not None)
    if said:
        assert notices[0].startswith(f"notice: the train rows of v1 carry {said}")
        assert talk.index(notices[0]) < next(place for place, line in enumerate(talk) if line.startswith("new run"))


def test_a_model_that_is_gone_is_asked_for(version: Version, options: Options, tmp_path: Path) -> None:
    manifest = json.loads((Path(version.url) / "manifest.json").read_text())
    moved = tmp_path / "moved" / "v1"
    moved.mkdir(parents=True)
    for folder in ("train", "test"):
        (moved / folder).symlink_to(Path(version.url) / folder)
    manifest["reference"]["name"] = "gone/away/model"
    (moved / "manifest.json").write_bytes(manifests.as_bytes(manifests.sealed(manifest)))
    with pytest.raises(UserError, match="made with a model that is not there now"):
        train(replace(options, data=str(moved)), say=Talk())


@pytest.mark.parametrize(("key", "what"), [("digest", "digest"), ("config_digest", "settings of digest")])
def test_a_model_with_other_weights_or_settings_than_the_manifest_says_must_be_asked_for(
    version: Version, options: Options, tmp_path: Path, key: str, what: str
) -> None:
    moved = tmp_path / "moved" / "v1"
    moved.mkdir(parents=True)
    for folder in ("train", "test"):
        (moved / folder).symlink_to(Path(version.url) / folder)
    manifest = json.loads((Path(version.url) / "manifest.json").read_text())
    manifest["reference"][key] = "0" * 64
    (moved / "manifest.json").write_bytes(manifests.as_bytes(manifests.sealed(manifest)))
    with pytest.raises(UserError, match=f"with {what} 000000000000"):
        train(replace(options, data=str(moved)), say=Talk())
    for loss in ("orpo", "sft"):  # they don't read it
        talk = Talk()
        assert train(replace(options, data=str(moved), loss=loss, steps=1), say=talk).finished
        [notice] = [line for line in talk if line.startswith("notice: ")]
        assert f"with {what} 000000000000" in notice
        assert f"--loss {loss} does not read that reference" in notice


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0, "steps": None}, "--epochs is 0"),
        ({"epochs": 2.0}, "--steps 12 and --epochs 2 both say how long the run is"),
        ({"lr": -1.0}, "--lr is -1"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"lr": math.nan}, "--lr is nan"),
        (
            {"warmup": -0.1},
            "--warmup is -0.1; it must be a share of the steps (at least 0, below 1), or a whole number",
        ),
        ({"warmup": 2.5}, "--warmup is 2.5; it must be a share of the steps"),
        ({"warmup": 12}, "--warmup is 12 steps and the run has 12: "),
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
        " term on chosen (IRPO, Llama 3.1) = dpo_nll; Reward-aware Preference Optimization (Nemotron-4). Of these there"
        f" is relative_po and dpo_nll; the losses there are: {', '.join(sorted(OBJECTIVES))}."
    )


def test_an_ambiguous_loss_says_which_of_its_meanings_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OBJECTIVES, "relative_po")
    with pytest.raises(UserError, match=r"Of these there is dpo_nll; the losses there are: .*dpo_nll"):
        find("rpo")
    monkeypatch.delitem(OBJECTIVES, "dpo_nll")
    with pytest.raises(UserError, match=r"None of these is offered yet; the losses there are: .*dpo"):
        find("rpo")


def test_a_run_is_one_epoch_unless_its_length_is_said(options: Options) -> None:
    """69 rows in steps of 64."""
    wide = replace(options, batch_size=64, accumulate=1, steps=None)
    assert train(wide, say=Talk()).steps == 2
    assert train(replace(wide, epochs=1.0, out="same"), say=Talk()).steps == 2
    asked = [json.loads((Path(at) / "run.json").read_text())["config"] for at in ("runs/v1-dpo-1", "same")]
    assert asked[0] == asked[1]
    assert train(replace(wide, epochs=2.0), say=Talk()).steps == 4
