"""--loss reward: Bradley-Terry's identities, and a run that leaves a reward model."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from prefdata.errors import UserError
from prefdata.logprobs import Tree, rewards
from prefdata.scorers import reward_model
from tests.trainer_world import Talk, World, make_world, rows_of, stop_after, task_of
from trainers import data
from trainers.loop import idle, step
from trainers.metrics import measure
from trainers.objectives import find, reward
from trainers.objectives.batch import RewardPair
from trainers.options import Options
from trainers.run import train

LN2 = math.log(2)


def scored(chosen: list[float], rejected: list[float], margin: float = 0.0, tokens: int = 3) -> RewardPair:
    count = torch.full((len(chosen),), tokens)
    double = torch.double
    return RewardPair(
        torch.tensor(chosen, dtype=double),
        torch.tensor(rejected, dtype=double),
        count,
        count,
        torch.full((len(chosen),), margin, dtype=double),
    )


def test_equal_scores_give_ln2_and_with_a_margin_its_softplus() -> None:
    assert_close(reward(scored([1.5], [1.5])), torch.tensor([LN2]).double())
    expected = torch.tensor([math.log1p(math.exp(0.5 * 2.0))]).double()
    assert_close(reward(scored([1.5], [1.5], margin=2.0), margin_scale=0.5), expected)
    assert_close(reward(scored([1.5], [1.5], margin=-2.0), margin_scale=0.5), torch.tensor([LN2]).double())


def test_a_constant_on_both_scores_changes_the_centring_term_alone() -> None:
    lp = scored([1.0, -2.0], [0.3, 0.4])
    moved = replace(lp, chosen=lp.chosen + 5, rejected=lp.rejected + 5)
    assert_close(reward(moved), reward(lp))
    c = 0.01
    term = c * ((moved.chosen + moved.rejected) ** 2 - (lp.chosen + lp.rejected) ** 2)
    assert_close(reward(moved, centring=c) - reward(lp, centring=c), term)


def test_swapping_a_pair_adds_its_difference() -> None:
    lp = scored([1.0, -2.0], [0.3, 0.4])
    swapped = replace(lp, chosen=lp.rejected, rejected=lp.chosen)
    assert_close(reward(swapped) - reward(lp), lp.chosen - lp.rejected)


def test_diagnostics_say_calibration_and_what_length_alone_would_give() -> None:
    lp = scored([2.0, 0.0, 1.0], [0.0, 1.0, 0.5])
    lp = replace(lp, chosen_tokens=torch.tensor([5, 5, 2]))
    means = measure(lp, find("reward"), {}).means()
    assert means["rewards/accuracies"] == pytest.approx(2 / 3)
    assert means["reward/confidence"] == pytest.approx(float((lp.chosen - lp.rejected).sigmoid().mean()))
    assert means["reward/right_where_chosen_longer"] / means["reward/chosen_longer"] == pytest.approx(1 / 2)
    assert means["reward/right_where_chosen_shorter"] / means["reward/chosen_shorter"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("rewards"), plain=40, masked=0, held_out=10)


@pytest.fixture
def options(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.chdir(tmp_path)
    return replace(world.options, loss="reward")


def test_a_run_leaves_a_model_with_one_score_that_ranks_what_it_saw(options: Options, world: World) -> None:
    talk = Talk()
    result = train(replace(options, steps=30), say=talk)
    assert result.finished
    assert "step 0:" not in talk.text
    model: Any = reward_model.load(str(result.folder))
    rows = rows_of(world.version, "reward", Path())
    batch = data.collate([rows[place] for place in range(len(rows))])
    with torch.no_grad():
        scores = rewards(model, batch.trees).reshape(-1, 2)
    assert float((scores[:, 0] > scores[:, 1]).float().mean()) > 0.9
    assert result.train["rewards/accuracies"] > 0.9


def test_a_stopped_run_ends_in_the_same_weights(options: Options, tmp_path: Path) -> None:
    clean = train(replace(options, out=str(tmp_path / "clean")), say=Talk())
    train(replace(options, out=str(tmp_path / "stopped")), say=stop_after(5))
    train(replace(options, out=str(tmp_path / "stopped")), say=Talk())
    one, other = (reward_model.load(str(folder)).state_dict() for folder in (clean.folder, tmp_path / "stopped"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_adapter_brings_its_head(options: Options) -> None:
    result = train(replace(options, lora_rank=2, merge=True, steps=6), say=Talk())
    merged: Any = reward_model.load(str(result.folder))
    fresh: Any = reward_model.load(options.model or world_model(options), fresh_head_seed=options.seed)
    assert not torch.equal(merged.score.weight, fresh.score.weight)


def world_model(options: Options) -> str:
    from prefdata import versions

    return str(versions.find(options.data).manifest["tokenizer"]["name"])


def test_how_a_step_is_cut_changes_nothing_and_an_idle_process_adds_nothing(world: World) -> None:
    model: Any = reward_model.load(world.model, fresh_head_seed=0)
    rows, task = rows_of(world.version, "reward", Path()), task_of("reward")
    batch = data.collate([rows[place] for place in range(6)])
    together = step(model, batch, task).losses
    alone = torch.cat([step(model, data.collate([rows[place]]), task).losses for place in range(6)])
    assert_close(together, alone)
    assert float(idle(model, task).detach()) == 0


def test_it_makes_no_sum_with_a_loss_of_log_probs() -> None:
    from trainers.loss import parse

    with pytest.raises(UserError, match="no row serves all of its terms"):
        parse("reward+dpo", None, ())


def test_a_fresh_head_does_not_disturb_other_draws(world: World) -> None:
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    reward_model.load(world.model, fresh_head_seed=0)
    assert torch.equal(torch.rand(1), before)
    assert rewards(reward_model.load(world.model, fresh_head_seed=0), [Tree([1], [[2]])]).shape == (1,)
