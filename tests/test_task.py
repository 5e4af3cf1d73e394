"""Batches as contracts ask for them: groups, heads of sides, means over all processes and those that are remembered."""

from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefdata import logprobs, models
from prefdata.versions import Version
from tests.tiny_world import completion_rows, publish, save_model, table, with_reference
from tests.trainer_world import Talk, World, make_world, rows_of, stop_after, weights
from trainers import data, runs
from trainers.groups import Groups
from trainers.loss import Loss, Reading, Term, parse
from trainers.objectives import OBJECTIVES, Objective
from trainers.objectives.batch import PartialPair, Ranked, ReferencedPair, ReferencedRanked
from trainers.pools import DECAY, Pools
from trainers.run import train
from trainers.task import Measured, Task


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("task"), plain=20, masked=9, held_out=6)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Seven prompts with one to five completions each, in an order that mixes them."""
    folder = tmp_path_factory.mktemp("scored")
    model = save_model(folder / "model")
    rows = completion_rows(21)
    for number, row in enumerate(rows):
        group = (number * 5) % 7 if number < 19 else 7
        row |= {"prompt_id": f"p{group}", "prompt_ids": [3, 4 + group], "prompt_tokens": 2, "score": float(number % 4)}
        row["row_id"] = f"r{number:02d}"
    rows[19]["score"] = rows[20]["score"] = 1.0  # a prompt whose answers are all equally good
    return publish(
        folder / "data", {"train": with_reference(table(rows, "completions"), model)}, model, kind="completions"
    )


def loss_of(contract: type[Any], loss: Any, **facts: Any) -> Loss:
    """A loss for one test, in no registry."""
    objective = Objective("made", loss, contract, "here", facts.pop("reduction", "rows"), 1e-3, None)
    return Loss((Term(replace(objective, **facts), {}),))


# -- groups --------------------------------------------------------------------------------------------------------


def test_groups_hold_all_completions_of_a_prompt_that_rank_something(scored: Version, tmp_path: Path) -> None:
    rows = data.load(scored, "train", Reading.of("completions", Ranked), tmp_path)
    groups = Groups(rows)
    assert groups.left_out == 1
    expected: dict[str, list[tuple[float, list[int]]]] = {}
    for row in scored.table("train").to_pylist():
        expected.setdefault(row["prompt_id"], []).append((row["score"], row["completion_ids"]))
    del expected["p7"]
    found = [groups[place] for place in range(len(groups))]
    assert [
        [(score, side.ids.tolist()) for score, side in zip(row.values["score"], row.sides, strict=True)]
        for row in found
    ] == list(expected.values())
    assert groups.lengths.tolist() == [sum(len(row.prompt_ids) + len(side.ids) for side in row.sides) for row in found]


def test_a_batch_of_groups_is_padded_and_says_where(scored: Version, tmp_path: Path) -> None:
    loss = loss_of(ReferencedRanked, lambda lp: lp.completion.sum(1))
    groups = Groups(data.load(scored, "train", loss.reading("completions"), tmp_path))
    batch = data.collate([groups[place] for place in range(len(groups))])
    model = models.load_model(str(Path(scored.root).parent / "model"))
    made = Task(loss, "completions").batch(batch, Measured.of(batch, logprobs.forward(model, batch.trees).logps))
    assert isinstance(made, ReferencedRanked)
    sizes = made.present.sum(1).tolist()
    assert sizes == batch.counts
    assert made.completion.shape == (len(groups), max(sizes))
    assert torch.equal(made.completion_tokens[~made.present], torch.ones_like(made.completion_tokens[~made.present]))
    assert not made.completion[~made.present].detach().any()
    # the policy is the reference
    torch.testing.assert_close(made.completion, made.ref_completion, atol=1e-4, rtol=0)
    assert torch.equal(made.score[made.present], batch.values["score"])


# -- heads of sides ------------------------------------------------------------------------------------------------


def test_heads_are_the_first_scored_tokens_of_the_longer_side(world: World, tmp_path: Path) -> None:
    loss = loss_of(PartialPair, lambda lp: lp.chosen_head)
    rows = data.load(world.version, "train", loss.reading("pairs"), tmp_path)
    picked = [rows[place] for place in range(len(rows))]
    batch = data.collate(picked)
    model = models.load_model(world.model)
    logps = logprobs.forward(model, batch.trees).logps
    made = Task(loss, "pairs").batch(batch, Measured.of(batch, logps))
    assert isinstance(made, PartialPair)
    for place, row in enumerate(picked):
        fewest = min(side.tokens for side in row.sides)
        for number, name in enumerate(("chosen", "rejected")):
            side = row.sides[number]
            head = [token for token, kept in enumerate(side.scored) if kept][:fewest]
            own = logps[2 * place + number].detach().double()[head].sum()
            assert float(getattr(made, f"{name}_head")[place].detach()) == pytest.approx(float(own), abs=1e-5)
            assert side.token_reference is not None
            stored = side.token_reference[head].sum()
            assert float(getattr(made, f"ref_{name}_head")[place]) == pytest.approx(float(stored), abs=1e-4)


# -- means over all processes --------------------------------------------------------------------------------------


def moved(batch: Any) -> tuple[Tensor, Tensor]:
    ratio = batch.chosen.detach() - batch.ref_chosen
    return ratio.sum(), ratio.new_tensor(len(ratio))


@pytest.fixture
def centred(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    made = make_dataclass(
        "Centred",
        [("mean", Tensor)],
        bases=(ReferencedPair,),
        frozen=True,
        namespace={"pools": {"mean": moved}, "remembered": True},
    )

    def loss(lp: Any) -> Tensor:
        """Made for a test."""
        d = (lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected)
        return -torch.nn.functional.logsigmoid(0.1 * d) + 0.01 * (lp.chosen - lp.ref_chosen - 0.5 - lp.mean) ** 2

    loss.__name__ = "centred"
    monkeypatch.setitem(OBJECTIVES, "centred", Objective("centred", loss, made, "here", "rows", 1e-3, None))
    return made


def test_a_mean_is_over_the_rows_of_the_forward_and_has_no_gradient(
    centred: type[Any], world: World, tmp_path: Path
) -> None:
    task = Task(parse("centred", None, ()), "pairs")
    rows = rows_of(world.version, "centred", tmp_path)
    batch = data.collate([rows[place] for place in range(5)])
    shifted = replace(batch, reference=batch.reference - 1)  # type: ignore[operator]
    logps = logprobs.forward(models.load_model(world.model), batch.trees).logps
    made: Any = task.batch(shifted, Measured.of(shifted, logps))
    assert not made.mean.requires_grad
    assert float(made.mean) == pytest.approx(1.0, abs=1e-4)
    assert {field.name for field in fields(made)} >= {"mean", "ref_chosen"}


def test_remembered_means_move_in_training_alone_and_only_where_something_was_seen(centred: type[Any]) -> None:
    pools = Pools()
    one, none = torch.ones(1).double(), torch.zeros(1).double()
    with torch.no_grad():
        assert pools(centred, 4 * one, 2 * one).tolist() == [0.0]
    assert pools(centred, 4 * one, 2 * one).item() == pytest.approx((1 - DECAY) * 2)
    before = dict(pools.remembered)
    assert pools(centred, none, none).tolist() == list(before.values())
    assert pools.remembered == before
    again = Pools(**pools.state()["attributes"])
    assert again.remembered == before


def test_a_run_that_was_stopped_remembers(centred: type[Any], world: World, tmp_path: Path) -> None:
    options = replace(world.options, loss="centred")
    clean = train(replace(options, out=str(tmp_path / "clean")), say=Talk())
    stopped = train(replace(options, out=str(tmp_path / "stopped")), say=stop_after(5))
    assert not stopped.finished
    train(replace(options, out=str(tmp_path / "stopped")), say=Talk())
    for name, value in weights(clean.folder).items():
        assert torch.equal(value, weights(tmp_path / "stopped")[name]), name
    assert (runs.read(tmp_path / "stopped") or {})["status"] == "finished"


def test_measured_sums_are_those_of_scored_tokens(world: World, tmp_path: Path) -> None:
    rows = rows_of(world.version, "dpo", tmp_path)
    batch = data.collate([rows[place] for place in range(len(rows))])
    logps = [torch.randn(length).double() for tree in batch.trees for length in map(len, tree.branches)]
    sums = Measured.of(batch, logps).sums
    for place, (own, length) in enumerate(
        zip(logps, map(len, (b for t in batch.trees for b in t.branches)), strict=True)
    ):
        assert float(sums[place]) == pytest.approx(float(own[batch.scored[place, :length]].sum()))
