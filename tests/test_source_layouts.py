"""Published layouts, each on rows written in it: what a row says, in any container, and what is refused."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata import sources
from prefdata.blocks import Blocks, blocks_in, content_of, texts_in
from prefdata.errors import UserError
from prefdata.records import (
    Comparison,
    Completion,
    Judged,
    Message,
    Messages,
    Parsed,
    Prompt,
    Record,
    Score,
    SetAside,
    Several,
)
from prefdata.sources import (
    alpaca,
    alpaca_pairs,
    conversations,
    demonstrations,
    explicit,
    formats,
    helpsteer,
    helpsteer_pairs,
    openai_preference,
    prompts,
    ultrafeedback,
    unpaired,
)
from schemas.reasons import REASONS
from tests.source_rows import (
    ALPACA,
    ALPACA_PAIRS,
    APPLE,
    HELPSTEER,
    HELPSTEER2_PREFERENCE,
    HELPSTEER3,
    LAYOUTS,
    LLAMA_FACTORY_PAIRS,
    LLAMA_FACTORY_TOOLS,
    MT_BENCH,
    OPENAI_PREFERENCE,
    STONE,
    TOOLS,
    Row,
    rated,
)
from tests.source_rows import ultrafeedback as ultrafeedback_row


def asked(text: str = "Name a fruit.") -> Messages:
    return (Message("user", text),)


def said(text: str) -> Messages:
    return (Message("assistant", text),)


def reason(parsed: Parsed) -> str:
    assert isinstance(parsed, SetAside), parsed
    assert parsed.reason in REASONS
    return parsed.reason


def parts(parsed: Parsed) -> list[Record | SetAside]:
    return list(parsed.parts) if isinstance(parsed, Several) else [parsed]


# --- UltraFeedback ---


def test_each_answer_of_ultrafeedback_is_a_completion_with_its_scores_and_its_model() -> None:
    row = ultrafeedback_row(
        rated(APPLE, "5", "4", "4", "5", overall=8.5), rated(STONE, "1", "2", "1", "1", model="bard")
    )
    first, second = parts(ultrafeedback.parse(row))
    aspects = tuple(map(Score, ultrafeedback.ASPECTS, (5.0, 4.0, 4.0, 5.0)))
    assert first == Completion(
        asked(), said(APPLE), score=4.5, scores=(*aspects, Score("overall_score", 8.5)), generator="gpt-4"
    )
    assert isinstance(second, Completion)
    assert (second.score, second.generator, len(second.scores)) == (1.25, "bard", 4)


def test_an_overall_score_of_1_that_is_stored_as_10_makes_no_answer_the_best() -> None:
    """Known bug of the published files: `overall_score` 1 stored as 10. The score is the mean of the aspects."""
    bad = rated(STONE, "1", "1", "1", "1", overall=10.0)
    good = rated(APPLE, "4", "5", "5", "4", overall=8.0)
    worse, better = parts(ultrafeedback.parse(ultrafeedback_row(bad, good)))
    assert isinstance(worse, Completion)
    assert isinstance(better, Completion)
    assert (worse.score, better.score) == (1.0, 4.5)
    assert Score("overall_score", 10.0) in worse.scores  # it stands beside, as it was published


def test_an_aspect_that_is_not_rated_is_left_out_of_the_mean() -> None:
    some = rated(APPLE, "4", "N/A", "2", "N/A")
    (found,) = parts(ultrafeedback.parse(ultrafeedback_row(some)))
    assert isinstance(found, Completion)
    assert found.score == 3.0
    assert found.scores == (Score("instruction_following", 4.0), Score("truthfulness", 2.0))


def test_one_bad_answer_does_not_void_the_others_of_its_row() -> None:
    """One bad row voids its batch (distilabel): here each answer is judged by itself."""
    bad: list[Row] = [
        rated("a", "N/A", "N/A", "N/A", "N/A"),
        {**rated("b", "1", "1", "1", "1"), "annotations": None},
        {**rated("c", "1", "1", "1", "1"), "response": 7},
        rated("d", "five", "1", "1", "1"),
        {**rated("e", "1", "1", "1", "1"), "annotations": {"honesty": "5"}},
        rated("f", "nan", "1", "1", "1"),
    ]
    *asides, sound = parts(ultrafeedback.parse(ultrafeedback_row(*bad, rated(APPLE, "5", "5", "5", "5"))))
    assert isinstance(sound, Completion)
    expected = ["not_rated", "missing_field", "wrong_type", "wrong_type", "wrong_type", "score_not_finite"]
    assert [reason(aside) for aside in asides if isinstance(aside, SetAside)] == expected


def test_one_text_of_two_models_is_one_answer_only_if_all_its_ratings_agree() -> None:
    same = [rated(APPLE, "5", "5", "5", "5", model=name) for name in ("bard", "gpt-4")]
    first, second = parts(ultrafeedback.parse(ultrafeedback_row(*same)))
    assert isinstance(first, Completion)
    assert isinstance(second, SetAside)
    assert reason(second) == "repeated_answer"
    # the same mean of other aspects
    other = rated(APPLE, "5", "5", "4", "5"), rated(APPLE, "4", "5", "5", "5")
    assert [reason(part) for part in parts(ultrafeedback.parse(ultrafeedback_row(*other)))] == [
        "conflicting_labels"
    ] * 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"completions": []}, "completion_empty"),
        ({"completions": ["An apple."]}, "wrong_type"),
        ({"completions": None}, "missing_field"),
        ({"instruction": None}, "missing_field"),
    ],
)
def test_a_row_that_is_no_ultrafeedback_is_refused(change: Row, expected: str) -> None:
    assert reason(ultrafeedback.parse(ultrafeedback_row(rated(APPLE, "5", "5", "5", "5")) | change)) == expected


# --- HelpSteer ---


def test_helpfulness_is_the_score_of_helpsteer_and_all_aspects_stand_beside_it() -> None:
    found = helpsteer.parse(HELPSTEER)
    assert isinstance(found, Completion)
    assert (found.prompt, found.completion, found.score) == (asked(), said(APPLE), 4.0)
    assert [(each.scorer, each.score) for each in found.scores] == [
        (name, HELPSTEER[name]) for name in helpsteer.ASPECTS
    ]
    assert reason(helpsteer.parse({**HELPSTEER, "helpfulness": None})) == "missing_field"


def test_the_turns_of_a_helpsteer_prompt_are_told_apart() -> None:
    before = (Message("user", "Hello"), Message("assistant", "Hi."), *asked())
    for row, format_ in ((HELPSTEER, helpsteer), (HELPSTEER2_PREFERENCE, helpsteer_pairs)):
        found = format_.parse({**row, "prompt": HELPSTEER2_PREFERENCE["prompt"]})
        assert isinstance(found, Completion | Comparison)
        assert found.prompt == before
    twice = {**HELPSTEER, "prompt": "Hello<extra_id_1>User\nHello?"}
    assert reason(helpsteer.parse(twice)) == "same_role_twice"
    waiting = {**HELPSTEER, "prompt": "Hello<extra_id_1>Assistant\nHi."}
    assert reason(helpsteer.parse(waiting)) == "same_role_twice"


@pytest.mark.parametrize("strength", [-3, -2, -1, 1, 2, 3, "2"])
def test_a_negative_strength_prefers_the_first_answer(strength: Any) -> None:
    found = helpsteer_pairs.parse({**HELPSTEER2_PREFERENCE, "preference_strength": strength})
    assert isinstance(found, Comparison)
    better, worse = (STONE, APPLE) if int(strength) < 0 else (APPLE, STONE)
    assert (found.chosen, found.rejected, found.margin) == (said(better), said(worse), abs(int(strength)))
    assert found.preference is None


def test_helpsteer3_reads_as_helpsteer2_does() -> None:
    found = helpsteer_pairs.parse(HELPSTEER3)
    assert found == Comparison(asked(), said(APPLE), said(STONE), margin=3.0)


@pytest.mark.parametrize(
    ("strength", "expected"), [(0, "tie"), (4, "wrong_type"), (1.5, "wrong_type"), ("", "missing_field")]
)
def test_a_strength_that_prefers_neither_makes_no_pair(strength: Any, expected: str) -> None:
    assert reason(helpsteer_pairs.parse({**HELPSTEER3, "overall_preference": strength})) == expected


def test_rows_that_name_their_split_are_in_it(tmp_path: Path) -> None:
    """A test pool merged and split anew: HelpSteer2's preferences are one file of both splits."""
    path = tmp_path / "preference.jsonl"
    rows = [{**HELPSTEER2_PREFERENCE, "split": name} for name in ("train", "val", "train", None)]
    path.write_bytes(as_lines(rows))
    assert [raw.origin.split for raw, _ in sources.read(str(path))] == ["train", "test", "train", None]
    assert {raw.origin.split for raw, _ in sources.read(str(path), split="train")} == {"train"}


