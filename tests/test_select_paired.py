"""Pairs from scored completions: each rule against a slow one written out, and what holds for all of them."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import draws
from prefdata.select.answers import SCHEMA
from prefdata.select.paired import RULES, Selected, select

EVERY = pytest.mark.parametrize("rule", RULES)
Answer = tuple[int, float | None, int]  # prompt, score, which tokens


def table(rows: list[Answer]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row_id": [f"r{number}" for number in range(len(rows))],
            "prompt_id": [f"p{prompt}" for prompt, _, _ in rows],
            "score": [score for _, score, _ in rows],
            "tokens": [1 + tokens for _, _, tokens in rows],
            "answer": [bytes([tokens]) for _, _, tokens in rows],
            "greedy": [False] * len(rows),
            "generator": [None] * len(rows),
            "reference": [None] * len(rows),
        },
        schema=SCHEMA,
    )


ANSWERS = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 3).map(float)), st.integers(0, 5)), max_size=24
)


def facts(answers: pl.DataFrame) -> dict[str, dict[str, Any]]:
    drawn = draws.uniform(0, answers["row_id"].to_list(), "select")
    return {row["row_id"]: {**row, "draw": draw} for row, draw in zip(answers.to_dicts(), drawn, strict=True)}


def by_prompt(answers: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The scored answers of each prompt, the best first; of equal scores the lower draw."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in facts(answers).values():
        if row["score"] is not None:
            groups[row["prompt_id"]].append(row)
    return {name: sorted(rows, key=lambda row: (-row["score"], row["draw"])) for name, rows in groups.items()}


def by_draw(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["draw"])


def slow_max_min(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [(rows[n], rows[-1 - n]) for n in range(len(rows) // 2)]


def slow_max_random_lower(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [(rows[0], other) for other in by_draw(rows) if other["score"] < rows[0]["score"]]


def slow_best_random_rest(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [(rows[0], other) for other in by_draw(rows[1:])]


def slow_adjacent(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    levels = list({row["score"]: row for row in reversed(rows)}.values())[::-1]
    return list(pairwise(levels))


def slow_length_matched(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    def order(pair: tuple[Any, Any]) -> Any:
        one, other = pair
        return abs(one["tokens"] - other["tokens"]), other["score"] - one["score"], one["row_id"], other["row_id"]

    return sorted(combinations(rows, 2), key=order)


def slow_first_round(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    drawn = by_draw(rows)
    return [
        (one, other) if one["score"] >= other["score"] else (other, one)
        for one, other in zip(drawn[::2], drawn[1::2], strict=False)
    ]


def slow_tournament(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    left, found = by_draw(rows), []
    while len(left) > 1:
        matches = [
            (one, other) if one["score"] >= other["score"] else (other, one)
            for one, other in zip(left[::2], left[1::2], strict=False)
        ]
        found += matches
        lost = {other["row_id"] for _, other in matches}
        left = [row for row in left if row["row_id"] not in lost]
    return found


SLOW: dict[str, Callable[[list[dict[str, Any]]], list[tuple[Any, Any]]]] = {
    name.removeprefix("slow_"): rule for name, rule in list(globals().items()) if name.startswith("slow_")
}


@pytest.mark.parametrize("rule", SLOW)
@pytest.mark.parametrize("k", [1, 2, 9])
def test_a_rule_gives_what_its_description_says(rule: str, k: int) -> None:
    @given(ANSWERS, st.sampled_from([0.0, 1.0, 2.0]))
    @settings(max_examples=30, deadline=None)
    def check(rows: list[Answer], min_margin: float) -> None:
        answers = table(rows)
        expected = set()
        for group in by_prompt(answers).values():
            candidates = [
                (one, other)
                for one, other in SLOW[rule](group)
                if one["score"] - other["score"] >= max(min_margin, 1e-9) and one["answer"] != other["answer"]
            ]
            expected |= {(one["row_id"], other["row_id"]) for one, other in candidates[:k]}
        found = select(answers, rule, pairs_per_prompt=k, min_margin=min_margin).pairs
        assert set(zip(found["chosen"], found["rejected"], strict=True)) == expected

    check()


@EVERY
def test_of_no_rule_a_tie_an_equal_answer_or_an_unscored_one_makes_a_pair(rule: str) -> None:
    @given(ANSWERS, st.integers(1, 3))
    @settings(max_examples=30, deadline=None)
    def check(rows: list[Answer], k: int) -> None:
        answers = table(rows)
        known = facts(answers)
        selected = select(answers, rule, pairs_per_prompt=k)
        for pair in selected.pairs.to_dicts():
            chosen, rejected = known[pair["chosen"]], known[pair["rejected"]]
            assert chosen["prompt_id"] == rejected["prompt_id"] == pair["prompt_id"]
            assert chosen["score"] > rejected["score"]
            assert (pair["chosen_score"], pair["rejected_score"]) == (chosen["score"], rejected["score"])
            assert pair["margin"] == chosen["score"] - rejected["score"]
            assert chosen["answer"] != rejected["answer"]
        per_prompt = selected.pairs.group_by("prompt_id").len()["len"]
        assert per_prompt.max() is None or int(per_prompt.max()) <= k  # type: ignore[arg-type]

    check()


def used(selected: Selected) -> set[str]:
    return {*selected.pairs["chosen"], *selected.pairs["rejected"]}


@EVERY
def test_every_answer_stands_in_a_pair_or_is_set_aside_with_a_reason(rule: str) -> None:
    @given(ANSWERS)
    @settings(max_examples=25, deadline=None)
    def check(rows: list[Answer]) -> None:
        answers = table(rows)
        selected = select(answers, rule, min_margin=1.5)
        assert sorted([*used(selected), *selected.aside["row_id"]]) == sorted(answers["row_id"])
        assert selected.aside["reason"].null_count() == 0
        assert selected.aside["detail"].null_count() == 0

    check()


def test_reasons_say_what_is_particular() -> None:
    rows: list[Answer] = [(0, None, 1), (0, 1.0, 2), (1, 1.0, 1), (1, 1.0, 2), (2, 1.0, 1), (2, 2.0, 2), (3, 0.0, 1)]
    rows += [(3, 9.0, 2), (3, 5.0, 3)]
    aside = select(table(rows), "max_min", min_margin=3.0).aside
    assert dict(zip(aside["row_id"], aside["reason"], strict=True)) == {
        "r0": "no_score",
        "r1": "single_answer",
        "r2": "equal_scores",
        "r3": "equal_scores",
        "r4": "margin_too_small",
        "r5": "margin_too_small",
        "r8": "not_selected",
    }


@EVERY
def test_neither_the_order_of_rows_nor_other_prompts_change_a_prompts_pairs(rule: str) -> None:
    @given(ANSWERS, st.randoms(use_true_random=False))
    @settings(max_examples=25, deadline=None)
    def check(rows: list[Answer], random: Any) -> None:
        answers = table(rows)
        order = list(range(len(rows)))
        random.shuffle(order)
        expected = select(answers, rule, pairs_per_prompt=2)
        shuffled = select(answers[order], rule, pairs_per_prompt=2)
        assert sorted(expected.pairs.rows()) == sorted(shuffled.pairs.rows())
        assert sorted(expected.aside.rows()) == sorted(shuffled.aside.rows())
        one = answers.filter(pl.col("prompt_id") == "p1")
        alone = select(one, rule, pairs_per_prompt=2).pairs
        assert alone.rows() == expected.pairs.filter(pl.col("prompt_id") == "p1").rows()

    check()


def test_a_random_lower_answer_is_any_of_them_equally_often() -> None:
    """UltraFeedback's scripts name a rule random and take the first; here each of three comes up a third of the time."""
    prompts = 6000
    rows: list[Answer] = [
        (prompt, score, place) for prompt in range(prompts) for place, score in enumerate((4.0, 3.0, 2.0, 1.0))
    ]
    found = select(table(rows), "max_random_lower").pairs["rejected_score"].value_counts().sort("rejected_score")
    counts = np.array(found["count"])
    assert counts.sum() == prompts
    assert float(((counts - prompts / 3) ** 2 / (prompts / 3)).sum()) < 13.8  # chi-square, 2 degrees, p = 0.001


