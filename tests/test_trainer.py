"""The loop around the losses: counts, batches, a whole run, step 0, precision. On a model of 20,000 parameters."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from prefdata import logprobs, models
from prefdata.tokens import Renderer, differences
from prefdata.versions import Version
from tests.loss_batches import policy_fields
from tests.tiny_models import save_tiny_model
from tests.tiny_world import completion_rows, pair_rows, publish, save_model, scored, table, with_reference
from tests.trainer_world import Talk, rows_of, task_of, weights
from trainers import agreement, data, policy, runs, schedule, steps
from trainers.loop import Loop, step
from trainers.loss import Reading, parse
from trainers.objectives import OBJECTIVES
from trainers.options import Options
from trainers.processes import Processes
from trainers.progress import Cadence
from trainers.run import train
from trainers.task import Measured, mean_tokens, sum_scored, summed_tokens

LOSSES = pytest.mark.parametrize(
    "loss",
    sorted(name for name, one in OBJECTIVES.items() if one.batch.head == "logits" and "pairs" in one.batch.sides),
)
# what a row's loss owes to its own row alone: neither to the rows beside it nor to a mean over them
ROWWISE = pytest.mark.parametrize(
    "loss",
    sorted(
        name
        for name, one in OBJECTIVES.items()
        if one.batch.head == "logits" and "pairs" in one.batch.sides and not one.across_rows and not one.batch.pools
    ),
)
# a whole run takes seconds, so of the losses on one contract one has it
RUNS = pytest.mark.parametrize(
    "loss",
    sorted(
        {
            "ipo",
            "ipo_mean",
            "orpo",
            *{
                one.batch: name
                for name, one in sorted(OBJECTIVES.items(), reverse=True)
                if one.batch.head == "logits" and "pairs" in one.batch.sides and name != "relative_po"
            }.values(),  # relative_po reads embeddings, which its own tests store
        }
    ),
)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same tokenizer, other weights."""
    return save_model(tmp_path_factory.mktemp("other") / "model", seed=1)


# -- rows and batches --------------------------------------------------------------------------------------------------


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
    rows = data.Rows(pieces, Reading(("chosen", "rejected"), {}))
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
    order = steps.EpochOrder(np.arange(50) % 7, seed=3, rows_per_step=8)
    first = list(order)
    assert sorted(first) == list(range(50))
    assert first != list(range(50))
    order.set_epoch(1)
    second = list(order)
    assert second != first
    assert sorted(second) == sorted(first)
    again = steps.EpochOrder(np.arange(50) % 7, seed=3, rows_per_step=8)
    again.set_epoch(1)
    assert list(again) == second
    assert list(steps.EpochOrder(np.arange(50) % 7, seed=4, rows_per_step=8)) != first


def test_lengths_reorder_a_step_but_never_move_rows_between_steps() -> None:
    def cut(lengths: Any) -> list[set[int]]:
        order = list(steps.EpochOrder(lengths, seed=0, rows_per_step=8))
        return [set(order[start : start + 8]) for start in range(0, 48, 8)]

    lengths = np.random.default_rng(0).integers(1, 99, 48)
    assert cut(lengths) == cut(np.ones(48, np.int64))
    order = list(steps.EpochOrder(lengths, seed=0, rows_per_step=8))
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


# -- the loss of a batch -----------------------------------------------------------------------------------------------


@ROWWISE
def test_padding_and_neighbours_change_no_row(version: Version, model: str, tmp_path: Path, loss: str) -> None:
    rows, net, task = rows_of(version, loss, tmp_path), models.load_model(model), task_of(loss)
    picked = [rows[place] for place in (0, 3, 61, 65)]
    whole = data.collate(picked)
    together = step(net, whole, task).losses
    of_step = mean_tokens(summed_tokens([whole], len(whole.names)))
    alone = [step(net, replace(data.collate([row]), step_tokens=of_step), task).losses for row in picked]
    assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@LOSSES
def test_only_the_policy_has_a_gradient(version: Version, model: str, tmp_path: Path, loss: str) -> None:
    rows, task = rows_of(version, loss, tmp_path), task_of(loss)
    batch = data.collate([rows[0], rows[1]])
    scores = logprobs.forward(models.load_model(model), batch.trees)
    made = task.batch(batch, Measured.of(batch, scores.logps))
    for name, value in vars(made).items():
        assert value.requires_grad == (name in policy_fields(made)), name


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


