"""What stops a run, before it begins and on its way: one sentence, and nothing lost."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefdata import logprobs, manifests
from prefdata.errors import UserError
from prefdata.tokens import Renderer, differences
from prefdata.versions import Version
from tests.tiny_world import completion_rows, publish, save_model, table
from tests.trainer_world import Talk, World, make_world, weights
from trainers import data
from trainers.loop import NotFinite, sum_scored
from trainers.objectives import OBJECTIVES, ReferencedPair, find
from trainers.options import Options
from trainers.run import train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def model(world: World) -> str:
    return world.model


@pytest.fixture(scope="module")
def version(world: World) -> Version:
    return world.version


@pytest.fixture
def options(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A run of a few steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return world.options


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
    (moved / "manifest.json").write_bytes(manifests.as_bytes(manifests.sealed(manifest)))
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
    (moved / "manifest.json").write_bytes(manifests.as_bytes(manifests.sealed(manifest)))
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
