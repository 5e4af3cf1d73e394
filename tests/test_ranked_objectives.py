"""Losses of rankings: identities, what padding and ties mean, and runs on stored scores."""

import math
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prefdata.errors import UserError
from prefdata.versions import Version
from tests.loss_batches import random_batch
from tests.scored_world import scored_rows
from tests.tiny_world import completion_rows, publish, save_model, table, with_reference
from tests.trainer_world import Talk
from trainers.contract import check
from trainers.loss import parse
from trainers.metrics import measure
from trainers.objectives import dpo, dpo_pl, find, rrhf
from trainers.objectives.batch import ReferencedPair, ReferencedRanked
from trainers.options import Options
from trainers.run import train

LOSSES: Any = pytest.mark.parametrize("loss", [rrhf, dpo_pl])


def ranked(logps: list[float], scores: list[float], *, tokens: int = 1, reference: float = 0.0) -> ReferencedRanked:
    """One prompt's completions."""
    rows = torch.tensor([logps], dtype=torch.float64)
    return ReferencedRanked(
        completion=rows,
        completion_tokens=torch.full_like(rows, tokens, dtype=torch.long),
        score=torch.tensor([scores], dtype=torch.float64),
        present=torch.ones_like(rows, dtype=torch.bool),
        ref_completion=torch.full_like(rows, reference),
    )


def of_group(lp: Any, change: Any) -> Any:
    """The batch with every (B, K) field changed."""
    return replace(lp, **{field.name: change(getattr(lp, field.name)) for field in fields(lp)})


def plackett_luce(u: list[float]) -> float:
    """Of log-ratios in the order of the ranking, from the definition."""
    return -sum(u[k] - math.log(sum(map(math.exp, u[k:]))) for k in range(len(u) - 1))


# -- rankings ------------------------------------------------------------------------------------------------------


@LOSSES
def test_the_order_in_which_completions_stand_changes_nothing(loss: Any) -> None:
    lp = random_batch(find(loss.__name__).batch)
    for order in permutations(range(4)):
        assert_close(loss(of_group(lp, lambda values, order=order: values[:, list(order)])), loss(lp))


@LOSSES
def test_further_absent_places_change_nothing(loss: Any) -> None:
    lp = random_batch(find(loss.__name__).batch)

    def wider(values: Tensor) -> Tensor:
        return torch.cat([values, torch.zeros_like(values[:, :2])], dim=1)

    padded = of_group(lp, wider)
    padded = replace(padded, completion_tokens=padded.completion_tokens.clamp(min=1))
    assert_close(loss(padded), loss(lp))
    ratio = padded.completion.clone().requires_grad_()
    loss(replace(padded, completion=ratio)).sum().backward()
    assert ratio.grad is not None
    assert not ratio.grad[~padded.present].any()


def test_a_ranking_in_order_costs_its_best_answers_likelihood() -> None:
    lp = ranked([-2.0, -4.0, -9.0], [3.0, 2.0, 1.0], tokens=2)
    assert_close(rrhf(lp), torch.tensor([2.0]).double())
    assert_close(rrhf(lp, nll="mean"), torch.tensor([1.0]).double())
    assert_close(rrhf(lp, nll_weight=0.0), torch.zeros(1).double())


def test_out_of_order_every_pair_of_means_counts() -> None:
    lp = ranked([-9.0, -4.0, -2.0], [3.0, 2.0, 1.0], tokens=2)
    assert_close(rrhf(lp, nll_weight=0.0), torch.tensor([(9 - 4) / 2 + (9 - 2) / 2 + (4 - 2) / 2]).double())
    two = ranked([-3.0, -1.0], [1.0, 0.0])
    assert_close(rrhf(two, nll_weight=0.0), torch.tensor([2.0]).double())


def test_equal_scores_make_no_term_and_share_the_likelihood() -> None:
    lp = ranked([-9.0, -1.0, -4.0], [1.0, 1.0, 0.0])
    assert_close(rrhf(lp, nll_weight=0.0), torch.tensor([9.0 - 4]).double())
    assert_close(rrhf(lp) - rrhf(lp, nll_weight=0.0), torch.tensor([5.0]).double())


# -- dpo_pl --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_where_policy_equals_reference_it_is_the_number_of_orders(count: int, beta: float) -> None:
    lp = ranked([-7.0] * count, list(range(count)), reference=-7.0)
    assert_close(dpo_pl(lp, beta=beta), torch.tensor([math.log(math.factorial(count))]).double())


