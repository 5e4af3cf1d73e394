"""The formats of judged, scored and ranked answers: what each row says, and what is refused."""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata import sources
from prefdata.errors import UserError
from prefdata.records import Comparison, Completion, Judged, Message, Origin, Parsed, RawRow, SetAside, Several
from prefdata.sources import fine_grained_qa, index_label, oasst, scored, unpaired
from schemas.reasons import REASONS


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def said(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def reason(parsed: Parsed) -> str:
    assert isinstance(parsed, SetAside), parsed
    assert parsed.reason in REASONS
    return parsed.reason


# --- two answers by number ---

LLMBAR = {"input": "Name a fruit.", "output_1": "An apple.", "output_2": "A stone."}
PANDALM = {"instruction": "Rewrite.", "input": "It is.", "response1": "Is it?", "response2": "It's."}


@pytest.mark.parametrize(
    ("label", "chosen", "rejected"), [(1, "An apple.", "A stone."), ("2", "A stone.", "An apple.")]
)
def test_the_label_names_the_better_answer(label: object, chosen: str, rejected: str) -> None:
    expected = Comparison(asked("Name a fruit."), said(chosen), said(rejected))
    assert index_label.parse({**LLMBAR, "label": label}) == expected


@pytest.mark.parametrize(
    ("votes", "better", "preference"),
    [((1, 1, 1), "Is it?", 1.0), ((2, 2, 0), "It's.", 2.5 / 3), ((1, 2, 1), "Is it?", 2 / 3), ((2,), "It's.", 1.0)],
)
def test_the_most_frequent_vote_decides(votes: Sequence[int], better: str, preference: float) -> None:
    found = index_label.parse({**PANDALM, **{f"annotator{n}": vote for n, vote in enumerate(votes, 1)}})
    assert isinstance(found, Comparison)
    assert (found.prompt, found.chosen) == (asked("Rewrite.\nIt is."), said(better))
    assert found.preference == pytest.approx(preference)


@pytest.mark.parametrize("votes", [(0, 0, 1), (1, 2), (1, 2, 0), (0, 1, 0), (1, 1, 0, 0)])
def test_votes_that_prefer_neither_are_a_tie(votes: Sequence[int]) -> None:
    assert reason(index_label.parse({**PANDALM, **{f"annotator{n}": v for n, v in enumerate(votes, 1)}})) == "tie"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"label": 0}, "wrong_type"),
        ({"label": 3}, "wrong_type"),
        ({"label": True}, "wrong_type"),
        ({"label": None}, "missing_field"),
        ({"output_1": True, "label": 1}, "wrong_type"),
        ({"instruction": " ", "label": 1}, "prompt_empty"),
    ],
)
def test_a_label_that_names_no_answer_is_refused(change: dict[str, Any], expected: str) -> None:
    assert reason(index_label.parse({**LLMBAR, **change})) == expected


# --- predictions compared two by two ---


def predicted(verdicts: Sequence[int], answers: int = 4) -> dict[str, Any]:
    texts = {f"prediction {n}": f"answer {n}" for n in range(1, answers + 1)}
    return {"question": "Who?", "passages": [["Title", "One.", "Two."]], **texts, "preference": list(verdicts)}


@given(verdicts=st.lists(st.sampled_from([0, 1, 2]), min_size=6, max_size=6).filter(any))
def test_every_comparison_that_is_no_tie_is_a_pair(verdicts: list[int]) -> None:
    found = fine_grained_qa.parse(predicted(verdicts))
    assert isinstance(found, Several)
    pairs = {(p.chosen[0].content, p.rejected[0].content) for p in found.parts if isinstance(p, Comparison)}
    expected = set()
    for (i, j), verdict in zip(combinations(range(1, 5), 2), verdicts, strict=True):
        if verdict:
            expected.add((f"answer {i}", f"answer {j}") if verdict == 1 else (f"answer {j}", f"answer {i}"))
    assert pairs == expected
    assert all(isinstance(p, Comparison) and p.prompt == asked("Title\nOne. Two.\n\nWho?") for p in found.parts)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (predicted([0] * 6), "tie"),
        (predicted([1] * 5), "wrong_type"),
        (predicted([1, 1, 1, 1, 1, 3]), "wrong_type"),
        ({**predicted([1] * 6), "question": " "}, "prompt_empty"),
        ({**predicted([1] * 6), "passages": "text"}, "wrong_type"),
        ({"question": "Who?", "prediction " + "9" * 5000: "x", "preference": []}, "missing_field"),
        (predicted([], answers=1), "missing_field"),
    ],
)
def test_a_row_without_comparisons_is_refused(row: dict[str, Any], expected: str) -> None:
    assert reason(fine_grained_qa.parse(row)) == expected


