"""WPO: log sum p^2 against a slow loop, weights by hand, and that they only weigh, whatever the loss."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prefdata.errors import UserError
from prefdata.logprobs import Tree, forward, head, padded
from tests.tiny_models import VOCABULARY, tiny_model
from tests.trainer_world import Talk, make_world, weights
from trainers.data import Row, RowBatch, Side, collate
from trainers.loop import Outcome, step
from trainers.loss import parse
from trainers.objectives import OBJECTIVES, weighting
from trainers.run import train
from trainers.task import Task

WEIGHABLE = [one.name for one in OBJECTIVES.values() if one.weighable]
VALUES = {"chosen_score": 1.5, "rejected_score": 0.2, "preference": 0.7}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def rows(count: int = 5) -> list[Row]:
    """Pairs with a masked token on every other side, and a reference of no model."""
    rng = np.random.default_rng(1)

    def side() -> Side:
        ids = rng.integers(VOCABULARY, size=rng.integers(2, 6)).astype(np.int32)
        scored = np.ones(len(ids), np.bool_)
        scored[0] = rng.random() < 0.5
        reference = -3 * rng.random(len(ids)).astype(np.float32)
        return Side(ids, scored, int(scored.sum()), float(reference[scored].sum()), reference)

    prompts = [rng.integers(VOCABULARY, size=4).astype(np.int32) for _ in range(count)]
    return [
        Row(f"r{i}", prompt, (side(), side()), ("chosen", "rejected"), VALUES, False)
        for i, prompt in enumerate(prompts)
    ]


def run(model: Any, batch: RowBatch, loss: str, *settings: str) -> Outcome:
    return step(model, batch, Task(parse(loss, None, settings), "pairs"), extras=False)


def gradient(model: Any, losses: Tensor) -> Tensor:
    return torch.cat([each.flatten() for each in torch.autograd.grad(losses.sum(), list(model.parameters()))])


@torch.no_grad()
def slow_weights(model: Any, pairs: Sequence[Row]) -> Tensor:
    """Sequence by sequence, from the whole distribution in float64."""
    found = []
    for row in pairs:
        weight = 1.0
        for side in row.sides:
            ids = torch.from_numpy(np.concatenate([row.prompt_ids, side.ids])).long()
            probs = model(input_ids=ids[None]).logits[0].double().softmax(-1)[len(row.prompt_ids) - 1 : -1]
            kept = torch.from_numpy(side.scored)
            own = probs[torch.arange(len(side.ids)), torch.from_numpy(side.ids).long()]
            weight *= float((own / probs.square().sum(1))[kept].log().mean().exp())
        found.append(min(weight, 1.0))
    return torch.tensor(found, dtype=torch.float64)


# -- weights by hand -----------------------------------------------------------------------------------------------


def test_alignment_by_hand_leaves_out_what_is_not_scored() -> None:
    # two scored tokens of p = 1/2 and 1/8, drawn from distributions with sum p^2 = 1/4 and 1/2
    logps = torch.tensor([[0.5, 0.125, 0.9]], dtype=torch.float64).log()
    collisions = torch.tensor([[0.25, 0.5, 0.1]], dtype=torch.float64).log()
    found = weighting.aligned(logps, collisions, torch.tensor([[True, True, False]]))
    assert_close(found.exp(), torch.tensor([0.5**0.5], dtype=torch.float64))  # sqrt(2 x 1/4)


def test_the_product_is_clamped_and_not_each_side() -> None:
    chosen, rejected = torch.tensor([[2.0, 2.0, 0.5], [0.25, 3.0, 0.5]], dtype=torch.float64).log()
    assert_close(weighting.weights(chosen, rejected), torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64))


def test_a_certain_policy_weighs_every_pair_of_its_own_1() -> None:
    zero = torch.zeros(3, 4)
    log_w = weighting.aligned(zero, zero, torch.ones(3, 4, dtype=torch.bool))
    assert weighting.weights(log_w, log_w).tolist() == [1.0, 1.0, 1.0]


def test_a_uniform_policy_weighs_everything_1() -> None:
    # p = 1/V and sum p^2 = 1/V: what is improbable because everything is, counts in full
    uniform = tiny_model()
    torch.nn.init.zeros_(uniform.lm_head.weight)
    weights = run(uniform, collate(rows()), "dpo", "weighting=wpo").parts[0].weights
    assert_close(weights, torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


# -- log sum p^2 of the forwards -----------------------------------------------------------------------------------


TREES = [Tree([1, 2, 3], [[4, 5, 6], [4, 5, 7, 8], [9]]), Tree([7], [[1, 2], [3]])]


@pytest.mark.parametrize("forward_of", [forward, padded.forward], ids=["shared", "padded"])
@pytest.mark.parametrize("rows_at_once", [1, 2, 1000])
def test_collisions_equal_a_slow_loop(
    model: Any, forward_of: Any, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK_ROWS", rows_at_once)
    monkeypatch.setattr(padded, "_CHUNK_LOGITS", rows_at_once * VOCABULARY)
    found = forward_of(model, TREES, collisions=True)
    assert found.entropies is None
    assert found.hits is None
    paths = [(tree.trunk, branch) for tree in TREES for branch in tree.branches]
    for (trunk, branch), collisions in zip(paths, found.collisions, strict=True):
        assert not collisions.requires_grad
        logits = model(input_ids=torch.tensor([[*trunk, *branch]])).logits[0, len(trunk) - 1 : -1]
        assert_close(collisions.double(), logits.double().softmax(-1).square().sum(1).log(), atol=1e-5, rtol=1e-5)


def test_a_tree_gives_what_its_branches_give_alone(model: Any) -> None:
    together = forward(model, TREES, collisions=True).collisions
    alone = [
        forward(model, [Tree(tree.trunk, [branch])], collisions=True).collisions
        for tree in TREES
        for branch in tree.branches
    ]
    assert together is not None
    for one, other in zip(together, alone, strict=True):
        assert other is not None
        assert_close(one, other[0], atol=1e-5, rtol=1e-5)


def test_collisions_of_sharp_distributions_stay_finite() -> None:
    # one token has all but e^-30 of the probability, or two share it; p^2 of the third is 0 in float32
    hidden = torch.eye(2)
    weight = torch.tensor([[300.0, 200.0], [270.0, 200.0], [0.0, -100.0]])
    *_, collisions, _ = head.target_logps(
        hidden, weight, None, torch.tensor([0, 1]), torch.tensor([0, 0]), collisions=True
    )
    assert_close(collisions, torch.tensor([1.0, 0.5]).log(), atol=5e-5, rtol=0)  # a logit's own rounding


def test_what_is_not_asked_for_is_not_computed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for forward_file in (head, padded):
        monkeypatch.delattr(forward_file, "_collisions")
    assert forward(model, TREES, extras=True).collisions is None
    assert padded.forward(model, TREES, extras=True).collisions is None
    assert run(model, collate(rows()), "dpo").parts[0].weights is None


# -- every loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", WEIGHABLE)
def test_a_weighted_loss_is_the_loss_times_its_weight(model: Any, loss: str) -> None:
    pairs = rows()
    plain, weighted = run(model, collate(pairs), loss), run(model, collate(pairs), loss, "weighting=wpo")
    expected = slow_weights(model, pairs)
    assert 0 < expected.min() < expected.max() <= 1
    assert_close(weighted.parts[0].weights, expected, atol=1e-6, rtol=1e-4)
    assert_close(weighted.losses, plain.losses * expected, atol=1e-6, rtol=1e-4)
    # the weight has no gradient: a row's is that of its unweighted loss, times the weight
    found, theirs = gradient(model, weighted.losses), gradient(model, plain.losses * expected)
    assert float((found - theirs).norm()) <= 1e-4 * float(theirs.norm())
    means = weighted.tally.means()
    assert means["weight"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert all(np.isfinite(value) for value in means.values())


@pytest.mark.parametrize("loss", WEIGHABLE)
def test_micro_batches_add_up_to_the_whole(model: Any, loss: str) -> None:
    pairs = rows(6)
    whole = run(model, collate(pairs), loss, "weighting=wpo")
    # what a loss needs to know of its whole step, the loop tells it
    known = torch.stack([collate(pairs).side_tokens[:, side].double().mean() for side in (0, 1)])
    parts = []
    for places in (slice(0, 1), slice(1, 4), slice(4, 6)):
        batch = replace(collate(pairs[places]), step_tokens=known)
        parts.append(run(model, batch, loss, "weighting=wpo"))
    assert_close(torch.cat([part.losses for part in parts]), whole.losses, atol=1e-5, rtol=1e-5)
    total, theirs = gradient(model, whole.losses), sum(gradient(model, part.losses) for part in parts)
    assert float((total - theirs).norm()) <= 1e-4 * float(total.norm())


@pytest.mark.parametrize("loss", [name for name in OBJECTIVES if name not in WEIGHABLE])
def test_a_loss_that_cannot_weigh_its_rows_refuses_to(loss: str) -> None:
    with pytest.raises(UserError, match=f"--set weighting=wpo: {loss} has no knob called 'weighting'"):
        parse(loss, None, ["weighting=wpo"])


def test_which_losses_refuse() -> None:
    assert {"aot", "bco_pair", "relative_po", "reward", "kto", "sft", "rrhf", "dpo_pl"}.isdisjoint(WEIGHABLE)
    assert {"dpo", "ipo", "simpo", "orpo", "cpo", "odpo", "psi_po", "sppo", "ldpo", "dpo_nll_token"} <= set(WEIGHABLE)


def test_a_term_of_a_sum_is_weighted_alone(model: Any) -> None:
    loss = parse("dpo+sft", "1,0.5", ["weighting=wpo"])
    assert [term.weighting for term in loss.terms] == ["wpo", "none"]
    assert loss.knobs()["dpo"]["weighting"] == "wpo"
    assert "weighting" not in loss.knobs()["sft"]
    pairs = collate(rows())
    outcome = step(model, pairs, Task(loss, "pairs"), extras=False)
    dpo, sft = outcome.parts
    assert sft.weights is None
    assert_close(dpo.losses, run(model, pairs, "dpo", "weighting=wpo").losses)
    assert "weight/dpo" in outcome.tally.means()
    with pytest.raises(UserError, match=r"dpo and ipo both have a knob 'weighting'"):
        parse("dpo+ipo", None, ["weighting=wpo"])


def test_the_choice_is_checked_and_its_default_leaves_no_trace() -> None:
    with pytest.raises(UserError, match="dpo takes one of none, wpo for weighting"):
        parse("dpo", None, ["weighting=true"])
    assert parse("dpo", None, ["weighting=none"]).knobs() == parse("dpo", None, ()).knobs()
    assert parse("dpo", None, ["dpo.weighting=wpo", "beta=0.3"]).knobs()["beta"] == 0.3


def test_a_run_is_weighted_however_its_steps_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path, plain=16, held_out=4)
    monkeypatch.chdir(tmp_path)
    options = replace(world.options, steps=3, set=("weighting=wpo",))
    whole, cut, plain = (
        train(replace(options, batch_size=size, accumulate=8 // size, set=given), say=Talk())
        for size, given in ((8, options.set), (2, options.set), (8, ()))
    )
    assert 0 < whole.after["weight"] < 1
    assert whole.after["loss"] == pytest.approx(cut.after["loss"], rel=1e-4)
    assert whole.before["loss"] < plain.before["loss"]
    for name, weight in weights(whole.folder).items():
        assert_close(weight, weights(cut.folder)[name], atol=1e-5, rtol=1e-4)