# --- OpenAI ---


def test_an_openai_preference_is_a_pair() -> None:
    assert openai_preference.parse(OPENAI_PREFERENCE) == Comparison(asked(), said(APPLE), said(STONE))


def test_an_output_may_call_tools_before_it_answers() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "price", "arguments": "{}"}}
    output = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "1"},
        {"role": "assistant", "content": "One euro."},
    ]
    tools = [{"type": "function", "function": {"name": "price"}}]
    given = {**OPENAI_PREFERENCE["input"], "tools": tools}
    found = openai_preference.parse({**OPENAI_PREFERENCE, "input": given, "preferred_output": output})
    assert isinstance(found, Comparison)
    assert [turn.role for turn in found.chosen] == ["assistant", "tool", "assistant"]
    assert (found.prompt, found.rejected) == (asked(), said(STONE))
    assert json.loads(found.tools or "") == tools


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"preferred_output": []}, "no_assistant_turn"),
        ({"preferred_output": [{"role": "user", "content": "x"}]}, "no_assistant_turn"),
        ({"preferred_output": [{"role": "assistant", "content": "x"}] * 2}, "same_role_twice"),
        ({"input": "Name a fruit."}, "wrong_type"),
        ({"input": {"messages": []}}, "prompt_empty"),
        ({"non_preferred_output": None}, "missing_field"),
    ],
)
def test_an_openai_preference_that_is_not_whole_is_refused(change: Row, expected: str) -> None:
    assert reason(openai_preference.parse(OPENAI_PREFERENCE | change)) == expected