def test_a_prediction_that_is_null_is_none() -> None:
    """A table has a column for every prediction of its longest row."""
    found = fine_grained_qa.parse({**predicted([1], answers=2), "prediction 3": None})
    assert isinstance(found, Several)
    assert len(found.parts) == 1


def test_equal_predictions_that_are_compared_both_ways_are_no_pair() -> None:
    row = {**predicted([1, 0, 2], answers=3), "prediction 3": "answer 1"}
    found = fine_grained_qa.parse({**row, "preference": [1, 0, 1]})  # 1 > 2 and 2 > 3, where 3 is 1
    assert isinstance(found, Several)
    assert [reason(part) for part in found.parts] == ["contradicted", "contradicted"]
    agreeing = fine_grained_qa.parse({**row, "preference": [1, 0, 2]})  # 1 > 2 and 3 > 2
    assert isinstance(agreeing, Several)
    assert all(isinstance(part, Comparison) for part in agreeing.parts)


# --- scored answers ---


CONVERSATION = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def test_tools_and_the_system_turn_are_part_of_the_prompt() -> None:
    found = scored.parse({"prompt": "x", "response": "a", "score": 1, "system": "Be brief.", "tools": [{"name": "f"}]})
    expected = (Message("system", "Be brief."), *asked("x"))
    assert found == Completion(expected, said("a"), tools='[{"name":"f"}]', score=1.0)


def test_each_scored_answer_is_a_completion() -> None:
    one = scored.parse({"prompt": "Sum up.", "text": "Short.", "reward": 0.5})
    assert one == Completion(asked("Sum up."), said("Short."), score=0.5)
    several = scored.parse({"prompt": "Sum up.", "responses": ["a", "b"], "rewards": [3, 3]})
    assert several == Several(tuple(Completion(asked("Sum up."), said(text), score=3.0) for text in "ab"))


def test_an_answer_that_stands_twice_is_kept_once_and_never_with_two_scores() -> None:
    row = {"prompt": "Sum up.", "responses": ["a", "b", "a", "c", "b"], "rewards": [1, 2, 1, 4, 5]}
    found = scored.parse(row)
    assert isinstance(found, Several)
    kept = [part.completion[0].content for part in found.parts if isinstance(part, Completion)]
    reasons = [part.reason for part in found.parts if isinstance(part, SetAside)]
    assert kept == ["a", "c"]
    assert reasons == ["conflicting_labels", "repeated_answer", "conflicting_labels"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "x", "responses": ["a"], "rewards": [1, 2]}, "wrong_type"),
        ({"prompt": "x", "responses": [], "rewards": []}, "completion_empty"),
        ({"prompt": "x", "responses": ["a", None], "rewards": [1, 2]}, "missing_field"),
        ({"prompt": "x", "responses": ["a"], "rewards": ["high"]}, "wrong_type"),
        ({"prompt": "x", "text": "a", "reward": float("nan")}, "score_not_finite"),
        ({"prompt": "x", "text": "a", "reward": None}, "missing_field"),
        ({"prompt": "x", "text": "a", "completion": "b", "reward": 1}, "other_format"),
        ({"prompt": "\n\nHuman: x\n\nAssistant:", "text": "a", "reward": 1}, "other_format"),
        ({"prompt": CONVERSATION, "text": "a", "reward": 1}, "same_role_twice"),
    ],
)
def test_scores_that_belong_to_no_answer_are_refused(row: dict[str, Any], expected: str) -> None:
    assert reason(scored.parse(row)) == expected


# --- answers judged by themselves ---


