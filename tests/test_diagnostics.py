"""What is logged beside the loss, against values worked out by hand."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from prefdata import logprobs, models
from tests.loss_batches import at_margin
from tests.trainer_world import World, rows_of, task_of
from trainers import loop
from trainers.data import collate
from trainers.loss import parse
from trainers.metrics import Tally, measure
from trainers.objectives import Batch, Objective, Pair, ReferencedPair, find
from trainers.objectives.batch import Judged, ReferencedRanked
from trainers.objectives.knobs import resolve
from trainers.task import Task

# a = +2, -1, +1, -3 and b = -4, -2, +3, +1 nats, so d = 6, 1, -2, -4
MOVED = ReferencedPair(
    chosen=torch.tensor([-4.0, -9.0, -3.0, -7.0]).double(),
    rejected=torch.tensor([-10.0, -6.0, -1.0, -1.5]).double(),
    chosen_tokens=torch.tensor([2, 1, 4, 3]),
    rejected_tokens=torch.tensor([4, 2, 1, 1]),
    ref_chosen=torch.tensor([-6.0, -8.0, -4.0, -4.0]).double(),
    ref_rejected=torch.tensor([-6.0, -4.0, -4.0, -2.5]).double(),
)


def metrics(batch: Batch, loss: str, *settings: str) -> dict[str, float]:
    """As logged with those knobs set."""
    objective = find(loss)
    return measure(batch, objective, resolve(loss, objective.knobs, settings)).means()


def test_how_far_both_sides_moved_and_where_to() -> None:
    means = metrics(MOVED, "dpo", "beta=1.5")
    assert means["logratios/chosen"] == pytest.approx((2 - 1 + 1 - 3) / 4)
    assert means["logratios/rejected"] == pytest.approx((-4 - 2 + 3 + 1) / 4)
    assert means["logratios/chosen_per_token"] == pytest.approx((1 - 1 + 0.25 - 1) / 4)
    assert means["logratios/rejected_per_token"] == pytest.approx((-1 - 1 + 3 + 1) / 4)
    # of -4, -2, 1, 3 a tenth lies below the point three tenths of the way from -4 to -2
    assert means["logratios/rejected_p10"] == pytest.approx(-3.4)
    assert means["logratios/rejected_per_token_p10"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("row", "name"), enumerate(["chosen_up_rejected_down", "both_down", "both_up", "chosen_down_rejected_up"])
)
def test_every_pair_is_in_the_quadrant_it_moved_to(row: int, name: str) -> None:
    alone = replace(MOVED, **{field.name: getattr(MOVED, field.name)[row : row + 1] for field in fields(MOVED)})
    shares = {each: value for each, value in metrics(alone, "dpo").items() if each.startswith("quadrants/")}
    assert {each for each, value in shares.items() if value} == {f"quadrants/{name}"}
    assert sum(metrics(MOVED, "dpo")[each] for each in shares) == 1


def test_saturation_is_that_of_the_scaled_margin() -> None:
    means = metrics(MOVED, "dpo", "beta=1.5")  # margins 9, 1.5, -3, -6
    assert means["saturation/beyond_6"] == 0.25  # -6 is not beyond it
    assert means["saturation/weightless"] == 0.25  # sigmoid(-9) alone is below 0.01
    assert means["saturation/weight"] == pytest.approx(sum(1 / (1 + math.exp(m)) for m in (9, 1.5, -3, -6)) / 4)
    assert not any(name.startswith("saturation/") for name in metrics(MOVED, "ipo", "tau=0.1"))


def test_a_reward_order_that_the_likelihoods_contradict_is_counted() -> None:
    # rewards prefer chosen in rows 0 and 1; sums of log-probs in row 0; means per token (-2, -2.5), (-9, -3), (-.75, -1),
    # (-2.33, -1.5) in rows 0 and 2
    means = metrics(MOVED, "dpo", "beta=0.1")
    assert means["orders/disagree"] == 0.25
    assert means["orders/disagree_per_token"] == 0.5
    assert means["logps/margin_per_token"] == pytest.approx((0.5 - 6 + 0.25 - 7 / 3 + 1.5) / 4)
    assert metrics(Pair(*(getattr(MOVED, name) for name in PAIR)), "simpo")["orders/disagree_per_token"] == 0


PAIR = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")


def test_nothing_moved_is_in_no_quadrant_and_no_disagreement() -> None:
    still = ReferencedPair(*(getattr(MOVED, name) for name in PAIR), MOVED.chosen, MOVED.rejected)
    means = metrics(still, "dpo")
    assert all(value == 0 for name, value in means.items() if name.startswith(("quadrants/", "logratios/", "orders/")))
    assert means["saturation/weight"] == 0.5


def test_metrics_of_a_ranking_are_those_of_its_ordered_pairs() -> None:
    """Of the first group all three pairs are ordered, of the second one; what is absent counts nowhere."""
    absent = 0.0
    group = ReferencedRanked(
        completion=torch.tensor([[-2.0, -6.0, -3.0], [-4.0, -1.0, absent]]).double(),
        completion_tokens=torch.tensor([[2, 3, 1], [1, 1, 1]]),
        score=torch.tensor([[3.0, 2.0, 1.0], [5.0, 7.0, 9.0]]).double(),
        present=torch.tensor([[True, True, True], [True, True, False]]),
        ref_completion=torch.tensor([[-3.0, -6.0, -2.0], [-4.0, -1.0, absent]]).double(),
    )
    objective = Objective("made up", lambda _: torch.zeros(2), ReferencedRanked, "none", "rows", 1e-6, None)
    means = measure(group, objective, {"beta": 2.0}).means()
    assert means["logps/accuracies"] == 1.0  # per token -1 > -2 > -3, and -1 > -4
    assert means["nll_loss"] == pytest.approx((2 + 1) / (2 + 1))
    assert means["logps/completion"] == pytest.approx(-16 / 5)
    assert means["groups/size"] == 2.5
    assert means["logratios/completion"] == 0.0  # +1, 0, -1 and twice 0
    assert means["rewards/margins"] == pytest.approx(2 * (1 + 2 + 1 + 0) / 4)
    assert means["rewards/accuracies"] == 0.75
    assert means["rewards/ties"] == 0.25


def test_judged_rows_are_told_by_class() -> None:
    judged = Judged(
        completion=torch.tensor([-4.0, -9.0, -3.0]).double(),
        completion_tokens=torch.tensor([2, 3, 1]),
        ref_completion=torch.tensor([-6.0, -3.0, -3.0]).double(),
        label=torch.tensor([True, False, True]),
        weight=torch.ones(3),
    )
    means = metrics(judged, "apo_zero_unpaired", "beta=0.5")
    assert means["logratios/chosen"] == 1.0
    assert means["logratios/rejected"] == -6.0
    assert means["logratios/chosen_per_token"] == 0.5
    assert means["logratios/rejected_per_token"] == -2.0
    assert means["rewards/margins"] == pytest.approx(0.5 * 7)
    assert means["logps/chosen_per_token"] == pytest.approx(-7 / 3)


def test_a_tally_joins_extremes_and_tails_as_if_all_had_come_at_once() -> None:
    one, other = Tally(), Tally()
    one.extreme("a_min", -1.0), other.extreme("a_min", -2.0)
    one.extreme("a_max", -1.0), other.extreme("a_max", -2.0)
    one.sample("p10", [0.0, 3.0]), other.sample("p10", [1.0, 2.0])
    assert Tally.joined([one, other]).means() == {"a_min": -2.0, "a_max": -1.0, "p10": pytest.approx(0.3)}
    other.extreme("a_min", math.nan), other.extreme("a_max", math.nan)
    assert math.isnan(Tally.joined([one, other]).means()["a_min"])
    assert math.isnan(Tally.joined([one, other]).means()["a_max"])


@pytest.mark.parametrize("name", ["cpo", "dpo_norm"])
def test_saturation_is_of_the_logit_that_the_loss_reads(name: str) -> None:
    """Sums of cpo, though it has no reference; means of dpo_norm, though it has one."""
    one = find(name)
    knobs = resolve(name, one.knobs, [])
    tokens = {"chosen_tokens": torch.tensor([100]), "rejected_tokens": torch.tensor([50])}
    lp = replace(at_margin(one.batch, -20.0, -35.0), **tokens)
    logit = knobs["beta"] * (15.0 if name == "cpo" else -20 / 100 + 35 / 50)
    means = measure(lp, one, knobs).means()
    assert means["rewards/margins"] == pytest.approx(logit)
    assert means["saturation/weight"] == pytest.approx(1 / (1 + math.exp(logit)))


def test_logits_are_means_over_the_vocabulary_and_the_scored_tokens_of_a_side(world: World, tmp_path: Path) -> None:
    rows = rows_of(world.version, "dpo", tmp_path)
    picked = [rows[place] for place in (0, 30, 65, 68)]  # masks are among the last
    model = models.load_model(world.model)
    means = loop.step(model, collate(picked), task_of("dpo")).tally.means()
    for place, name in enumerate(("chosen", "rejected")):
        levels = []
        for row in picked:
            side, start = row.sides[place], len(row.prompt_ids) - 1
            with torch.no_grad():
                logits = model(torch.tensor([[*row.prompt_ids, *side.ids]])).logits[0]
            levels += logits[start : start + len(side.ids)].mean(1)[torch.tensor(side.scored.copy())].tolist()
        assert means[f"logits/{name}"] == pytest.approx(sum(levels) / len(levels), abs=1e-6)


def test_the_first_term_that_has_a_metric_gives_it(world: World, tmp_path: Path) -> None:
    """Rewards of dpo and simpo are on two scales: a mean of both would be neither."""
    rows = collate([rows_of(world.version, "dpo", tmp_path)[place] for place in range(3)])
    model = models.load_model(world.model)
    both = loop.step(model, rows, Task(parse("dpo+simpo", None, ("dpo.beta=0.3",)), "pairs")).tally.means()
    alone = loop.step(model, rows, Task(parse("dpo", None, ("beta=0.3",)), "pairs")).tally.means()
    assert {name: both[name] for name in alone if name != "loss"} == {n: v for n, v in alone.items() if n != "loss"}
    assert "simpo/beyond_margin" in both


def test_the_least_likely_token_of_the_rejected_sides(world: World, tmp_path: Path) -> None:
    read = rows_of(world.version, "dpo", tmp_path)
    rows = collate([read[place] for place in range(len(read) - 5, len(read))])  # with masks
    model = models.load_model(world.model)
    means = loop.step(model, rows, task_of("dpo")).tally.means()
    logps = logprobs.forward(model, rows.trees).logps[1::2]
    expected = min(
        float(own.detach()[mask[: len(own)]].min()) for own, mask in zip(logps, rows.scored[1::2], strict=True)
    )
    assert means["logps/rejected_token_min"] == pytest.approx(expected, abs=1e-6)