# --- Alpaca and LLaMA-Factory ---


def test_history_and_system_stand_before_the_instruction() -> None:
    row = {**ALPACA, "input": "Red.", "history": [["A tree?", "An oak."]], "system": "Be brief."}
    before = (Message("system", "Be brief."), Message("user", "A tree?"), Message("assistant", "An oak."))
    prompt = (*before, *asked("Name a fruit.\nRed."))
    assert alpaca.parse(row) == Completion(prompt, said(APPLE))
    pair = {**row, "output": None, "chosen": APPLE, "rejected": {"from": "gpt", "value": STONE}}
    assert alpaca_pairs.parse(pair) == Comparison(prompt, said(APPLE), said(STONE))
    assert unpaired.parse({**row, "kto_tag": False}) == Judged(prompt, said(APPLE), False)
    assert prompts.parse({**row, "output": None}) == Prompt(prompt)


def test_of_two_outputs_the_first_is_the_better_one() -> None:
    assert alpaca_pairs.parse(ALPACA_PAIRS) == Comparison(asked(), said(APPLE), said(STONE))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**ALPACA_PAIRS, "output": [APPLE]}, "wrong_type"),
        ({**ALPACA_PAIRS, "output": [APPLE, STONE, "x"]}, "wrong_type"),
        ({**ALPACA_PAIRS, "output": [APPLE, 7]}, "wrong_type"),
        ({**ALPACA_PAIRS, "chosen": APPLE}, "other_format"),
        ({**ALPACA_PAIRS, "history": [["only one"]]}, "wrong_type"),
        ({**ALPACA_PAIRS, "instruction": " "}, "prompt_empty"),
        ({"instruction": "x", "chosen": [{"role": "user", "content": "x"}], "rejected": STONE}, "other_format"),
    ],
)
def test_two_outputs_that_are_none_are_refused(row: Row, expected: str) -> None:
    assert reason(alpaca_pairs.parse(row)) == expected


def test_sharegpt_calls_and_observations_are_tool_calls_and_tool_turns() -> None:
    found = demonstrations.parse(LLAMA_FACTORY_TOOLS)
    assert isinstance(found, Completion)
    assert [turn.role for turn in found.prompt] == ["system", "user", "assistant", "tool"]
    calls = [{"type": "function", "function": {"name": "price", "arguments": {"of": "apple"}}}]
    assert json.loads(found.prompt[2].tool_calls or "") == calls
    assert found.prompt[3].content == '{"price": 1}'
    assert (found.completion, json.loads(found.tools or "")) == (said("One euro."), json.loads(TOOLS))


@pytest.mark.parametrize("value", ["", "no JSON", "[]", '{"arguments": {}}', '{"name": "x", "arguments": NaN}', "7"])
def test_a_call_that_is_no_call_is_refused(value: str) -> None:
    turns = [*LLAMA_FACTORY_TOOLS["conversations"]]
    turns[1] = {"from": "function_call", "value": value}
    assert reason(demonstrations.parse({"conversations": turns})) == "wrong_type"