@pytest.mark.parametrize(
    ("label", "truth"), [(True, True), (False, False), ("True", True), (0, False), ("false", False), (1.0, True)]
)
def test_a_label_is_a_verdict(label: object, truth: bool) -> None:
    expected = Judged(asked("Name a fruit."), said("An apple."), truth)
    assert unpaired.parse({"prompt": "Name a fruit.", "completion": "An apple.", "label": label}) == expected
    turns = [{"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "An apple."}]
    assert unpaired.parse({"conversations": turns, "kto_tag": label}) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "x", "completion": "y"}, "missing_field"),
        ({"prompt": "x", "completion": "y", "label": 2}, "wrong_type"),
        ({"prompt": "x", "completion": "y", "label": "good"}, "wrong_type"),
        ({"prompt": "x", "completion": "y", "label": True, "kto_tag": False}, "other_format"),
        ({"prompt": "x", "completion": "y", "label": True, "weight": float("inf")}, "weight_out_of_range"),
    ],
)
def test_what_is_no_verdict_is_refused(row: dict[str, Any], expected: str) -> None:
    assert reason(unpaired.parse(row)) == expected


# --- trees, a message a row ---


def message(name: str, parent: str | None, role: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    row = {"message_id": name, "parent_id": parent, "message_tree_id": "tree", "role": role, "text": f"text {name}"}
    return {**row, "rank": rank, "deleted": False, **more}


TREE = [
    message("q", None, "prompter"),
    message("a0", "q", "assistant", 0),
    message("a1", "q", "assistant", 1),
    message("a2", "q", "assistant", 2),
    message("gone", "q", "assistant", 3, deleted=True),
    message("r", "a1", "prompter", 0),
    message("b0", "r", "assistant", 0),
    message("b1", "r", "assistant", 1),
    message("lonely", "a2", "prompter"),
    message("unsaid", None, "prompter", deleted=True),
    message("u0", "unsaid", "assistant", 0),
    message("u1", "unsaid", "assistant", 1),
]


def read_tree(rows: Sequence[dict[str, Any] | SetAside]) -> dict[str, Parsed]:
    raw: Iterator[RawRow] = (RawRow(Origin("file", n), row) for n, row in enumerate(rows))
    return {
        str(row.origin.position if isinstance(row.value, SetAside) else row.value["message_id"]): parsed
        for row, parsed in oasst.parse_file(raw)
    }


def pairs_of(parsed: Parsed) -> set[tuple[int, str, str]]:
    """(turns of the prompt, better, worse)."""
    assert isinstance(parsed, Several)
    assert parsed.group == "tree"
    found = [part for part in parsed.parts if isinstance(part, Comparison)]
    return {(len(p.prompt), p.chosen[0].content[5:], p.rejected[0].content[5:]) for p in found}


def test_each_two_ranked_replies_are_a_pair_of_every_message_in_it() -> None:
    top = {(1, "a0", "a1"), (1, "a0", "a2"), (1, "a1", "a2")}
    below = {(3, "b0", "b1")}
    found = read_tree(TREE)
    expected = {
        "q": top | below,
        "a0": {(1, "a0", "a1"), (1, "a0", "a2")},
        "a1": {(1, "a0", "a1"), (1, "a1", "a2")} | below,
        "a2": {(1, "a0", "a2"), (1, "a1", "a2")},
        "r": below,
        "b0": below,
        "b1": below,
    }
    assert {name: pairs_of(found[name]) for name in expected} == expected
    assert reason(found["gone"]) == "deleted_message"
    assert reason(found["unsaid"]) == "deleted_message"
    below = found["u0"]
    assert isinstance(below, Several)
    assert {reason(part) for part in below.parts} == {"deleted_message"}
    assert reason(found["lonely"]) == "not_compared"


def test_replies_of_one_text_that_are_ranked_around_another_contradict() -> None:
    ranked = [
        message(name, "q", "assistant", rank, text=text)
        for rank, (name, text) in enumerate(zip("abc", "xyx", strict=True))
    ]
    found = read_tree([TREE[0], *ranked])["b"]
    assert isinstance(found, Several)
    assert [reason(part) for part in found.parts] == ["contradicted", "contradicted"]


def test_a_long_chain_takes_no_time_to_speak_of() -> None:
    """4,000 turns took minutes when each was followed to its root anew."""
    roles = ("prompter", "assistant")
    chain = [message(str(n), str(n - 1) if n else None, roles[n % 2], 0) for n in range(4000)]
    chain.append(message("other", "3998", "assistant", 1))
    found = read_tree(chain)
    assert isinstance(found["0"], Several)
    assert len(found) == 4001


def test_an_id_that_no_file_can_hold_is_refused() -> None:
    for key in ("message_id", "message_tree_id"):
        assert reason(oasst.parse({**TREE[0], key: "\ud800x"})) == "lone_surrogate"
    assert reason(oasst.parse({**TREE[0], "deleted": "false"})) == "wrong_type"


def test_the_order_of_messages_changes_nothing() -> None:
    shuffled = random.Random(0).sample(TREE, len(TREE))
    first, second = read_tree(TREE), read_tree(shuffled)
    assert [row["message_id"] for row in shuffled] == list(second)
    for name, parsed in first.items():
        if isinstance(parsed, Several):
            assert pairs_of(parsed) == pairs_of(second[name])
        else:
            assert parsed == second[name]


def test_what_hangs_on_nothing_or_on_what_was_deleted_is_refused() -> None:
    rows = [
        *TREE,
        message("under", "gone", "prompter"),
        message("orphan", "nowhere", "prompter"),
        message("loop", "loop", "prompter"),
        message("c0", "orphan", "assistant", 0),
        message("c1", "orphan", "assistant", 1),
        SetAside("unreadable_row", "line 14"),
    ]
    found = read_tree(rows)
    assert reason(found["under"]) == "deleted_message"
    assert reason(found["orphan"]) == reason(found["loop"]) == "parent_missing"
    below = found["c0"]
    assert isinstance(below, Several)
    assert [reason(part) for part in below.parts] == ["parent_missing"]
    assert reason(found[str(len(rows) - 1)]) == "unreadable_row"
    again = list(oasst.parse_file(RawRow(Origin("file", n), row) for n, row in enumerate([TREE[0], TREE[0]])))
    assert reason(again[1][1]) == "repeated_id"


ROLE = st.sampled_from(["prompter", "assistant", "moderator", None])
NAME = st.sampled_from([*"abcd", None])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "message_id": NAME,
                "parent_id": NAME,
                "message_tree_id": st.just("t"),
                "role": ROLE,
                "text": st.text(max_size=3),
                "rank": st.one_of(st.none(), st.integers(0, 3), st.floats()),
                "deleted": st.booleans(),
            }
        ),
        max_size=9,
    )
)
def test_any_tree_ends_each_message_with_what_it_says_or_why_not(rows: list[dict[str, Any]]) -> None:
    found = list(oasst.parse_file(RawRow(Origin("file", n), row) for n, row in enumerate(rows)))
    assert [raw.value for raw, _ in found] == rows
    for _, parsed in found:
        for part in parsed.parts if isinstance(parsed, Several) else (parsed,):
            assert isinstance(part, Comparison) or reason(part)


