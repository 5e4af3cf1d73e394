"""Good answers: each once, the best scored, whatever the order of rows."""

import hashlib
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.select.good_answers import GoodAnswers

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("answer_id", pa.string()),
        ("prompt_id", pa.string()),
        ("preference", pa.float64()),
        ("score", pa.float64()),
        ("label", pa.bool_()),
    ]
)


def name(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def answer(prompt: int, text: int, row: int = 0, **more: float | None) -> dict[str, Any]:
    ids = {"row_id": name(prompt, text, row), "answer_id": name(prompt, text), "prompt_id": name(prompt)}
    return {**ids, "preference": None, "score": None, "label": None, **more}


def refused(*tables: list[dict[str, Any]], by_score: bool = True) -> dict[str, str]:
    held = [pa.Table.from_pylist(rows, schema=SCHEMA) for rows in tables]
    good = GoodAnswers(lambda: iter(held), by_score=by_score)
    return {row: aside.reason for table in held for row, aside in good.refused(table).items()}


@settings(deadline=None)  # on a busy machine
@given(
    drawn=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.none() | st.integers(0, 3), st.none() | st.floats(0, 1)),
        max_size=12,
    ),
    seed=st.integers(0, 9),
    by_score=st.booleans(),
)
def test_of_each_good_answer_exactly_one_row_is_left(drawn: list[Any], seed: int, by_score: bool) -> None:
    rows = [answer(p, t, n, score=score, preference=sure) for n, (p, t, score, sure) in enumerate(drawn)]
    found = refused(rows, by_score=by_score)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert refused(shuffled[:5], shuffled[5:], by_score=by_score) == found
    best = {r["prompt_id"]: max(q["score"] or 0 for q in rows if q["prompt_id"] == r["prompt_id"]) for r in rows}

    def is_good(row: dict[str, Any]) -> bool:
        low = by_score and row["score"] is not None and row["score"] < best[row["prompt_id"]]
        return not low and (row["preference"] is None or row["preference"] >= 0.5)

    left = [row["answer_id"] for row in rows if row["row_id"] not in found]
    assert len(left) == len(set(left))
    assert set(left) == {row["answer_id"] for row in rows if is_good(row)}


def test_a_row_that_is_not_good_never_stands_for_one_that_is() -> None:
    """Two texts that are the same tokens have two rows and one answer_id."""
    for low, high in ((0, 1), (1, 0)):
        rows = [answer(0, 0, low, score=1.0), answer(0, 0, high, score=9.0), answer(0, 1, score=3.0)]
        assert refused(rows) == {rows[0]["row_id"]: "lower_score", rows[2]["row_id"]: "lower_score"}


@pytest.mark.parametrize(("by_score", "left"), [(True, 1), (False, 3)])
def test_scores_count_only_where_they_are_asked(by_score: bool, left: int) -> None:
    rows = [answer(0, text, score=float(text)) for text in range(3)]
    assert len(rows) - len(refused(rows, by_score=by_score)) == left


def test_of_judged_answers_those_that_nobody_calls_undesirable_are_good() -> None:
    rows = [
        answer(1, 1, label=True),
        answer(1, 2, label=False),
        answer(2, 1, label=True),
        answer(2, 1, row=1, label=False),
    ]
    assert refused(rows, by_score=False) == {
        rows[1]["row_id"]: "judged_undesirable",
        rows[2]["row_id"]: "contradicted",
        rows[3]["row_id"]: "judged_undesirable",
    }