def test_a_ranking_with_a_call_as_the_answer_is_a_pair() -> None:
    found = conversations.parse(
        {**LLAMA_FACTORY_PAIRS, "chosen": LLAMA_FACTORY_TOOLS["conversations"][1], "tools": TOOLS}
    )
    assert isinstance(found, Comparison)
    assert found.chosen[0].tool_calls is not None
    assert found.rejected == said(STONE)


# --- content blocks ---


def blocks(*texts: str) -> list[Row]:
    return [{"type": "text", "text": text} for text in texts]


def test_one_block_is_its_text_and_several_are_kept_apart() -> None:
    def conversation(*texts: str) -> list[Row]:
        return [{"role": "user", "content": blocks(*texts)}, {"role": "assistant", "content": blocks(APPLE)}]

    assert demonstrations.parse({"messages": conversation("Name a fruit.")}) == Completion(asked(), said(APPLE))
    found = demonstrations.parse({"messages": conversation("Name", "a fruit.")})
    assert isinstance(found, Completion)
    assert texts_in(found.prompt[0].content) == ["Name", "a fruit."]
    assert blocks_in(found.prompt[0].content) == blocks("Name", "a fruit.")
    assert reason(demonstrations.parse({"messages": conversation(" ", "")})) == "prompt_empty"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:"}}, *blocks("What is it?")], "not_text"),
        ([{"type": "input_audio"}], "not_text"),
        (["text"], "wrong_type"),
        ([{"text": "x"}], "wrong_type"),
        ([{"type": "text", "text": None}], "missing_field"),
    ],
)
def test_blocks_of_anything_else_are_refused(content: list[Any], expected: str) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    assert reason(demonstrations.parse({"messages": turns})) == expected


def test_a_row_that_comes_with_images_is_refused() -> None:
    for name in ("images", "videos", "audios"):
        assert reason(alpaca.parse({**ALPACA, name: ["a.png"]})) == "not_text"
        assert isinstance(alpaca.parse({**ALPACA, name: []}), Completion)


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_blocks_come_back_as_they_were(texts: list[str]) -> None:
    content = content_of(texts)
    assert isinstance(content, Blocks)
    assert texts_in(str(content)) == texts


def test_a_text_that_is_spelled_like_blocks_is_not_taken_for_them(tmp_path: Path) -> None:
    text = str(content_of(["a", "b"]))
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": text, "chosen": APPLE, "rejected": STONE}) + "\n")
    assert [reason(parsed) for _, parsed in sources.read(str(path))] == ["text_like_blocks"]
    for harmless in ('[{"text":"a","type":"text"}]', '[{"text":"a", "type":"text"}]', '[{"text":"', "[]"):
        assert texts_in(harmless) is None


# --- prompts ---


def test_prompts_are_read_from_every_layout() -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 0}]
    whole = (Message("user", "Hi"), Message("assistant", "Hello"), *asked())
    assert prompts.parse({"prompt": "Name a fruit."}) == Prompt(asked())
    assert prompts.parse({"prompt": [*history, {"role": "user", "content": "Name a fruit."}]}) == Prompt(whole)
    assert prompts.parse({"messages": [*history, {"role": "user", "content": "Name a fruit."}]}) == Prompt(whole)
    assert prompts.parse(MT_BENCH) == Prompt(asked("Write a post."))
    assert prompts.parse({"prompt": "Name a fruit.", "turns": 2}) == Prompt(asked())
    with_tools = prompts.parse({"prompt": "Name a fruit.", "system": "Be brief.", "tools": TOOLS})
    assert with_tools == Prompt(
        (Message("system", "Be brief."), *asked()), json.dumps(json.loads(TOOLS), separators=(",", ":"))
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "x", "completion": "y"}, "other_format"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "other_format"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "other_format"),
        ({"messages": [{"role": "system", "content": "x"}]}, "other_format"),
        ({"prompt": " "}, "prompt_empty"),
        ({"prompt": []}, "prompt_empty"),
        ({"turns": []}, "missing_field"),
        ({"turns": [{"role": "user", "content": "x"}]}, "wrong_type"),
        ({"prompt": "\n\nHuman: x\n\nAssistant:"}, "other_format"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}, "same_role_twice"),
        ({"id": 1}, "missing_field"),
    ],
)
def test_what_is_no_prompt_alone_is_refused(row: Row, expected: str) -> None:
    assert reason(prompts.parse(row)) == expected


