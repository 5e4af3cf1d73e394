"""The probe of held-out rows against what it says it is, worked out the long way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefdata import logprobs, models
from prefdata.logprobs import Tree
from prefdata.report import of_run, training
from tests.trainer_world import Talk, World, rows_of
from trainers import probe, runs, train
from trainers.options import Options
from trainers.probe import Probe
from trainers.steps import EpochOrder
from trainers.usage import Usage


@pytest.fixture(scope="module")
def model(world: World) -> Any:
    return models.load_model(world.model).eval()


@pytest.fixture
def few(world: World, tmp_path: Path) -> Probe:
    """Rows with masks among them: those are the last of the train rows."""
    return Probe.of(rows_of(world.version, "dpo", tmp_path), most=5)


def test_rows_are_spread_over_the_split_and_always_the_same(world: World, tmp_path: Path) -> None:
    rows = rows_of(world.version, "dpo", tmp_path)
    ids = [row.row_id for row in Probe.of(rows, most=3).rows]
    assert ids == [rows[place].row_id for place in (0, 34, 68)]
    assert len(Probe.of(rows, most=1000).rows) == len(rows)


def test_answers_are_scored_behind_their_own_prompt_and_behind_another(few: Probe, model: Any) -> None:
    own, foreign = [], []
    for row, other in zip(few.rows, (*few.rows[1:], few.rows[0]), strict=True):
        for found, side in ((own, row.sides[0]), (foreign, other.sides[0])):
            ((scores,),) = logprobs.score(model, [Tree(row.prompt_ids, [side.ids])])
            found.append(np.asarray(scores)[side.scored])
    assert any(not row.sides[0].scored.all() for row in few.rows)  # a mask is at work
    found = replace(few, longest=1000).dispersion(model)
    assert found["probe/unseen_per_token"] == pytest.approx(np.concatenate(own).mean(), abs=1e-5)
    assert found["probe/unrelated_per_token"] == pytest.approx(np.concatenate(foreign).mean(), abs=1e-5)
    assert 0 < found["probe/entropy"] < np.log(model.config.vocab_size)


def test_no_text_is_longer_than_the_longest_row(few: Probe, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = logprobs.forward

    def watched(model: Any, trees: Any, **options: Any) -> Any:
        seen.extend(len(tree.trunk) + len(branch) for tree in trees for branch in tree.branches)
        return forward(model, trees, **options)

    monkeypatch.setattr(logprobs, "forward", watched)
    few.dispersion(model)
    assert max(seen) <= few.longest
    assert "probe/unrelated_per_token" not in replace(few, rows=few.rows[:1]).dispersion(model)  # no other prompt


def test_gradients_are_those_of_two_backward_passes(few: Probe, model: Any) -> None:
    def gradient(side: int) -> torch.Tensor:
        trees = [Tree(row.prompt_ids, [row.sides[side].ids]) for row in few.rows]
        logps = logprobs.forward(model, trees).logps
        masks = [torch.from_numpy(np.array(row.sides[side].scored)) for row in few.rows]
        total = sum(own[mask].sum() for own, mask in zip(logps, masks, strict=True))
        return torch.cat([each.flatten() for each in torch.autograd.grad(total, list(model.parameters()))]).double()

    chosen, rejected = gradient(0), gradient(1)
    found = probe.gradients(model, few.rows)
    assert found["probe/gradient_chosen"] == pytest.approx(float(chosen.norm()), rel=1e-4)
    assert found["probe/gradient_ratio"] == pytest.approx(float(rejected.norm() / chosen.norm()), rel=1e-4)
    assert found["probe/displacement"] == pytest.approx(float((chosen @ rejected) / (chosen @ chosen)), rel=1e-3)
    assert all(weight.grad is None for weight in model.parameters())


def test_equal_sides_have_equal_gradients_and_displace_each_other_fully(few: Probe, model: Any) -> None:
    same = [replace(row, sides=(row.sides[0], row.sides[0])) for row in few.rows]
    found = probe.gradients(model, same)
    for name in ("gradient_ratio", "gradient_cosine", "displacement"):
        assert found[f"probe/{name}"] == pytest.approx(1, rel=1e-5)


def test_a_small_step_moves_chosen_as_far_as_the_gradients_say(few: Probe, world: World) -> None:
    """First order: a step of DPO from the reference moves chosen by lr beta / 2 (|G_w|^2 - <G_w, G_l>)."""
    model: Any = models.load_model(world.model).double().eval()
    trees = [Tree(row.prompt_ids, [side.ids for side in row.sides]) for row in few.rows]

    def sums() -> tuple[torch.Tensor, torch.Tensor]:
        logps = logprobs.forward(model, trees).logps
        own = [logps[place][torch.from_numpy(np.array(side.scored))].double().sum() for place, side in enumerate(sides)]
        return torch.stack(own[::2]), torch.stack(own[1::2])

    sides = [side for row in few.rows for side in row.sides]
    found = probe.gradients(model, few.rows)
    (chosen, rejected), beta, lr = sums(), 0.1, 1e-3
    torch.nn.functional.softplus(-beta * (chosen - chosen.detach() - rejected + rejected.detach())).sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= lr * weight.grad
        moved = float((sums()[0] - chosen).sum())
    expected = lr * beta / 2 * found["probe/gradient_chosen"] ** 2 * (1 - found["probe/displacement"])
    assert moved == pytest.approx(expected, rel=0.05)


def test_ches_is_that_of_the_last_hidden_states(few: Probe, model: Any) -> None:
    scores = []
    for row in few.rows:
        totals = []
        for side in row.sides:
            ids = torch.tensor([[*row.prompt_ids, *side.ids]])
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states[-1][0].double()
            start = len(row.prompt_ids) - 1
            totals.append(hidden[start : start + len(side.ids)][torch.from_numpy(np.array(side.scored))].sum(0))
        scores.append(float(totals[0] @ totals[1] - totals[0] @ totals[0]))
    assert probe.similarity(model, few.rows)["probe/ches"] == pytest.approx(np.mean(scores), rel=1e-4)
    same = [replace(row, sides=(row.sides[0], row.sides[0])) for row in few.rows]
    assert probe.similarity(model, same)["probe/ches"] == pytest.approx(0, abs=1e-3)


def test_repetition_counts_runs_that_came_before() -> None:
    assert probe.repeated([1, 2, 3, 4, 5, 6, 7]) == 0
    assert probe.repeated([1, 2, 3]) == 0
    assert probe.repeated([5] * 13) == pytest.approx(0.9)  # ten runs, one of a kind
    assert probe.repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_greedy_answers_are_those_of_the_likeliest_tokens(few: Probe, model: Any) -> None:
    before = model.generation_config
    answers = []
    for row in few.rows:
        ids = list(row.prompt_ids)
        ends = before.eos_token_id if isinstance(before.eos_token_id, list) else [before.eos_token_id]
        while len(ids) < len(row.prompt_ids) + probe.ANSWER_TOKENS and (
            len(ids) == len(row.prompt_ids) or ids[-1] not in ends
        ):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(row.prompt_ids) :])
    found = probe.repetition(model, few.rows)["probe/greedy_repetition"]
    assert found == pytest.approx(np.mean([probe.repeated(each) for each in answers]))
    assert model.generation_config is before


def test_a_run_logs_the_probe_its_costs_and_how_many_tokens_it_saw(
    options: Options, world: World, tmp_path: Path
) -> None:
    talk = Talk()
    result = train.train(replace(options, steps=3, epochs=None), say=talk)
    told = ("unseen_per_token", "unrelated_per_token", "entropy", "gradient_ratio", "displacement")
    for name in (*told, "ches", "greedy_repetition", "start_kl", "kl_to_start", "answer_tokens", "length_drift"):
        assert {f"probe/{name}"} <= result.before.keys() & result.after.keys()
    assert result.train["seconds_per_step"] > 0
    assert result.train["peak_memory_gib"] > 0.01
    rows = rows_of(world.version, "dpo", tmp_path)
    places = list(EpochOrder(rows.lengths, options.seed, 8))[:24]
    assert result.train["num_tokens"] == int(rows.lengths[places].sum())


def test_a_run_ends_with_the_warnings_that_its_report_shows(options: Options) -> None:
    talk = Talk()
    folder = train.train(replace(options, set=("beta=5",), lr=3e-2), say=talk).folder
    shown = training.check(runs.read(folder) or {}, of_run.read_curves(folder), {}).serious
    assert shown
    assert [line for line in talk if line.startswith(("warning: ", "error: "))] == [
        f"{alarm.level}: {alarm.title.lower()}: {alarm.found}. {alarm.advice}" for alarm in shown
    ]


def test_seconds_are_those_of_steps_alone() -> None:
    times = iter([0.0, 2.0, 50.0, 53.0])
    usage = Usage(clock=lambda: next(times))
    for _ in range(2):
        usage.on_step_begin(None, None, None)
        usage.on_step_end(None, None, None)
    assert usage.since()[0] == 2.5
    assert usage.since() == (0.0, 0)