def test_of_all_pairs_each_comes_first_equally_often() -> None:
    prompts = 20_000
    rows: list[Answer] = [
        (prompt, score, place) for prompt in range(prompts) for place, score in enumerate((4.0, 3.0, 2.0, 1.0))
    ]
    found = select(table(rows), "every").pairs.group_by("chosen_score", "rejected_score").len()["len"]
    counts = np.array(found)
    assert len(counts) == 6
    assert float(((counts - prompts / 6) ** 2 / (prompts / 6)).sum()) < 20.5  # chi-square, 5 degrees, p = 0.001


def test_seed_and_round_draw_anew() -> None:
    rows: list[Answer] = [(prompt, float(place), place) for prompt in range(200) for place in range(6)]
    answers = table(rows)
    first = select(answers, "max_random_lower")
    assert select(answers, "max_random_lower").pairs.equals(first.pairs)
    for other in (select(answers, "max_random_lower", seed=1), select(answers, "max_random_lower", round_=1)):
        same = (other.pairs["rejected"] == first.pairs["rejected"]).mean()
        assert isinstance(same, float)
        assert same < 0.4


def test_tied_scores_never_give_an_answer_against_itself() -> None:
    """distilabel's pairs of all-tied scores have chosen equal to rejected."""
    rows: list[Answer] = [(0, 3.0, place) for place in range(4)]
    for rule in RULES:
        assert select(table(rows), rule, pairs_per_prompt=9).pairs.height == 0


def test_nothing_in_nothing_out() -> None:
    for rule in RULES:
        selected = select(table([]), rule)
        assert selected.pairs.height == selected.aside.height == 0


def test_draws_are_even_and_independent_of_each_other() -> None:
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20000)]
    one, other = draws.uniform(0, ids, "select"), draws.uniform(0, ids, "select", round_=1)
    assert ((one >= 0) & (one < 1)).all()
    assert abs(one.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.03
    assert np.array_equal(draws.uniform(0, ids[::-1], "select")[::-1], one)
