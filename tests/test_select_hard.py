"""Which of several negatives of an answer are kept."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.select.hard import KEEPS, LIKELIEST, RANDOM, UNLIKELIEST, kept

negatives = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([-8.0, -4.0, -3.0, -1.5]), st.integers(1, 4)), max_size=14
)


def table(rows: list[tuple[str, float, int]]) -> pl.DataFrame:
    schema = {"answer_id": pl.String, "row_id": pl.String, "logps": pl.Float32, "tokens": pl.Int32}
    return pl.DataFrame([(answer, f"r{i}", *rest) for i, (answer, *rest) in enumerate(rows)], schema, orient="row")


def ids(rows: pl.DataFrame, keep: str, count: int = 1, seed: int = 0) -> set[str]:
    return set(rows.filter(kept(rows, keep, count, seed=seed, round_=1))["row_id"])


@settings(deadline=None)
@given(negatives, st.integers(1, 4))
def test_the_likeliest_are_those_with_the_highest_mean_per_token(
    rows: list[tuple[str, float, int]], count: int
) -> None:
    expected: dict[str, set[str]] = {LIKELIEST: set(), UNLIKELIEST: set()}
    for answer in "abc":
        mine = [(logps / tokens, f"r{i}") for i, (name, logps, tokens) in enumerate(rows) if name == answer]
        expected[LIKELIEST] |= {row for _, row in sorted(mine, key=lambda one: (-one[0], one[1]))[:count]}
        expected[UNLIKELIEST] |= {row for _, row in sorted(mine)[:count]}
    for keep, wanted in expected.items():
        assert ids(table(rows), keep, count) == wanted


@settings(deadline=None)
@given(negatives, st.sampled_from(KEEPS), st.integers(1, 4), st.randoms())
def test_order_changes_nothing_and_each_answer_keeps_what_it_can(
    rows: list[tuple[str, float, int]], keep: str, count: int, random: object
) -> None:
    made = table(rows)
    found = ids(made, keep, count)
    assert ids(made.sample(fraction=1.0, shuffle=True, seed=len(rows)), keep, count) == found
    have = Counter(answer for answer, *_ in rows)
    by_answer = Counter(made.filter(pl.col("row_id").is_in(list(found)))["answer_id"])
    assert by_answer == {answer: min(count, number) for answer, number in have.items()}


def test_a_short_negative_has_no_advantage() -> None:
    rows = table([("a", -6.0, 2), ("a", -8.0, 8)])
    assert ids(rows, LIKELIEST) == {"r1"}
    assert ids(rows, UNLIKELIEST) == {"r0"}


def test_at_random_each_is_as_likely_as_the_others() -> None:
    rows = table([("a", float(-i), 1) for i in range(4)])
    counts = Counter(next(iter(ids(rows, RANDOM, seed=seed))) for seed in range(800))
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 16.3  # chi-square, 3 degrees, p = 0.001
    assert ids(rows, RANDOM, seed=3) == ids(rows, RANDOM, seed=3)


@pytest.mark.parametrize("keep", KEEPS)
def test_no_rows_keep_none(keep: str) -> None:
    assert ids(table([]), keep) == set()