@pytest.fixture(scope="module")
def uneven(model: str, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Twelve pairs whose sides have from 1 to 45 scored tokens, some of them masked."""
    rows = scored(pair_rows(6, seed=5) + pair_rows(6, seed=6, masked=True))
    for number, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            times = 1 + (number * (1 if side == "chosen" else 5)) % 6
            row[f"{side}_ids"] = row[f"{side}_ids"] * times
            if f"{side}_loss_mask" in row:
                row[f"{side}_loss_mask"] = row[f"{side}_loss_mask"] * times
            row[f"{side}_tokens"] = sum(row.get(f"{side}_loss_mask", [True] * len(row[f"{side}_ids"])))
    pairs = with_reference(table(rows), model)
    return publish(tmp_path_factory.mktemp("uneven"), {"train": pairs}, model, reference_model=model)


def gradients(version: Version, model: str, loss: str, folder: Path, *cuts: list[int]) -> list[torch.Tensor]:
    """Of one step of 12 rows, each time cut into micro-batches of other sizes."""
    net, rows = models.load_model(model), rows_of(version, loss, folder)
    loop = Loop(
        net,
        run_arguments(folder, 12),
        task=task_of(loss),
        train_rows=rows,
        test_rows=None,
        cadence=Cadence(log_every=1, eval_every=None, save_every=1),
    )
    found = []
    for cut in cuts:
        ends = np.cumsum(cut).tolist()
        parts = [data.collate([rows[i] for i in range(end - size, end)]) for size, end in zip(cut, ends, strict=True)]
        one = steps.Step(tuple(parts))
        net.zero_grad()
        loop.training_step(net, one, loop._get_num_items_in_batch([one], torch.device("cpu")))
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return found


@ROWWISE
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(
    uneven: Version, model: str, tmp_path: Path, loss: str
) -> None:
    """A mean of micro-batch means would differ, be it over rows or over tokens."""
    cuts = [12], [6, 6], [5, 5, 2], [1] * 12, [11, 1]
    whole, *others = gradients(uneven, model, loss, tmp_path, *cuts)
    for cut, other in zip(cuts[1:], others, strict=True):
        assert float((other - whole).norm()) <= 1e-6 * float(whole.norm()), cut


@pytest.mark.parametrize(("loss", "counted"), [("sft", "tokens"), ("orpo", "rows")])
def test_a_step_is_divided_by_all_its_tokens_or_all_its_rows(
    uneven: Version, model: str, tmp_path: Path, loss: str, counted: str
) -> None:
    rows = rows_of(uneven, loss, tmp_path)
    count = len(rows) if counted == "rows" else sum(rows[place].sides[0].tokens for place in range(len(rows)))
    net = models.load_model(model)
    step(net, data.collate([rows[place] for place in range(12)]), task_of(loss)).losses.sum().backward()
    total = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    (found,) = gradients(uneven, model, loss, tmp_path, [7, 5])
    assert_close(found * count, total, rtol=1e-4, atol=1e-6 * count)


def run_arguments(folder: Path, batch_size: int) -> Any:
    config = {"batch_size": batch_size, "lr": 1e-3, "warmup": 0.0, "seed": 0}
    config["gradient_checkpointing"] = False
    return schedule.arguments(runs.Run(folder, config, False, None), 1, Processes())


# -- a whole run -------------------------------------------------------------------------------------------------------


@RUNS
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
        "logits/chosen",
        "logits/rejected",
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
    picked = list(steps.EpochOrder(rows.lengths, 0, 8))[:8]
    outcome = step(models.load_model(model), data.collate([rows[place] for place in picked]), task_of("sft"))
    tokens = sum(rows[place].sides[0].tokens for place in picked)
    assert result.train["loss"] == pytest.approx(float(outcome.losses.detach().sum()) / tokens, rel=1e-5)
    assert result.train["nll_loss"] == pytest.approx(result.train["loss"], rel=1e-6)


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_a_budget_of_tokens_cuts_the_same_steps(options: Options, loss: str, tmp_path: Path) -> None:
    by_rows = train(replace(options, loss=loss, out=str(tmp_path / "rows")), say=Talk())
    by_tokens = train(replace(options, loss=loss, batch_tokens=70, out=str(tmp_path / "tokens")), say=Talk())
    for name, value in weights(by_rows.folder).items():
        other = weights(by_tokens.folder)[name]
        assert float((value - other).norm()) <= 1e-6 * float(value.norm()), name
    assert by_tokens.after == pytest.approx(by_rows.after, rel=1e-5)


def test_sft_reads_completions_too(model: str, options: Options, tmp_path: Path) -> None:
    version = publish(tmp_path / "c", {"train": table(completion_rows(20), "completions")}, model, kind="completions")
    talk = Talk()
    result = train(replace(options, data=version.url, loss="sft", steps=3), say=talk)
    assert result.finished
    assert result.after == {}
    assert "none held out" in talk.text
    assert "stores no reference log-probs" in talk.text


# -- step 0 ------------------------------------------------------------------------------------------------------------


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


# -- dropout ---------------------------------------------------------------------------------------------


def probabilities(net: torch.nn.Module) -> list[float]:
    """Of every dropout, wherever it is kept."""
    kept = [module.p for module in net.modules() if isinstance(module, torch.nn.Dropout)]
    return kept + [module.attention_dropout for module in net.modules() if hasattr(module, "attention_dropout")]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("asked", [0.0, 0.5])
def test_dropout_is_what_was_asked_for_and_never_the_models_own(
    options: Options, tmp_path: Path, family: str, asked: float
) -> None:
    folder = save_tiny_model(tmp_path / "drops", family)
    config = json.loads((folder / "config.json").read_text())
    drops = {name: 0.3 for name in config if "pdrop" in name or "dropout" in name}
    assert drops
    (folder / "config.json").write_text(json.dumps(config | drops))
    plan: Any = SimpleNamespace(
        model=str(folder),
        options=replace(options, dropout=asked),
        config={"lora": None},
        loss=parse("dpo", None, ()),
        renderer=SimpleNamespace(end_ids=(2,)),
    )
    found = probabilities(policy.load(plan, Talk()))
    assert found
    assert set(found) == {asked}


def test_dropout_that_is_asked_for_drops(options: Options) -> None:
    plain, dropped = (train(replace(options, steps=1, dropout=p), say=Talk()) for p in (0.0, 0.5))
    assert plain.train["entropy"] != dropped.train["entropy"]