def test_rows_with_other_texts_are_taken_for_prompts_only_if_the_user_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "Name a fruit.", "good": APPLE, "bad": STONE}) + "\n")
    with pytest.raises(UserError, match="prompts: other columns may hold answers"):
        sources.read(str(path))
    assert [parsed for _, parsed in sources.read(str(path), format="prompts")] == [Prompt(asked(), source="x")]
    about = {
        "id": "q1",
        "category": "fruit",
        "meta": {"by": "hand"},
        "difficulty": "3",
        "score": 0.5,
        "checked": "true",
    }
    path.write_text(json.dumps({"prompt": "Name a fruit.", **about}) + "\n")
    assert sources.read(str(path)).format == "prompts"


def test_a_file_whose_conversations_all_wait_for_the_assistant_holds_prompts(tmp_path: Path) -> None:
    waiting = {"messages": [{"role": "user", "content": "Name a fruit."}]}
    answered = {"messages": [*waiting["messages"], {"role": "assistant", "content": APPLE}]}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(waiting) + "\n")
    assert sources.read(str(path)).format == "prompts"
    path.write_text("".join(json.dumps(row) + "\n" for row in (waiting, waiting, answered)))
    assert sources.read(str(path)).format == "demonstrations"


# --- containers ---


def as_lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_arrow(rows: list[Row]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


CONTAINERS: dict[str, Callable[[list[Row]], bytes]] = {
    "x.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "x.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "x.parquet": as_parquet,
    "x.arrow": as_arrow,
}


def read(folder: Path, name: str, data: bytes, format_: str | None = None) -> tuple[str, list[Parsed]]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    reading = sources.read(str(folder / name), format=format_)
    return reading.format, [parsed for _, parsed in reading]


@pytest.mark.parametrize(("name", "row"), LAYOUTS)
def test_a_row_says_the_same_in_every_container(name: str, row: Row, tmp_path: Path) -> None:
    """In typed tables every object has the keys of all others, as nulls."""
    expected = read(tmp_path, "x.jsonl", as_lines([row, row]))
    assert expected[0] == name
    assert not any(isinstance(part, SetAside) for parsed in expected[1] for part in parts(parsed))
    for container, write in CONTAINERS.items():
        assert read(tmp_path, container, write([row, row])) == expected, container


def test_null_keys_of_typed_tables_are_no_part_of_a_call(tmp_path: Path) -> None:
    def calling(**arguments: Any) -> Row:
        call = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": call}]
        return {"messages": turns, "tools": [{"name": "f", "parameters": {name: {"type": "x"} for name in arguments}}]}

    rows = [calling(a=1), calling(b="x")]
    expected = read(tmp_path, "x.jsonl", as_lines(rows))
    for container, write in CONTAINERS.items():
        assert read(tmp_path, container, write(rows)) == expected


FLAT = [(name, row) for name, row in LAYOUTS if all(isinstance(value, str | int | bool) for value in row.values())]


@pytest.mark.parametrize(("name", "row"), FLAT)
@pytest.mark.parametrize(("container", "delimiter"), [("x.csv", ","), ("x.tsv", "\t")])
def test_flat_rows_say_the_same_in_tables_of_text(
    container: str, delimiter: str, name: str, row: Row, tmp_path: Path
) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=delimiter)
    table.writerows([row.keys(), row.values()])
    expected = read(tmp_path, "x.jsonl", as_lines([row]))
    assert read(tmp_path, container, text.getvalue().encode()) == expected
    assert expected[0] == name


@pytest.mark.parametrize(("name", "row"), [row for row in LAYOUTS if row[0] in ("ultrafeedback", "prompts")][:2])
def test_layouts_are_read_from_an_object_store(name: str, row: Row, s3: Any, tmp_path: Path) -> None:
    import fsspec

    url = f"{s3.bucket()}/rows.parquet"
    with fsspec.open(url, "wb") as stream:
        stream.write(as_parquet([row]))
    reading = sources.read(url)
    found = [parsed for _, parsed in reading]
    assert (reading.format, len(found)) == (name, 1)
    assert not isinstance(found[0], SetAside)


@pytest.mark.parametrize(("name", "row"), LAYOUTS)
def test_no_other_format_takes_a_layout(name: str, row: Row) -> None:
    taking = [each.NAME for each in formats.FORMATS if not isinstance(each.parse(row), SetAside)]
    assert taking == [name]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": False}])
def test_the_turns_of_a_prompt_column_are_context_whatever_they_say(flag: Row) -> None:
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", **flag}]
    row = {"prompt": [*before, {"role": "user", "content": "Name a fruit."}], "chosen": APPLE, "rejected": STONE}
    found = explicit.parse(row)
    assert isinstance(found, Comparison)
    assert [turn.scored for turn in found.prompt] == [None] * 3
    assert (found.chosen, found.rejected) == (said(APPLE), said(STONE))
