"""Splits: near-duplicates together, what is held out held out, and the same for every prompt when data is added."""

from collections import defaultdict
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from prefdata.steps import chain
from prefdata.steps.batch import Batch
from prefdata.steps.split import Split
from schemas import prompts
from tests.test_steps_duplicates import LONG, QUICK, asked, table


def prompt(family: int, member: int) -> dict[str, Any]:
    """Members of a family are near-duplicates."""
    text = f"{' '.join(f'{word}{family}' for word in LONG.split())} {member}"
    return {"row_id": f"r-{family}-{member}", "prompt_id": f"p{member}-{family}", "prompt": asked(text)}


def split(
    rows: list[dict[str, Any]], fraction: float = 0.5, *, test: tuple[str, ...] = (), **options: Any
) -> chain.Cleaned:
    step = Split(fraction, 0.8, **options)
    parts = [
        chain.read([step], Batch("prompts", name, table(prompts, part)))
        for name, part in (
            ("train", [row for row in rows if row["row_id"] not in test]),
            ("test", [row for row in rows if row["row_id"] in test]),
        )
        if part
    ]
    return chain.clean([step], pl.concat(parts))


def by_row(found: chain.Cleaned) -> dict[str, str]:
    return dict(found.kept.select("row_id", "split").rows())


def test_families_stay_together_and_about_a_fraction_of_them_is_drawn() -> None:
    rows = [prompt(family, member) for family in range(200) for member in range(3)]
    drawn: dict[str, set[str]] = defaultdict(set)
    for row_id, name in by_row(split(rows, 0.3)).items():
        drawn[row_id.split("-")[1]].add(name)
    assert all(len(names) == 1 for names in drawn.values())
    assert 40 <= sum(names == {"test"} for names in drawn.values()) <= 80
    assert by_row(split(rows, 0.3)) != by_row(split(rows, 0.3, seed=1))
    assert set(by_row(split(rows, 0)).values()) == {"train"}
    assert set(by_row(split(rows, 1)).values()) == {"test"}


@QUICK
@given(
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1),
    st.sets(st.integers(10, 19)),
    st.integers(0, 3),
)
def test_added_families_move_nothing(here: set[tuple[int, int]], added: set[int], seed: int) -> None:
    rows = [prompt(*each) for each in sorted(here)]
    before = by_row(split(rows, seed=seed))
    after = by_row(split([*(prompt(each, 0) for each in added), *rows[::-1]], seed=seed))
    assert {row_id: after[row_id] for row_id in before} == before


@QUICK
@given(st.sets(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=1), st.sets(st.integers(0, 9)))
def test_added_family_members_move_nothing_if_the_earlier_split_is_named(
    here: set[tuple[int, int]], added: set[int]
) -> None:
    """Member 0 has the smallest prompt_id of its family, which is what the family is drawn by."""
    rows = [prompt(*each) for each in sorted(here)]
    before = by_row(split(rows))
    earlier = {row["prompt_id"]: before[row["row_id"]] for row in rows}
    found = split([*rows, *(prompt(each, 0) for each in added)], earlier=earlier)
    after = by_row(found)
    assert {row_id: after[row_id] for row_id in before} == before
    held_out = {row_id.split("-")[1] for row_id, name in before.items() if name == "test"}
    leaks = {f"r-{each}-0" for each in added if str(each) in held_out}
    assert set(found.aside["row_id"]) == leaks
    assert set(found.aside["reason"]) <= {"near_test_prompt"}


def test_what_is_held_out_stays_and_is_not_added_to() -> None:
    rows = [prompt(family, member) for family in range(20) for member in range(2)]
    test = ("r-3-1", "r-4-0")
    found = split(rows, 0, test=test)
    assert {row_id for row_id, name in by_row(found).items() if name == "test"} == set(test)
    assert found.aside.sort("row_id").select("row_id", "reason", "detail").rows() == [
        ("r-3-0", "near_test_prompt", "prompt p1-3 is held out"),
        ("r-4-1", "near_test_prompt", "prompt p0-4 is held out"),
    ]


def test_rows_of_one_prompt_stay_together() -> None:
    rows = [prompt(family, 0) | {"row_id": f"{family}-{n}"} for family in range(30) for n in range(3)]
    drawn: dict[str, set[str]] = defaultdict(set)
    for row_id, name in by_row(split(rows)).items():
        drawn[row_id.split("-")[0]].add(name)
    assert {len(names) for names in drawn.values()} == {1}
