"""Rejection sampling against its theorem, its limits, and the published variant; greedy baselines; unpaired labels."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.select import greedy, rejection, unpaired
from tests.test_select_paired import ANSWERS, Answer, table

P_REF = np.array([0.7, 0.2, 0.1])
REWARDS = np.array([0.0, 1.0, 2.0])


def draws_of(prompts: int, candidates: int, seed: int = 0) -> list[Answer]:
    """Candidates drawn from P_REF; which of the three an answer is says its tokens and its reward."""
    drawn = np.random.default_rng(seed).choice(3, size=(prompts, candidates), p=P_REF)
    return [(prompt, float(REWARDS[which]), int(which)) for prompt, row in enumerate(drawn) for which in row]


def shares(accepted: rejection.Accepted) -> np.ndarray[Any, Any]:
    return np.array([(accepted.rows["score"] == reward).sum() for reward in REWARDS], float)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_what_is_accepted_is_distributed_as_the_theorem_says(beta: float) -> None:
    prompts = 3000
    accepted = rejection.select(table(draws_of(prompts, 64)), "statistical", accept=1, beta=beta)
    target = P_REF * np.exp(REWARDS / beta)
    expected = prompts * target / target.sum()
    assert float(((shares(accepted) - expected) ** 2 / expected).sum()) < 13.8  # chi-square, 2 degrees, p = 0.001


def test_several_accepted_ones_are_distributed_so_too() -> None:
    """Without replacement, so of a pool that is large against what is taken; the best reward stays in the pool."""
    prompts, accept = 600, 4
    accepted = rejection.select(table(draws_of(prompts, 256)), "statistical", accept=accept, beta=1.0)
    target = P_REF * np.exp(REWARDS)
    found = shares(accepted) / (prompts * accept)
    assert np.abs(found - target / target.sum()).max() < 0.04  # 2 standard errors and the pool's bias


def test_how_many_were_tried_is_told() -> None:
    """With one to accept, the accepted share of what was tried is the mean of the chances."""
    prompts = 2000
    told = rejection.select(table(draws_of(prompts, 64)), "statistical", accept=1, beta=1.0).prompts
    expected = float((P_REF * np.exp(REWARDS - REWARDS.max())).sum())
    assert told["accepted"].sum() / told["tried"].sum() == pytest.approx(expected, rel=0.08)
    assert told["expected_rate"].mean() == pytest.approx(expected, rel=0.03)
    assert rejection.select(table(draws_of(5, 8)), "top_k", accept=3).prompts["tried"].to_list() == [8] * 5


def test_rewards_at_the_ends_of_the_numbers_overflow_nothing() -> None:
    rows: list[Answer] = [(0, 1.7e308, 0), (0, -1.7e308, 1), (0, 0.0, 2)]
    found = rejection.select(table(rows), "statistical", accept=1, beta=1e-3)
    assert found.rows["row_id"].to_list() == ["r0"]


def test_merging_equal_answers_draws_from_something_else() -> None:
    """The published routine scans distinct texts, so that the share of each in the proposal is lost."""
    prompts = 1000
    merged = rejection.select(table(draws_of(prompts, 64)), "statistical_merged", accept=1, beta=3.0)
    uniform = np.exp(REWARDS / 3.0) / np.exp(REWARDS / 3.0).sum()
    target = P_REF * np.exp(REWARDS / 3.0)
    found = shares(merged) / prompts
    assert abs(found[0] - (target / target.sum())[0]) > 0.2
    assert np.abs(found - uniform).max() < 0.25


def test_small_beta_is_top_k_and_large_beta_the_first_draws() -> None:
    rows: list[Answer] = [(prompt, float((place * 7) % 11), place % 6) for prompt in range(20) for place in range(11)]
    answers = table(rows)
    best = rejection.select(answers, "top_k", accept=4)
    for beta in (0.0, 1e-9):
        found = rejection.select(answers, "statistical", accept=4, beta=beta)
        assert set(found.rows["row_id"]) == set(best.rows["row_id"])
    loose = rejection.select(answers, "statistical", accept=4, beta=1e9)
    drawn = rejection.ranked(answers, 0, 0).sort("prompt_id", "draw").group_by("prompt_id").head(4)
    assert set(loose.rows["row_id"]) == set(drawn["row_id"])


def test_equal_rewards_accept_the_first_draws_at_once() -> None:
    rows: list[Answer] = [(0, 1.0, place) for place in range(6)]
    accepted = rejection.select(table(rows), "statistical", accept=3, beta=0.1)
    assert accepted.rows.height == 3
    assert accepted.prompts["expected_rate"].to_list() == [1.0]


def test_best_of_n_is_the_best_and_one() -> None:
    rows: list[Answer] = [(0, 1.0, 0), (0, 3.0, 1), (0, 2.0, 2), (1, 5.0, 3)]
    assert rejection.select(table(rows), "best_of_n", accept=9).rows["row_id"].to_list() == ["r1", "r3"]


@pytest.mark.parametrize("rule", rejection.RULES)
def test_too_few_candidates_are_a_shortfall_and_no_failure(rule: str) -> None:
    """The published loop fails on the maximum of nothing when there are fewer distinct texts than asked for."""

    @given(ANSWERS, st.integers(1, 6), st.sampled_from([0.0, 0.5, 5.0]))
    @settings(max_examples=30, deadline=None)
    def check(rows: list[Answer], accept: int, beta: float) -> None:
        answers = table(rows)
        accepted = rejection.select(answers, rule, accept=accept, beta=beta)
        assert sorted([*accepted.rows["row_id"], *accepted.aside["row_id"]]) == sorted(answers["row_id"])
        for told in accepted.prompts.to_dicts():
            own = accepted.rows.filter(pl.col("prompt_id") == told["prompt_id"])
            assert own.height == told["accepted"] <= accept
            assert told["shortfall"] == max(0, accept - own.height)
            assert 0 < told["expected_rate"] <= 1
            if rule == "statistical":
                assert own.height == min(accept, told["candidates"])
            if rule == "statistical_merged":
                assert own.height == min(accept, told["distinct"])

    check()


@pytest.mark.parametrize("rule", rejection.RULES)
def test_neither_order_nor_other_prompts_change_what_is_accepted(rule: str) -> None:
    answers = table(draws_of(30, 8))
    expected = rejection.select(answers, rule, accept=3, beta=1.0).rows
    shuffled = rejection.select(answers.sample(fraction=1.0, shuffle=True, seed=3), rule, accept=3, beta=1.0).rows
    assert sorted(expected.rows()) == sorted(shuffled.rows())
    alone = rejection.select(answers.filter(pl.col("prompt_id") == "p7"), rule, accept=3, beta=1.0).rows
    assert alone.rows() == expected.filter(pl.col("prompt_id") == "p7").rows()


def test_means_before_and_after_are_those_of_the_scores() -> None:
    told = rejection.select(table([(0, 1.0, 0), (0, 3.0, 1), (0, 5.0, 2)]), "top_k", accept=2).prompts.to_dicts()[0]
    assert (told["score_before"], told["score_after"], told["distinct"]) == (3.0, 4.0, 3)


# -- greedy baselines ----------------------------------------------------------------------------------------------


def with_greedy(rows: list[Answer], greedy_rows: set[int]) -> pl.DataFrame:
    return table(rows).with_columns(
        greedy=pl.Series([number in greedy_rows for number in range(len(rows))], dtype=pl.Boolean)
    )


def test_advantages_and_pairs_in_either_order() -> None:
    rows: list[Answer] = [(0, 2.0, 0), (0, 3.0, 1), (0, 0.5, 2), (0, 2.0, 3), (0, 5.0, 0), (1, 1.0, 4), (2, 1.0, 5)]
    rows += [(2, None, 6)]
    compared = greedy.compare(with_greedy(rows, {0, 6}), min_margin=1.5)
    assert dict(zip(compared.rows["row_id"], compared.rows["advantage"], strict=True)) == {
        "r1": 1.0,
        "r2": -1.5,
        "r3": 0.0,
        "r4": 3.0,
    }
    # r1 is too near, r3 is no better, r4 has the very tokens of the greedy answer
    assert compared.pairs.select("chosen", "rejected", "margin").rows() == [("r0", "r2", 1.5)]
    assert dict(zip(compared.aside["row_id"], compared.aside["reason"], strict=True)) == {
        "r5": "no_baseline",
        "r6": "no_sample",
        "r7": "no_score",
    }


def test_a_baseline_is_of_the_model_that_drew_the_sample() -> None:
    rows: list[Answer] = [(0, 1.0, 0), (0, 5.0, 1), (0, 2.0, 2), (0, 6.0, 3), (0, 3.0, 4)]
    models = pl.Series("generator", ["a", "b", "a", "b", "c"])
    compared = greedy.compare(with_greedy(rows, {0, 1}).with_columns(models))
    assert dict(zip(compared.rows["row_id"], compared.rows["advantage"], strict=True)) == {"r2": 1.0, "r3": 1.0}
    assert compared.aside.rows()[0][:2] == ("r4", "no_baseline")


@given(ANSWERS, st.sets(st.integers(0, 23)))
@settings(max_examples=60, deadline=None)
def test_a_constant_on_all_rewards_changes_no_advantage(rows: list[Answer], picked: set[int]) -> None:
    answers = with_greedy(rows, picked)
    one = greedy.compare(answers)
    other = greedy.compare(answers.with_columns(pl.col("score") + 7))
    assert one.rows["advantage"].to_list() == other.rows["advantage"].to_list()
    assert sorted([*one.rows["row_id"], *one.rows["baseline"].unique(), *one.aside["row_id"]]) == sorted(
        answers["row_id"]
    )
    assert (one.pairs["chosen_score"] > one.pairs["rejected_score"]).all()


# -- unpaired ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", unpaired.RULES)
def test_labels_follow_the_bar_and_every_answer_is_accounted_for(rule: str) -> None:
    @given(ANSWERS, st.sampled_from([0.0, 1.0]))
    @settings(max_examples=40, deadline=None)
    def check(rows: list[Answer], min_margin: float) -> None:
        answers = table(rows)
        labelled = unpaired.from_scores(answers, rule, threshold=1.5, min_margin=min_margin)
        assert sorted([*labelled.rows["row_id"], *labelled.aside["row_id"]]) == sorted(answers["row_id"])
        known = {row["row_id"]: row for row in answers.to_dicts()}
        for row in labelled.rows.to_dicts():
            own = known[row["row_id"]]
            scores = [
                each["score"]
                for each in known.values()
                if each["prompt_id"] == own["prompt_id"] and each["score"] is not None
            ]
            bar = {"threshold": 1.5, "mean": np.mean(scores), "median": np.median(scores)}[rule]
            assert row["label"] == (own["score"] > bar)
            assert abs(own["score"] - bar) >= min_margin - 1e-12

    check()


def test_an_answer_judged_both_ways_is_set_aside_on_both_sides() -> None:
    rows: list[Answer] = [(0, 9.0, 1), (0, 0.0, 1), (0, 9.0, 2), (0, 9.0, 2), (1, 0.0, 1)]
    labelled = unpaired.from_scores(table(rows), "threshold", threshold=5.0)
    assert labelled.rows.sort("row_id").rows() == [("r2", True), ("r4", False)]
    assert dict(zip(labelled.aside["row_id"], labelled.aside["reason"], strict=True)) == {
        "r0": "contradicted",
        "r1": "contradicted",
        "r3": "duplicate_answer",
    }
