"""Whole columns in canonical form, against the form of one value at a time."""

from typing import Any

import polars as pl
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import canonical, identity
from prefdata.records import Message
from prefdata.select import pairing
from schemas import completions

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TURN = st.fixed_dictionaries(
    {"role": TEXT, "content": st.none() | TEXT, "name": st.none() | TEXT, "tool_calls": st.none() | TEXT,
     "tool_call_id": st.none() | TEXT}
)  # fmt: skip
TURNS = completions.BASE.field("prompt").type
IDS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)


def said(column: pl.Series) -> list[bytes | None]:
    return [None if each is None else each.encode() for each in column]


@settings(deadline=None)
@given(st.lists(st.none() | TEXT, min_size=1, max_size=5))
def test_texts(texts: list[str | None]) -> None:
    found = said(canonical.texts(pl.Series(texts, dtype=pl.String)))
    assert found == [None if text is None else identity.canonical(text) for text in texts]


def test_every_character_that_json_escapes() -> None:
    text = "".join(map(chr, range(0x100))) + "\u2028\U0001f600\\n"
    assert said(canonical.texts(pl.Series([text]))) == [identity.canonical(text)]


@settings(deadline=None)
@given(st.lists(IDS, min_size=1, max_size=4))
def test_lists_of_whole_numbers(rows: list[list[int]]) -> None:
    column = canonical.series(pa.array(rows, pa.list_(pa.int32())))
    assert said(canonical.whole_numbers(column)) == [identity.canonical(row) for row in rows]


@settings(deadline=None)
@given(st.lists(st.lists(TURN, max_size=3), min_size=1, max_size=4))
def test_turns(rows: list[list[dict[str, Any]]]) -> None:
    column = canonical.series(pa.array(rows, TURNS))
    messages = [[Message.from_mapping(turn).as_dict() for turn in row] for row in rows]
    assert said(canonical.turns(column)) == [identity.canonical(row) for row in messages]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(TURN, min_size=1, max_size=2), st.lists(TURN, min_size=1, max_size=2), IDS.filter(len), st.none() | TEXT,
                  st.sampled_from(["sampled", "model"])),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_ids_of_pairs_are_those_of_their_rows(rows: list[Any]) -> None:
    """A completion that a model wrote here is named by its tokens, any other by its text."""
    columns = dict(
        zip(
            ("prompt", "completion", "completion_ids", "tools", "method"),
            map(list, zip(*rows, strict=True)),
            strict=True,
        )
    )
    fields = [completions.BASE.field(name) for name in columns]
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in fields})

    def side(row: Any) -> Any:
        return row[2] if row[4] == "sampled" else messages(row[1])

    def messages(turns: list[dict[str, Any]]) -> tuple[Message, ...]:
        return tuple(Message.from_mapping(turn) for turn in turns)

    expected = [identity.pair_row_id(messages(row[0]), side(row), side(row), row[3]) for row in rows]
    assert pairing.row_ids(table, table) == expected