# --- detection ---

EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("index_label", {**LLMBAR, "label": 1}),
    ("index_label", {**PANDALM, "annotator1": 1}),
    ("fine_grained_qa", predicted([1] * 6)),
    ("scored", {"prompt": "x", "text": "a", "reward": 1.0}),
    ("scored", {"prompt": "x", "response": "a", "reward": -5}),
    ("scored", {"prompt": "x", "completion": "a", "reward": -5}),
    ("scored", {"prompt": "x", "responses": ["a", "b"], "rewards": [1, 2]}),
    ("unpaired", {"prompt": "x", "completion": "y", "label": True}),
    ("unpaired", {"conversations": CONVERSATION, "kto_tag": False}),
    ("unpaired", {"messages": CONVERSATION, "label": False}),
    ("oasst", TREE[0]),
]


@pytest.mark.parametrize(("name", "row"), EXAMPLES)
def test_each_is_recognised_and_no_other_format_takes_it(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    reading = sources.read(str(path))
    assert reading.format == name
    others = reading.why.partition("(others: ")[2].rstrip(")").split(", ")
    assert others
    assert all(other.endswith(" 0") for other in others)


def test_labels_that_count_from_0_stop_the_whole_file(tmp_path: Path) -> None:
    """If 0 is the first answer, 1 is the second: rows with 1 would all be the wrong way round."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**LLMBAR, "label": label}) + "\n" for label in (1, 1, 0)))
    with pytest.raises(UserError, match=r"rows\.jsonl:2: label is 0"):
        list(sources.read(str(path), format="index_label"))


@pytest.mark.parametrize(("name", "row"), EXAMPLES)
def test_what_a_format_reads_is_of_its_kind(name: str, row: dict[str, Any]) -> None:
    kinds = {Comparison: "pairs", Completion: "completions", Judged: "unpaired"}
    format_ = next(each for each in sources.FORMATS if name == each.NAME)
    parsed = format_.parse(row)
    for part in parsed.parts if isinstance(parsed, Several) else (parsed,):
        assert isinstance(part, SetAside) or kinds[type(part)] == format_.KIND
