"""LoRA, precision and gradient checkpointing: what they must not change, and what a run with an adapter leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from prefdata import logprobs, models
from prefdata.errors import UserError
from prefdata.versions import Version
from tests.tiny_models import tiny_model
from tests.trainer_world import Talk, World, rows_of, stop_after, task_of, weights
from trainers import data, lora
from trainers.loop import step
from trainers.objectives import OBJECTIVES
from trainers.options import Options
from trainers.precision import autocast
from trainers.run import train

POLICY = {"name": "somewhere/policy", "commit": None}


@pytest.fixture
def options(options: Options) -> Options:
    return replace(options, lora_rank=4, lr=1e-2)


def attached(world: World, targets: str | list[str] = lora.ALL) -> torch.nn.Module:
    adapter = {"rank": 4, "alpha": 8.0, "targets": targets}
    made: torch.nn.Module = lora.attach(models.load_model(world.model), adapter, policy=POLICY, seed=0)
    return made


def logps(net: torch.nn.Module, version: Version, tmp_path: Path) -> torch.Tensor:
    rows = rows_of(version, "dpo", tmp_path)
    trees = data.collate([rows[place] for place in range(9)]).trees
    with torch.no_grad():
        return torch.cat(logprobs.forward(net.eval(), trees).logps)


# -- the adapter ---------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_no_log_prob(world: World, version: Version, tmp_path: Path) -> None:
    plain = logps(models.load_model(world.model), version, tmp_path)
    assert torch.equal(logps(attached(world), version, tmp_path), plain)


def test_only_the_adapter_has_gradients_and_its_draw_depends_on_the_seed_alone(world: World) -> None:
    torch.manual_seed(1)
    first, state = attached(world), torch.random.get_rng_state()
    torch.manual_seed(2)
    second = attached(world)
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())  # nor does it move the draws that come after
    trained = {name: value for name, value in first.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    for name, value in second.named_parameters():
        if value.requires_grad:
            assert torch.equal(value, trained[name])


def test_targets_are_the_named_layers_and_unknown_ones_are_refused_with_those_there_are(world: World) -> None:
    net = attached(world, ["q_proj", "v_proj"])
    touched = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in net.named_parameters() if "lora_" in name}
    assert touched == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match="--lora-targets query: the model has no such linear layer; it has down_proj, "):
        attached(world, ["q_proj", "query"])


def test_a_head_gets_an_adapter_unless_its_weights_are_the_embeddings_too(world: World) -> None:
    """Merged into a tied head it would change the embedding, and the saved model would be another."""
    assert "lm_head" not in {
        name.split(".lora_")[0].rpartition(".")[2] for name, _ in attached(world).named_parameters()
    }
    for named in ("lm_head", "q_proj,lm_head"):
        with pytest.raises(
            UserError, match="--lora-targets lm_head: the head's weights are those of the input embedding"
        ):
            attached(world, named.split(","))
    adapter = {"rank": 4, "alpha": 8.0, "targets": ["lm_head"]}
    untied = lora.attach(tiny_model("llama"), adapter, policy=POLICY, seed=0)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, p in untied.named_parameters() if p.requires_grad} == {
        "lm_head"
    }


def test_an_adapter_named_as_a_model_is_said_to_be_one(options: Options, world: World) -> None:
    adapter = train(replace(options, steps=1), say=Talk()).folder
    with pytest.raises(UserError) as refused:
        train(replace(options, model=str(adapter)), say=Talk())
    assert f"{adapter} holds a LoRA adapter of {world.model}" in str(refused.value)
    assert "train it with --merge" in str(refused.value)


def test_step_0_agrees_and_the_run_leaves_an_adapter_that_loads_with_what_it_learnt(
    options: Options, world: World, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    talk = Talk()
    result = train(options, say=talk)
    said = next(line for line in talk if line.startswith("step 0: the policy is the stored reference"))
    assert "warning" not in said
    assert any(line.startswith("LoRA of rank 4, alpha 8: ") for line in talk)
    assert result.after["loss"] < result.before["loss"]
    left = {path.name for path in result.folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= left
    assert not {"model.safetensors", "README.md"} & left
    settings = json.loads((result.folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == world.model
    tensors = load_file(result.folder / "adapter_model.safetensors")
    assert all("lora_" in name for name in tensors)
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(result.folder), dtype=torch.float32)
    learnt = task_loss(loaded, world, tmp_path)
    assert learnt == pytest.approx(result.after["loss"], abs=1e-5)


def test_merging_leaves_a_whole_model_equal_to_the_adapter_on_its_model(
    options: Options, world: World, tmp_path: Path
) -> None:
    from peft import PeftModel

    result = train(replace(options, merge=True), say=Talk())
    merged = models.load_model(str(result.folder))
    beside = PeftModel.from_pretrained(models.load_model(world.model), str(result.folder / lora.ADAPTER))
    assert_close(logps(merged, world.version, tmp_path), logps(beside, world.version, tmp_path), atol=1e-5, rtol=1e-5)
    assert task_loss(merged, world, tmp_path) == pytest.approx(result.after["loss"], abs=1e-5)
    assert not any(
        torch.equal(value, weights(world.model)[name])
        for name, value in weights(result.folder).items()
        if "q_proj" in name
    )


def test_early_stopping_keeps_the_best_adapter(options: Options, world: World, tmp_path: Path) -> None:
    hasty = replace(options, lr=1e-1, steps=30, eval_every=1, early_stop=2, merge=True)
    result = train(hasty, say=Talk())
    assert result.best_step is not None
    assert result.best_step < result.steps
    assert task_loss(models.load_model(str(result.folder)), world, tmp_path) == pytest.approx(
        result.after["loss"], abs=1e-4
    )


def task_loss(net: torch.nn.Module, world: World, tmp_path: Path) -> float:
    """The held-out loss, as one batch."""
    rows = rows_of(world.version, "dpo", tmp_path, "test")
    with torch.no_grad():
        losses = step(net.eval(), data.collate([rows[place] for place in range(len(rows))]), task_of("dpo")).losses
    return float(losses.mean())


def test_an_adapter_learns_ten_times_as_fast_unless_told_and_alpha_is_twice_the_rank(options: Options) -> None:
    train(replace(options, lr=None, steps=1), say=Talk())
    config = json.loads(Path("runs/v1-dpo-1/run.json").read_text())["config"]
    assert config["lr"] == pytest.approx(10 * OBJECTIVES["dpo"].lr)
    assert config["lora"] == {"rank": 4, "alpha": 8.0, "targets": "all-linear"}


def test_equal_targets_are_one_run_however_they_are_written(options: Options) -> None:
    stopped = train(replace(options, lora_targets="v_proj, q_proj"), say=stop_after(1))
    finished = train(replace(options, lora_targets="q_proj,v_proj"), say=Talk())
    assert finished.continued
    assert finished.folder == stopped.folder


def test_another_rank_is_another_run(options: Options) -> None:
    stopped = train(options, say=stop_after(1))
    assert train(replace(options, lora_rank=2, steps=1), say=Talk()).folder != stopped.folder


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lora_rank": 0}, "--lora-rank is 0"),
        ({"lora_alpha": -1.0}, "--lora-alpha is -1"),
        ({"lora_rank": None, "lora_alpha": 8.0}, "--lora-alpha is about a LoRA adapter"),
        ({"lora_rank": None, "merge": True}, "--merge is about a LoRA adapter"),
        ({"lora_targets": " , "}, "--lora-targets names no layer"),
        ({"lora_targets": "lm_head,nowhere"}, "--lora-targets nowhere: the model has no such linear layer"),
    ],
)
def test_an_adapter_that_makes_no_sense_is_one_sentence(options: Options, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        train(replace(options, **wrong), say=Talk())  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert not list(Path().rglob("run.json"))


# -- gradient checkpointing and bfloat16 ---------------------------------------------------------------------------


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("with_lora", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradient(
    world: World, version: Version, tmp_path: Path, bfloat16: bool, with_lora: bool
) -> None:
    rows = rows_of(version, "dpo", tmp_path)
    batch = data.collate([rows[place] for place in range(8)])

    def gradient(checkpointed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        net = attached(world) if with_lora else models.load_model(world.model)
        net.train()
        if checkpointed:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        with autocast(torch.device("cpu"), bfloat16):
            losses = step(net, batch, task_of("dpo")).losses
        assert losses.dtype == torch.float64  # sums and losses are wide, whatever the products are in
        losses.sum().backward()
        found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        assert all(value.dtype == torch.float32 for value in found.values())
        return losses.detach(), torch.cat([found[name].flatten() for name in sorted(found)])

    (loss, kept), (again, recomputed) = gradient(False), gradient(True)
    assert torch.equal(loss, again)
    assert torch.equal(kept, recomputed)
    assert bool(kept.any())


def test_a_run_with_gradient_checkpointing_ends_in_the_same_weights(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = replace(options, lora_rank=None, steps=4)
    plain = train(replace(full, out="plain"), say=Talk())
    recomputed: list[int] = []
    true_checkpoint = torch.utils.checkpoint.checkpoint

    def counted(*given: Any, **settings: Any) -> Any:
        recomputed.append(1)
        return true_checkpoint(*given, **settings)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    checkpointed = train(replace(full, out="checkpointed", gradient_checkpointing=True), say=Talk())
    assert len(recomputed) == 4 * 2 * 2  # steps, micro-batches, layers
    for name, value in weights(plain.folder).items():
        assert torch.equal(value, weights(checkpointed.folder)[name]), name


def test_bfloat16_is_near_float32_and_keeps_weights_and_moments_in_float32(options: Options) -> None:
    full = replace(options, lora_rank=None, lr=3e-3)
    clean = train(replace(full, out="clean"), say=Talk())
    half = replace(full, dtype="bfloat16", out="half")
    stopped = train(half, say=stop_after(4))
    (checkpoint,) = stopped.folder.glob("checkpoint-5")
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert {value["exp_avg"].dtype for value in moments.values()} == {torch.float32}
    result = train(half, say=Talk())
    assert result.after["loss"] == pytest.approx(clean.after["loss"], abs=3e-2)
    assert result.after["loss"] != clean.after["loss"]  # it was on
    assert all(value.dtype is torch.float32 for value in weights(result.folder).values())
