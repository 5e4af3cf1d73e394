"""Frozen partners of judged rows, which answers are the same, and KTO's weights."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.select.kto_weights import LEAST, MOST, class_weights
from prefdata.select.partners import partners
from prefdata.select.same_answers import same_answers

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=30)


def table(rows: list[tuple[int, int]]) -> pl.DataFrame:
    """prompt, answer by number."""
    return pl.DataFrame(
        {
            "name": [f"r{place}" for place in range(len(rows))],
            "prompt_id": [f"p{prompt}" for prompt, _ in rows],
            "answer": [bytes([answer]) for _, answer in rows],
        }
    )


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_a_partner_is_another_prompts_answer_that_the_rows_own_prompt_has_nowhere(rows: list[tuple[int, int]]) -> None:
    pool = table(rows)
    found = partners(pool, pool, seed=3)
    assert found["name"].to_list() == pool["name"].to_list()
    answers_of = {prompt: {answer for own, answer in rows if own == prompt} for prompt, _ in rows}
    every = {answer for _, answer in rows}
    for (prompt, _), partner in zip(rows, found["partner"], strict=True):
        if partner is None:
            assert answers_of[prompt] == every
            continue
        other, answer = rows[int(partner[1:])]
        assert other != prompt
        assert answer not in answers_of[prompt]


@given(ROWS, st.randoms())
@settings(max_examples=50, deadline=None)
def test_neither_order_nor_shards_nor_rows_left_out_change_a_partner(
    rows: list[tuple[int, int]], random: "np.random.Generator"
) -> None:
    pool = table(rows)
    expected = dict(partners(pool, pool, seed=3).iter_rows())
    places = list(range(len(rows)))
    random.shuffle(places)
    mixed = pool[places]
    assert dict(partners(mixed[: len(rows) // 2], mixed, seed=3).iter_rows()).items() <= expected.items()
    assert dict(partners(mixed, mixed, seed=3).iter_rows()) == expected


def test_draws_are_even_over_answers_and_differ_by_seed() -> None:
    rows = [(prompt, prompt) for prompt in range(10)] * 1000
    pool = table(rows).with_columns(name=pl.format("x{}", pl.int_range(pl.len())))
    first, second = (partners(pool, pool, seed)["partner"] for seed in (0, 1))
    counts = first.value_counts()["count"].cast(pl.Int64)
    assert len(counts) == 10
    assert abs(counts - 1000).max() < 150  # type: ignore[operator]  # a binomial's deviation is 30
    assert (first == second).mean() < 0.2  # type: ignore[operator]


def test_an_answer_that_several_prompts_have_is_drawn_as_often() -> None:
    rows = [(0, 0)] + [(prompt, 1) for prompt in range(1, 9)] + [(9, 2)]
    pool = table(rows)
    asking = pl.DataFrame({"name": [f"a{n}" for n in range(4000)], "prompt_id": ["p0"] * 4000})
    found = partners(asking, pool, seed=0)["partner"]
    assert (found == "r9").mean() == pytest.approx(1 / 9, abs=0.02)  # type: ignore[operator]


def test_answers_are_the_same_by_tokens_or_text_and_by_way_of_others() -> None:
    ids = pl.Series([b"3", b"1", b"1", b"2", b"9"])
    text = pl.Series([b"a", b"a", b"b", b"b", b"c"])
    assert same_answers(ids, text).to_list() == [b"1", b"1", b"1", b"1", b"9"]
    assert same_answers(ids[::-1], text[::-1]).to_list() == [b"9", b"1", b"1", b"1", b"1"]


@pytest.mark.parametrize(("desirable", "undesirable"), [(101.0, 99.0), (10.0, 990.0), (900.0, 100.0), (7.5, 7.5)])
@pytest.mark.parametrize("ratio", [LEAST, 4 / 3, MOST])
def test_weights_give_the_ratio_and_one_of_them_stays_1(desirable: float, undesirable: float, ratio: float) -> None:
    good, bad = class_weights(desirable, undesirable, ratio)
    assert good * desirable / (bad * undesirable) == pytest.approx(ratio)
    assert min(good, bad) == 1
    # weighed rows need no further weight
    assert class_weights(good * desirable, bad * undesirable, ratio) == pytest.approx((1.0, 1.0))


def test_a_class_without_rows_leaves_nothing_to_balance() -> None:
    assert class_weights(0, 5) == class_weights(5, 0) == class_weights(0, 0) == (1.0, 1.0)