def test_two_completions_are_dpo() -> None:
    one, zero = torch.ones(1), torch.zeros(1).double()
    pair = ReferencedPair(zero - 3, zero - 1, one, one, zero - 2.5, zero - 2)
    lp = replace(ranked([-1.0, -3.0], [0.0, 1.0]), ref_completion=torch.tensor([[-2.0, -2.5]]).double())
    assert_close(dpo_pl(lp, beta=0.3), dpo(pair, beta=0.3))


def test_it_is_plackett_luce_of_the_scores_order() -> None:
    u, scores = [0.3, -1.2, 2.0, 0.7], [2.0, 9.0, -1.0, 4.0]
    order = sorted(range(4), key=lambda place: -scores[place])
    expected = plackett_luce([0.5 * u[place] for place in order])
    assert dpo_pl(ranked(u, scores), beta=0.5).item() == pytest.approx(expected)


def test_a_constant_added_to_every_log_ratio_of_a_prompt_changes_nothing() -> None:
    lp = random_batch(ReferencedRanked)
    shift = torch.linspace(-50, 50, len(lp.completion), dtype=torch.float64)[:, None]
    assert_close(dpo_pl(replace(lp, ref_completion=lp.ref_completion + shift * lp.present)), dpo_pl(lp))


def test_completions_of_one_score_do_not_compete() -> None:
    high, low = [0.4, -0.7], 0.2
    lp = ranked([*high, low], [1.0, 1.0, 0.0])
    assert dpo_pl(lp, beta=1.0).item() == pytest.approx(sum(plackett_luce([u, low]) for u in high))


def test_probabilities_of_all_orders_add_up_to_1() -> None:
    u = [0.3, -1.2, 2.0]
    total = sum(math.exp(-dpo_pl(ranked(u, list(scores)), beta=0.7).item()) for scores in permutations([1.0, 2.0, 3.0]))
    assert total == pytest.approx(1.0)


# -- metrics, contracts, runs --------------------------------------------------------------------------------------


def test_metrics_are_of_every_two_that_differ_in_score() -> None:
    lp = ranked([-2.0, -5.0, -4.0], [3.0, 2.0, 1.0], tokens=2, reference=-3.0)
    means = measure(lp, find("dpo_pl"), {"beta": 0.1}).means()
    assert means["rewards/margins"] == pytest.approx(0.1 * (3 + 2 - 1) / 3)
    assert means["rewards/accuracies"] == pytest.approx(2 / 3)
    assert means["nll_loss"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    folder = tmp_path_factory.mktemp("ranked")
    model = save_model(folder / "model")
    rows = [row | {"score": row["score"] or 0.0} for row in scored_rows(16, seed=1)]
    rows = with_reference(table(rows, "completions"), model)
    return publish(folder, {"train": rows, "test": rows}, model, kind="completions", reference_model=model)


@LOSSES
def test_a_run_learns_the_scores_order(loss: Any, version: Version, tmp_path: Path) -> None:
    options = Options(
        data=version.url,
        loss=loss.__name__,
        lr=1e-2,
        steps=12,
        batch_size=8,
        accumulate=1,
        dtype="float32",
        set=("beta=1",) if loss is dpo_pl else ("nll=mean",),
        out=str(tmp_path / "run"),
    )
    result = train(options, say=Talk())
    assert result.after["loss"] < result.before["loss"] - 0.01
    assert result.after["logps/accuracies"] > 0.6


def test_what_ranks_nothing_is_refused_with_the_flow(model: str, tmp_path: Path) -> None:
    rows = table(completion_rows(3), "completions").drop_columns(["score"])
    unscored = publish(tmp_path, {"train": rows}, model, kind="completions")
    with pytest.raises(UserError, match="score_rewards v1"):
        check(unscored, parse("rrhf", None, ()))
    with pytest.raises(UserError, match="ref_completion_logps"):
        check(unscored, parse("dpo_pl", None, ()))
    alone = [row | {"score": 1.0} for row in completion_rows(3)]
    version = publish(tmp_path / "alone", {"train": table(alone, "completions")}, model, kind="completions")
    with pytest.raises(UserError, match="no train rows are left"):
        train(Options(data=version.url, loss="rrhf", steps=1, dtype="float32", out=str(tmp_path / "r")), say=Talk())
