"""What the gate stops and what rows it lets through, each with its reason, whatever stands around it."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import identity
from prefdata.records import Comparison, Completion, Message, Messages, Record, SetAside
from prefdata.steps import gate
from prefdata.steps.tokenise import rows as rows_of
from prefdata.tokens import Limits, Renderer, shared_prefix
from schemas import completions, pairs
from schemas.reasons import REASONS
from tests.tokenizers_small import build

WIDE = Limits(512)
QUESTION: Messages = (Message("user", "Please write about the sea."),)


def said(text: str | Messages) -> Messages:
    return (Message("assistant", text),) if isinstance(text, str) else text


def comparison(
    chosen: str | Messages = "The sea is wide.", rejected: str | Messages = "The sea is cold.", **fields: Any
) -> Comparison:
    return Comparison(**{"prompt": QUESTION, "chosen": said(chosen), "rejected": said(rejected)} | fields)


def demonstration(completion: str = "The sea is wide.", **fields: Any) -> Completion:
    return Completion(**{"prompt": QUESTION, "completion": said(completion)} | fields)


@cache
def renderer(style: str = "qwen25") -> Renderer:
    with TemporaryDirectory() as folder:
        return Renderer.load(str(build(Path(folder), style)))


def one_row(record: Comparison, limits: Limits = WIDE, style: str = "qwen25") -> dict[str, Any]:
    (row,) = rows_of([record], renderer(style), limits)
    assert isinstance(row, dict), row
    return row


def why(record: Record, limits: Limits = WIDE, style: str = "qwen25") -> str:
    (found,) = rows_of([record], renderer(style), limits)
    assert isinstance(found, SetAside), found
    assert found.reason in REASONS
    return found.reason


# on text

STOPPED: list[tuple[Record, str]] = [
    (comparison("Same.", "Same."), "identical_sides"),
    (comparison(" \n"), "chosen_empty"),
    (comparison(rejected=""), "rejected_empty"),
    (comparison(rejected="", chosen=""), "chosen_empty"),
    (comparison(chosen=()), "chosen_empty"),
    (demonstration("\t"), "completion_empty"),
    (comparison(prompt=()), "prompt_empty"),
    (comparison(prompt=(Message("user", " "),)), "prompt_empty"),
    (demonstration(prompt=(Message("user", ""),)), "prompt_empty"),
    (comparison(rejected="caf\ufffd"), "replacement_character"),
    (comparison(prompt=(Message("user", "caf\ufffd?"),)), "replacement_character"),
    (demonstration(tools='[{"name": "\\ufffd"}]'), "replacement_character"),
    (comparison(chosen_score=float("nan"), rejected_score=0.0), "score_not_finite"),
    (comparison(rejected_score=float("-inf")), "score_not_finite"),
    (demonstration(score=float("inf")), "score_not_finite"),
    (comparison(preference=1.5), "preference_out_of_range"),
    (comparison(preference=float("nan")), "preference_out_of_range"),
]
PASSED: list[Record] = [
    comparison(),
    demonstration(),
    comparison("Same.", "Same. "),
    comparison("x", "y", prompt=(Message("system", ""), *QUESTION)),
    comparison(chosen=(Message("assistant", "", tool_calls='[{"function": {"name": "add"}}]'),)),
    comparison(chosen_score=2.0, rejected_score=-1.0, preference=0.5),
    comparison(chosen_score=2.0),
]


def record_name(value: object) -> str | None:
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(("record", "reason"), STOPPED, ids=record_name)
def test_the_text_gate_stops(record: Record, reason: str) -> None:
    found = gate.check(record)
    assert found is not None
    assert found.reason == reason
    assert reason in REASONS


@pytest.mark.parametrize("record", PASSED, ids=record_name)
def test_the_text_gate_lets_through(record: Record) -> None:
    assert gate.check(record) is None


# on tokens already made


@pytest.mark.parametrize(
    ("chosen", "rejected", "masks", "reason"),
    [
        ([5, 6, 2], [5, 6, 2], {}, "identical_tokens"),
        ([5, 6, 2], [5, 6], {}, None),
        ([5, 6, 2], [5, 7, 2], {}, None),
        ([2], [5, 2], {}, "chosen_empty"),
        ([5, 2], [], {}, "rejected_empty"),
        ([5, 2], [3, 2], {}, "rejected_empty"),
        ([5, 2], [6, 2], {"chosen_mask": [False, False]}, "nothing_scored"),
        ([5, 2], [6, 2], {"rejected_mask": [False, True]}, None),
    ],
)
def test_the_token_gate(chosen: list[int], rejected: list[int], masks: dict[str, Any], reason: str | None) -> None:
    found = gate.gate_ids(chosen, rejected, [2, 3], **masks)
    assert (found.reason if found else None) == reason


# rows


def test_a_row_holds_what_the_schema_says() -> None:
    fields: dict[str, Any] = {
        "chosen_score": 3.5,
        "rejected_score": 1.0,
        "preference": 0.75,
        "source": "here",
        "license": "MIT",
    }
    record = comparison(**fields)
    row = one_row(record)
    assert set(row) == set(pairs.BASE.names)
    table = pa.Table.from_pylist([row], schema=pairs.BASE)
    table.validate(full=True)
    assert not any(table[field.name].null_count for field in pairs.BASE if not field.nullable)
    assert row["row_id"] == identity.pair_row_id(record.prompt, record.chosen, record.rejected)
    assert row["prompt_id"] == identity.prompt_id(record.prompt)
    assert {name: row[name] for name in fields} == fields
    assert (row["margin"], row["method"]) == (2.5, "human")
    assert row["prompt_ids"] == renderer().prompt(QUESTION)
    for side in ("chosen", "rejected"):
        rendered = renderer().completion(QUESTION, getattr(record, side))
        assert not isinstance(rendered, SetAside)
        assert row[f"{side}_ids"] == rendered.ids
        assert row[f"{side}_tokens"] == len(rendered.ids)
        assert row[f"{side}_finish"] == "stop"
    assert row["prompt_tokens"] == len(row["prompt_ids"])
    assert 0 < row["shared_prefix"] == shared_prefix(row["chosen_ids"], row["rejected_ids"]) < row["chosen_tokens"]
    assert [Message.from_mapping(turn) for turn in table["prompt"][0].as_py()] == list(record.prompt)


def test_a_completion_row_holds_what_the_schema_says() -> None:
    record = demonstration(score=1.0)
    (row,) = rows_of([record], renderer("qwen3"), WIDE, source="file.jsonl", method="sampled")
    assert isinstance(row, dict)
    assert set(row) == set(completions.BASE.names)
    table = pa.Table.from_pylist([row], schema=completions.BASE)
    assert not any(table[field.name].null_count for field in completions.BASE if not field.nullable)
    assert row["row_id"] == identity.completion_row_id(record.prompt, record.completion)
    assert (row["source"], row["method"], row["score"], row["license"]) == ("file.jsonl", "sampled", 1.0, None)
    assert row["completion_content_start"] > 0


def test_without_both_scores_there_is_no_margin() -> None:
    assert one_row(comparison(chosen_score=1.0))["margin"] is None
    assert one_row(comparison())["margin"] is None


def test_tokens_can_be_identical_where_texts_are_not() -> None:
    assert gate.check(comparison("Wide.", "Wide. \n")) is None
    assert why(comparison("Wide.", "Wide. \n"), style="gemma3") == "identical_tokens"


def test_a_side_can_be_empty_once_templated() -> None:
    thought = "<think>Hm.</think>"  # Qwen 2.5 keeps it, a template that trims has nothing left of white space
    assert one_row(comparison(rejected=thought))["rejected_tokens"] > 1
    assert why(comparison(rejected=" \n"), style="gemma3") == "rejected_empty"
    assert why(comparison(chosen=""), style="plain") == "chosen_empty"
    assert why(demonstration(""), style="plain") == "completion_empty"


def test_a_refused_side_sets_the_pair_aside_and_says_which() -> None:
    (found,) = rows_of([comparison(rejected="a<|im_end|>b")], renderer(), WIDE)
    assert found == SetAside("special_token_in_text", "rejected: <|im_end|>")


# limits


def test_the_limits_by_example() -> None:
    row = one_row(comparison("The sea is wide. " * 3))
    prompt, chosen, rejected = row["prompt_tokens"], row["chosen_tokens"], row["rejected_tokens"]
    record = comparison("The sea is wide. " * 3)
    assert chosen > rejected + 1
    assert one_row(record, Limits(prompt + chosen)) == row
    assert why(record, Limits(prompt)) == "prompt_too_long"
    assert why(record, Limits(prompt, max_prompt_length=prompt)) == "prompt_too_long"
    assert why(record, Limits(512, max_prompt_length=prompt - 1)) == "prompt_too_long"
    assert one_row(record, Limits(512, max_prompt_length=prompt)) == row
    assert why(record, Limits(prompt + 7, min_answer_tokens=8)) == "no_room_for_answer"
    assert why(record, Limits(prompt + chosen - 1, overflow="set_aside")) == "answer_too_long"
    cut = one_row(record, Limits(prompt + rejected))
    assert cut["chosen_ids"] == row["chosen_ids"][:rejected]
    assert (cut["chosen_finish"], cut["rejected_finish"]) == ("length", "stop")
    assert why(record, Limits(prompt + row["shared_prefix"])) == "identical_after_truncation"


def test_the_template_s_opening_is_no_answer() -> None:
    record = demonstration()
    (row,) = rows_of([record], renderer("qwen3"), WIDE)
    assert isinstance(row, dict)
    opening = row["prompt_tokens"] + row["completion_content_start"]
    assert why(record, Limits(opening), style="qwen3") == "no_room_for_answer"
    (cut,) = rows_of([record], renderer("qwen3"), Limits(opening + 1))
    assert isinstance(cut, dict)
    assert cut["completion_tokens"] == row["completion_content_start"] + 1


words = st.lists(st.sampled_from(["The", " sea", " is", " wide", ".", "\n", " 42"]), min_size=1, max_size=15).map(
    "".join
)
records = st.builds(lambda q, a, b: Comparison((Message("user", q),), said(a), said(b)), words, words, words)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(records, min_size=1, max_size=6),
    max_length=st.integers(20, 60),
    least=st.integers(1, 6),
    style=st.sampled_from(["qwen25", "qwen3", "gemma3", "plain"]),
)
def test_limits_hold_for_any_row(rows: list[Comparison], max_length: int, least: int, style: str) -> None:
    of, limits = renderer(style), Limits(max_length, min_answer_tokens=least)
    limited = rows_of(rows, of, limits)
    assert limited == [rows_of([record], of, limits)[0] for record in rows]
    for record, row, free in zip(rows, limited, rows_of(rows, of, Limits(10_000)), strict=True):
        if isinstance(free, SetAside):
            assert row == free, "the limits change no reason but their own"
            continue
        if isinstance(row, SetAside):
            fits = free["prompt_tokens"] + max(free["chosen_tokens"], free["rejected_tokens"]) <= max_length
            assert not fits or max_length - free["prompt_tokens"] - free["chosen_content_start"] < least
            continue
        assert row["prompt_ids"] == free["prompt_ids"]
        assert gate.gate_ids(row["chosen_ids"], row["rejected_ids"], of.end_ids) is None
        for side in ("chosen", "rejected"):
            ids, whole = row[f"{side}_ids"], free[f"{side}_ids"]
            assert ids == whole[: max_length - row["prompt_tokens"]]
            assert (row[f"{side}_finish"] == "stop") == (ids == whole) == (ids[-1] in of.end_ids)
        assert row["row_id"] == free["row_id"]
        assert dataclasses.asdict(record)["prompt"][0]["content"] == row["prompt"][0]["content"]


def test_many_rows_keep_their_order() -> None:
    numbers = range(1100)  # more than go through the tokenizer at once
    rows = rows_of([comparison(f"The sea {i}.", json.dumps(i)) for i in numbers], renderer(), WIDE)
    found = [row["chosen"][0]["content"] for row in rows if isinstance(row, dict)]
    assert found == [f"The sea {i}." for i in numbers]
