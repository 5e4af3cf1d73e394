"""Reading: every row becomes one record or one reason, whatever the bytes are."""

import csv
import gzip
import hashlib
import io
import json
from collections import defaultdict
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefdata import sources
from prefdata.errors import UserError
from prefdata.identity import digest, pair_row_id
from prefdata.records import Comparison, Completion, Message, Parsed, SetAside, Several
from prefdata.sources import conversations, demonstrations, explicit, hh, hub, readers
from prefdata.sources.splits import split_of_path
from prefdata.steps import gate
from schemas.reasons import REASONS
from tests.samples import samples_dir

PAIR = {"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A stone."}
ASKED, APPLE, STONE = (
    Message("user", "Name a fruit."),
    Message("assistant", "An apple."),
    Message("assistant", "A stone."),
)
FORMAT_NAMES = [format_.NAME for format_ in sources.FORMATS]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATION = [turn("user", "Name a fruit."), turn("assistant", "An apple.")]
OTHER_END = [turn("user", "Name a fruit."), turn("assistant", "A stone.")]


def lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return str(path)


def outcomes(reading) -> list[str]:
    """kept, or the reasons of what is not, of every row."""
    return [", ".join(sorted(ends(parsed))) for _, parsed in reading]


# what is set aside in sound files: answers of which none is preferred, messages that nothing is compared with
ORDINARY = ("kept", "equal_scores", "tie", "not_compared", "repeated_answer", "conflicting_labels")


def ends(parsed: Parsed) -> set[str]:
    """The reasons of what a row says that is set aside by its format; kept if nothing is."""
    parts = parsed.parts if isinstance(parsed, Several) else (parsed,)
    return {part.reason for part in parts if isinstance(part, SetAside)} or {"kept"}


def refusal(*paths, **options) -> str:
    with pytest.raises(UserError) as caught:
        list(sources.read(list(paths), **options))
    return str(caught.value)


# --- formats ---


def transcript(*texts, opening="Human"):
    names = ["Human", "Assistant"] if opening == "Human" else ["Assistant", "Human"]
    return "".join(f"\n\n{names[i % 2]}: {text}" for i, text in enumerate(texts))


def test_a_transcript_becomes_its_turns():
    row = {
        "chosen": transcript("Hi", "Hello", "A fruit?", "Apple."),
        "rejected": transcript("Hi", "Hello", "A fruit?", "A stone"),
    }
    assert hh.parse(row) == Comparison(
        prompt=(Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "A fruit?")),
        chosen=(Message("assistant", "Apple."),),
        rejected=(Message("assistant", "A stone"),),
    )


def test_a_prompt_that_is_the_head_of_a_transcript_reads_as_the_whole_transcripts_do():
    head, whole = transcript("Hi", ""), {"chosen": transcript("Hi", "Yes"), "rejected": transcript("Hi", "No")}
    head = head.rstrip()
    assert hh.parse({"prompt": head, "chosen": " Yes", "rejected": " No"}) == hh.parse(whole)
    assert hh.parse({"prompt": head, **whole}) == hh.parse(whole)
    # read as explicit text, the markers would have become part of what the user said
    assert explicit.parse({"prompt": head, "chosen": " Yes", "rejected": " No"}).reason == "other_format"


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (transcript("Hi"), "no_assistant_turn"),
        (transcript("Hi", "", "Still there?", "Yes"), "empty_turn"),
        (transcript("Hi", "Hello") + "\n\nAssistant: And?", "same_role_twice"),
        (transcript("Hi", "Human: Well"), "role_marker_in_text"),
        (transcript("Hi", "It is.  Human: Thanks.", "Why?", "So"), "role_marker_in_text"),
        (transcript("", "Hello"), "prompt_empty"),
        (transcript("Hello", opening="Assistant"), "prompt_empty"),
        (transcript("Ho", "Hello"), "contexts_differ"),
        (transcript("Hi", "Hello", "Well?", "Yes"), "contexts_differ"),
        ("Hi\n\nHuman: Hi\n\nAssistant: Yes", "other_format"),
        (7, "wrong_type"),
        (None, "missing_field"),
    ],
)
def test_a_transcript_that_is_not_whole_is_set_aside_on_either_side(side, reason):
    sound = transcript("Hi", "Hello")
    assert hh.parse({"chosen": sound, "rejected": side}).reason == reason
    assert hh.parse({"chosen": side, "rejected": sound}).reason == reason


def test_a_book_title_is_no_role_marker():
    row = {
        "chosen": transcript("A book?", "To Sell Is Human: The Surprising Truth"),
        "rejected": transcript("A book?", "No"),
    }
    assert isinstance(hh.parse(row), Comparison)


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {**PAIR, "prompt": CONVERSATION[:1]},
        {**PAIR, "chosen": CONVERSATION, "rejected": OTHER_END},  # UltraFeedback, binarised
        {"prompt": CONVERSATION[:1], "chosen": CONVERSATION, "rejected": OTHER_END},
        {"prompt": CONVERSATION[:1], "chosen": CONVERSATION[1:], "rejected": OTHER_END[1:]},
        {**PAIR, "chosen": CONVERSATION[1], "rejected": "A stone."},
        {**PAIR, "system": "", "tools": None, "label": None, "messages": CONVERSATION},
    ],
)
def test_every_spelling_of_an_explicit_pair_is_the_same_comparison(row):
    assert explicit.parse(row) == Comparison((ASKED,), (APPLE,), (STONE,))


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": CONVERSATION, "rejected": OTHER_END},
        {"conversations": CONVERSATION[:1], "chosen": CONVERSATION[1], "rejected": OTHER_END[1:]},
        {"messages": CONVERSATION[:1], "chosen": "An apple.", "rejected": "A stone."},
        {
            "conversations": [{"from": "human", "value": "Name a fruit."}],
            "chosen": {"from": "gpt", "value": "An apple."},
            "rejected": {"from": "gpt", "value": "A stone."},
        },
    ],
)
def test_every_spelling_of_two_conversations_is_the_same_comparison(row):
    assert conversations.parse(row) == Comparison((ASKED,), (APPLE,), (STONE,))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name a fruit.", "completion": "An apple."},
        {"prompt": CONVERSATION[:1], "response": CONVERSATION[1:]},
        {"messages": CONVERSATION},
        {"conversations": [{"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "An apple."}]},
    ],
)
def test_every_spelling_of_a_demonstration_is_the_same(row):
    assert demonstrations.parse(row) == Completion((ASKED,), (APPLE,))


@pytest.mark.parametrize("judged", [{"label": False}, {"chosen": "x"}, {"rejected": "x"}, {"responses": ["x"]}])
def test_a_judged_answer_is_no_demonstration(judged):
    assert demonstrations.parse({"messages": CONVERSATION, **judged}).reason == "other_format"


def test_a_shared_beginning_of_text_is_never_taken_for_a_prompt():
    row = {"chosen": "Question: why? Answer: so.", "rejected": "Question: why? Answer: no."}
    assert {format_.parse(row).reason for format_ in sources.FORMATS} <= {"other_format", "missing_field"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": "Name a tree."}, "contexts_differ"),
        ({"rejected": [turn("user", "Name a tree."), turn("assistant", "Oak")]}, "contexts_differ"),
        ({"rejected": CONVERSATION[:1]}, "no_assistant_turn"),
        ({"rejected": []}, "contexts_differ"),
        ({"rejected": [*CONVERSATION, turn("assistant", "Or a pear.")]}, "same_role_twice"),
        ({"rejected": [*CONVERSATION, turn("narrator", "He left.")]}, "unknown_role"),
        ({"rejected": [turn("user", "Name a fruit."), turn("assistant", None)]}, "missing_field"),
        (
            {"rejected": [turn("user", [{"type": "image_url", "image_url": {}}]), turn("assistant", "x")]},
            "not_text",
        ),
    ],
)
def test_a_whole_conversation_must_be_one_of_its_prompt(change, reason):
    assert explicit.parse({**PAIR, "chosen": CONVERSATION, "rejected": OTHER_END, **change}).reason == reason


def test_sides_must_agree_in_every_turn_before_the_answer():
    later = [*CONVERSATION, turn("user", "Another."), turn("assistant", "A pear.")]
    other = [*CONVERSATION, turn("user", "One more."), turn("assistant", "A stone.")]
    assert conversations.parse({"chosen": later, "rejected": other}).reason == "contexts_differ"
    of_another_prompt = {"prompt": later[:3], "chosen": other, "rejected": other}
    assert explicit.parse(of_another_prompt).reason == "contexts_differ"


@pytest.mark.parametrize("prompt", ["", " \n", []])
def test_an_empty_prompt_is_set_aside(prompt):
    assert explicit.parse({**PAIR, "prompt": prompt}).reason == "prompt_empty"


def test_empty_and_equal_answers_are_passed_on_for_the_gate_to_name():
    for rejected in ("", PAIR["chosen"]):
        record = explicit.parse({**PAIR, "rejected": rejected})
        assert record.rejected == (Message("assistant", rejected),)


def test_a_system_column_opens_the_conversation_once():
    system = Message("system", "Be brief.")
    by_column = explicit.parse({**PAIR, "system": "Be brief."})
    by_turn = explicit.parse({**PAIR, "prompt": [turn("system", "Be brief."), CONVERSATION[0]], "system": "Be brief."})
    assert by_column.prompt == by_turn.prompt == (system, ASKED)


def test_tool_calls_and_their_answers_are_kept_as_json_text():
    call = [{"type": "function", "function": {"name": "shop", "arguments": {"kind": "Öl"}}}]
    context = [
        turn("user", "Buy oil."),
        turn("assistant", None, tool_calls=call),
        turn("tool", "bought", tool_call_id="1"),
        turn("tool", "paid", tool_call_id="2"),
    ]
    row = {"prompt": context, "chosen": "Done.", "rejected": "No.", "tools": json.dumps([{"name": "shop"}])}
    record = explicit.parse(row)
    assert json.loads(record.prompt[1].tool_calls) == call
    assert record.prompt[1].content == ""
    assert record.prompt[2].tool_call_id == "1"
    assert json.loads(record.tools) == [{"name": "shop"}]
    assert explicit.parse({**row, "tools": "not json"}).reason == "wrong_type"


# --- scores ---


@pytest.mark.parametrize("place", [lambda scores: scores, lambda scores: {"metadata": scores}])
@pytest.mark.parametrize(
    "names",
    [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")],
)
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((5, 5.0), "equal_scores"),
        ((4, 5), "scores_inverted"),
        ((float("nan"), 5), "score_not_finite"),
        ((float("inf"), 5), "score_not_finite"),
        ((10**400, 5), "score_not_finite"),
        ((True, 0), "wrong_type"),
        (("high", "low"), "wrong_type"),
    ],
)
def test_scores_that_do_not_say_which_is_better_are_set_aside(values, reason, names, place):
    assert explicit.parse({**PAIR, **place(dict(zip(names, values, strict=True)))}).reason == reason


@pytest.mark.parametrize("values", [(7, 2.5), ("7", "2.5"), (7, None), (None, 2.5), (None, None)])
def test_sound_scores_are_kept_as_they_stand(values):
    record = explicit.parse({**PAIR, "score_chosen": values[0], "score_rejected": values[1]})
    assert (record.chosen_score, record.rejected_score) == tuple(None if v is None else float(v) for v in values)


def test_a_preference_is_a_probability():
    assert explicit.parse({**PAIR, "preference": 0.8}).preference == 0.8
    assert explicit.parse({**PAIR, "preference": 2}).reason == "preference_out_of_range"


# --- detection ---


def test_the_format_that_fits_most_rows_wins_and_the_rest_is_counted(tmp_path):
    demonstration = {"prompt": "p", "completion": "c"}
    reading = sources.read(write(tmp_path / "x.jsonl", lines(PAIR, demonstration, PAIR)))
    assert reading.format == "explicit"
    assert "explicit fits 2 of the first 3" in reading.why
    assert outcomes(reading) == ["kept", "missing_field", "kept"]


def test_a_row_set_aside_for_what_it_says_still_shows_its_format(tmp_path):
    reading = sources.read(write(tmp_path / "x.jsonl", lines({**PAIR, "chosen_score": 1, "rejected_score": 1})))
    assert (reading.format, outcomes(reading)) == ("explicit", ["equal_scores"])


def test_every_layout_fits_one_format_alone():
    sides = {"chosen": CONVERSATION, "rejected": OTHER_END}
    texts = {"chosen": transcript("Hi", "Yes"), "rejected": transcript("Hi", "No")}
    for row in (PAIR, sides, {**PAIR, **sides, "messages": CONVERSATION}, {"messages": CONVERSATION}, texts):
        fitting = [f.NAME for f in sources.FORMATS if not isinstance(f.parse(row), SetAside)]
        assert len(fitting) == 1, (row, fitting)


def test_an_unknown_layout_is_refused_with_every_format_and_why_it_failed(tmp_path):
    message = refusal(write(tmp_path / "x.jsonl", lines({"question": "?", "good": "a", "bad": "b"})))
    assert "'question', 'good', 'bad'" in message
    for format_ in sources.FORMATS:
        assert f"{format_.NAME}: " in message
        assert format_.NEEDS in message
    assert "prompt is absent" in message
    assert "chosen is absent" in message


def test_a_given_format_is_used_and_an_unknown_name_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(PAIR))
    assert outcomes(sources.read(path, format="hh")) == ["other_format"]
    message = refusal(path, format="dolly")
    assert "'dolly'" in message
    assert all(name in message for name in FORMAT_NAMES)


def test_files_of_two_formats_are_not_read_as_one(tmp_path):
    write(tmp_path / "a.jsonl", lines(PAIR, PAIR))
    write(tmp_path / "b.jsonl", lines({"prompt": "p", "completion": "c"}))
    message = refusal(str(tmp_path))
    assert "b.jsonl is in the format demonstrations" in message
    assert "explicit" in message
    assert outcomes(sources.read(str(tmp_path), format="explicit")) == ["kept", "kept", "missing_field"]


def test_every_reason_that_a_source_gives_is_in_words():
    package = Path(sources.__file__).parent
    named = {word for path in package.glob("*.py") for word in _reasons_in(path.read_text("utf-8"))}
    assert {"same_role_twice", "unreadable_row"} <= named <= REASONS.keys()


def _reasons_in(code: str) -> set[str]:
    pieces = code.replace("Refused(", "SetAside(").split('SetAside("')[1:]
    return {piece.split('"')[0] for piece in pieces}


# --- files ---


def as_csv(rows) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def as_arrow(rows, *, stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def as_parquet(rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


ROWS = [
    {"prompt": f'Say {n},\n"{n}"', "chosen": "日本\u2028語\x85\x1c" * n + str(n), "rejected": "no\r\nno"}
    for n in range(5)
]

STORED = {
    "x.jsonl": lines(*ROWS).encode(),
    "crlf.jsonl": lines(*ROWS).replace("\n", "\r\n").encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(*ROWS).encode(),
    "no-last-newline.jsonl": lines(*ROWS).rstrip("\n").encode(),
    "blank-lines.jsonl": b"\n" + lines(*ROWS).replace("\n", "\n \n\n").encode(),
    "lines.json": lines(*ROWS).encode(),
    "array.json": json.dumps(ROWS).encode(),
    "indented.json": b"\xef\xbb\xbf\n" + json.dumps(ROWS, ensure_ascii=False, indent=1).encode(),
    "data.json": json.dumps({"data": ROWS}).encode(),
    "data-indented.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
    "x.csv": as_csv(ROWS),
    "x.parquet": as_parquet(ROWS),
    "x.arrow": as_arrow(ROWS, stream=False),
    "stream.arrow": as_arrow(ROWS, stream=True),
    "x.jsonl.gz": gzip.compress(lines(*ROWS).encode()),
    "x.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "x.csv.gz": gzip.compress(as_csv(ROWS)),
}


@pytest.mark.parametrize("name", STORED)
def test_every_kind_of_file_gives_the_same_records(name, tmp_path):
    path = write(tmp_path / name, STORED[name])
    reading = sources.read(path)
    found = list(reading)
    assert [record.chosen[0].content for _, record in found] == [row["chosen"] for row in ROWS]
    assert [record.rejected[0].content for _, record in found] == ["no\r\nno"] * 5
    assert [str(row.origin) for row, _ in found] == [f"{path}:{n}" for n in range(5)]
    assert len({row.digest for row, _ in found}) == 5
    (entry,) = reading.sources
    stored = STORED[name]
    assert (entry["sha256"], entry["bytes"], entry["rows"]) == (hashlib.sha256(stored).hexdigest(), len(stored), 5)


def test_reading_twice_gives_the_same_and_counts_once(tmp_path):
    reading = sources.read(write(tmp_path / "x.jsonl", lines(*ROWS)))
    assert list(reading) == list(reading)
    assert [entry["rows"] for entry in reading.sources] == [5]


def test_a_stamp_changes_with_the_bytes_and_with_nothing_else(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(*ROWS))
    before = sources.read(path).stamps()
    write(tmp_path / "x.jsonl", lines(*ROWS))
    assert sources.read(path).stamps() == before
    write(tmp_path / "x.jsonl", lines(*ROWS) + "\n")
    assert sources.read(path).stamps() != before


def test_a_digest_is_that_of_the_line_as_it_stands(tmp_path):
    line = json.dumps(PAIR).encode()
    ((row, _),) = sources.read(write(tmp_path / "x.jsonl", line + b"\r\n"))
    assert row.digest == hashlib.sha256(line).hexdigest()


def test_an_array_is_streamed_across_any_chunk_edge(tmp_path, monkeypatch):
    path = write(tmp_path / "x.json", json.dumps(ROWS, ensure_ascii=False, indent=1))
    whole = list(sources.read(path))
    for chunk in (1, 2, 3, 7, 64):
        monkeypatch.setattr(readers, "CHUNK", chunk)
        assert list(sources.read(path)) == whole
        numbers = write(tmp_path / "numbers.json", "[12, 345 ,6]")
        assert outcomes(sources.read(numbers, format="hh")) == ["not_an_object"] * 3


def test_a_carriage_return_alone_ends_no_line(tmp_path):
    row = b'{"prompt": "p",\r"chosen": "a", "rejected": "b"}\n'
    for name in ("x.jsonl", "x.json"):
        assert outcomes(sources.read(write(tmp_path / name, row * 2))) == ["kept", "kept"]


def test_a_long_csv_field_is_read(tmp_path):
    content = as_csv([{**PAIR, "chosen": "word " * 100_000}])
    ((_, record),) = sources.read(write(tmp_path / "x.csv", content))
    assert len(record.chosen[0].content) == 500_000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "p", "chosen": ', "unreadable_row"),
        (b"\xff\xfe{}", "unreadable_row"),
        (b'{"prompt": "\xe9"}', "unreadable_row"),
        (b'{"prompt": "p", "chosen": "a", "chosen": "b", "rejected": "c"}', "unreadable_row"),
        (b'{"n": ' + b"9" * 5000 + b"}", "unreadable_row"),
        (b"[" * 100_000, "unreadable_row"),
        (b"[1, 2]", "not_an_object"),
        (b"null", "not_an_object"),
        (b"NaN", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"{}", "missing_field"),
        (b'{"prompt": "p", "chosen": "\\ud800", "rejected": "c"}', "lone_surrogate"),
        (b'{"prompt": "p", "chosen": NaN, "rejected": "c"}', "wrong_type"),
        (
            b'{"prompt": "p", "chosen": "a", "rejected": "c", "chosen_score": NaN, "rejected_score": 1}',
            "score_not_finite",
        ),
        (b'{"prompt": "p", "chosen": "a", "rejected": "c", "note": Infinity}', "kept"),
        (b'{"prompt": "p", "chosen": "a", "rejected": "c", "note": {"a": [null, {"b": null}]}}', "kept"),
        (b'{"prompt": "\\ud83d\\ude00", "chosen": "a", "rejected": "c"}', "kept"),
    ],
)
def test_a_bad_line_is_set_aside_alone(line, reason, tmp_path):
    sound = json.dumps(PAIR).encode()
    assert outcomes(sources.read(write(tmp_path / "x.jsonl", b"\n".join([sound, line, sound])))) == [
        "kept",
        reason,
        "kept",
    ]
    if reason != "unreadable_row" or line.startswith(b'{"n"') or line.count(b'"chosen"') == 2:  # JSON in shape
        array = write(tmp_path / "x.json", b"[" + b",\n".join([sound, line, sound]) + b"]")
        assert outcomes(sources.read(array)) == ["kept", reason, "kept"]


def test_bad_rows_of_a_csv_file_are_set_aside_alone(tmp_path):
    content = b"prompt,chosen,rejected\np,a,b\np,a\np,a,b,c\np,\xff,b\n\np,a,b\n"
    reading = sources.read(write(tmp_path / "x.csv", content))
    assert outcomes(reading) == ["kept", "unreadable_row", "unreadable_row", "unreadable_row", "kept"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(lines(*ROWS * 40).encode())[:-20]),
        ("not.jsonl.gz", lines(PAIR).encode()),
        ("corrupt.jsonl.gz", STORED["x.jsonl.gz"][:40] + b"\x00\x00\x00" + STORED["x.jsonl.gz"][43:]),
        ("cut.json", STORED["array.json"][:-30]),
        ("no-end.json", STORED["array.json"][:-1]),
        ("two.json", STORED["array.json"] * 2),
        ("comma.json", STORED["array.json"][:-1] + b",]"),
        ("bare.json", b'[{"prompt": tru}]'),
        ("cut-object.json", STORED["data-indented.json"][:-9]),
        ("cut.parquet", STORED["x.parquet"][:-30]),
        ("not.parquet", lines(PAIR).encode()),
        ("cut.arrow", STORED["x.arrow"][:-30]),
        ("cut-stream.arrow", STORED["stream.arrow"][:-400]),
        ("not.arrow", lines(PAIR).encode()),
        ("quote.csv", b'prompt,chosen,rejected\np,"a,b\n'),
        ("header.csv", b"prompt,chosen,chosen\np,a,b\n"),
    ],
)
def test_a_damaged_file_is_refused_by_name(name, content, tmp_path):
    path = write(tmp_path / name, content)
    assert f"{path} cannot be read" in refusal(path, format="explicit")


@pytest.mark.parametrize(("name", "mark"), [("x.csv", ";"), ("x.csv", "\t"), ("x.csv", "|"), ("x.tsv", ",")])
def test_columns_parted_by_something_else_are_told(name, mark, tmp_path):
    content = "".join(mark.join(fields) + "\n" for fields in (("prompt", "chosen", "rejected"), ("p", "a", "b")))
    path = write(tmp_path / name, content.encode())
    assert f"seems to be several parted by {mark!r}" in refusal(path)
    assert "part them by commas, or by tabs" in refusal(path)


def test_damage_past_the_first_rows_is_refused_when_it_is_met(tmp_path):
    whole = gzip.compress(lines(*(ROWS * 2000)).encode(), compresslevel=0)
    path = write(tmp_path / "x.jsonl.gz", whole[:-1000])
    reading = sources.read(path)
    with pytest.raises(UserError, match=r"x\.jsonl\.gz cannot be read"):
        list(reading)
    assert reading.sources == []


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_an_empty_file_is_refused(name, content, tmp_path):
    path = write(tmp_path / name, content)
    assert refusal(path) == f"There are no rows in {path}."


def test_nothing_readable_is_refused_with_the_first_problem(tmp_path):
    path = write(tmp_path / "x.jsonl", "hello\nworld\n")
    assert "could be read (not JSON: Expecting value" in refusal(path)
    assert outcomes(sources.read(path, format="hh")) == ["unreadable_row"] * 2


# --- what a name stands for ---


def test_a_folder_is_read_in_order_without_what_is_not_data(tmp_path):
    for name in ("train/b.jsonl", "train/a.jsonl", "test-00000-of-00001.jsonl", "other.jsonl"):
        write(tmp_path / name, lines({**PAIR, "prompt": name}))
    for name in ("README.md", "LICENSE", "dataset_info.json", "train/state.json", ".cache/x.jsonl", "_tmp.jsonl"):
        write(tmp_path / name, "{}")
    reading = sources.read(f"{tmp_path}/", name="fruit", license="MIT", origin="a garden")
    found = [(record.prompt[0].content, row.origin.split) for row, record in reading]
    assert found == [
        ("other.jsonl", None),
        ("test-00000-of-00001.jsonl", "test"),
        ("train/a.jsonl", "train"),
        ("train/b.jsonl", "train"),
    ]
    assert {(entry["name"], entry["license"], entry["origin"], entry["format"]) for entry in reading.sources} == {
        ("fruit", "MIT", "a garden", "explicit")
    }
    assert all((record.source, record.license) == ("fruit", "MIT") for _, record in reading)


def test_data_that_cannot_be_read_is_not_passed_by(tmp_path):
    write(tmp_path / "a.jsonl", lines(PAIR))
    write(tmp_path / "b.jsonl.zst", b"x")
    assert "b.jsonl.zst" in refusal(str(tmp_path))
    assert ".jsonl" in refusal(str(tmp_path / "b.jsonl.zst"))


def test_globs_and_repeated_names_read_each_file_once(tmp_path, monkeypatch):
    for name in ("one/train.jsonl", "two/train.jsonl", "two/note.txt"):
        write(tmp_path / name, lines(PAIR))
    monkeypatch.chdir(tmp_path)
    reading = sources.read(["*/train.jsonl", "one/train.jsonl", "two/*"])
    assert outcomes(reading) == ["kept", "kept"]
    assert [entry["path"] for entry in reading.sources] == ["one/train.jsonl", "two/train.jsonl"]
    assert [entry["name"] for entry in reading.sources] == ["one", "two"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    assert outcomes(sources.read(write(tmp_path / "a[1].jsonl", lines(PAIR)))) == ["kept"]


def test_an_fsspec_url_reads_like_a_file():
    memory = fsspec.filesystem("memory")
    memory.pipe("/fruit/test.jsonl", lines(PAIR).encode())
    try:
        for name in ("memory://fruit", "memory://fruit/test.jsonl", "memory://fruit/*.jsonl"):
            reading = sources.read(name)
            assert [row.origin.split for row, _ in reading] == ["test"]
            assert reading.sources[0]["path"].startswith("memory://")
    finally:
        memory.rm("/fruit", recursive=True)


def test_a_split_can_be_stated(tmp_path):
    path = write(tmp_path / "test.jsonl", lines(PAIR))
    assert [row.origin.split for row, _ in sources.read(path, split="train")] == ["train"]
    assert "'dev'" in refusal(path, split="dev")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("Train.jsonl.gz", "train"),
        ("validation-00000-of-00002.parquet", "test"),
        ("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "train"),
        ("valid_0.jsonl", "test"),
        ("dev/x.jsonl", "test"),
        ("data/eval/train.jsonl", "train"),
        ("data/train/my-eval-pairs.jsonl", "train"),
        ("my-eval-pairs.jsonl", None),
        ("kto_train.json", None),
        ("eval-of-pairs.jsonl", None),
        ("train_test.jsonl", None),
        ("contest.jsonl", None),
        ("test_foo/x.jsonl", None),
    ],
)
def test_splits_come_from_the_names_of_the_source(path, split):
    assert split_of_path(path) == split


@pytest.mark.parametrize(("name", "split"), [("train_prefs", "train"), ("test_sft", "test"), ("all", None)])
def test_a_data_sets_own_split_may_say_more_than_its_kind(name, split):
    assert hub.HubSplit([PAIR], "someone/fruit", name, "abc", None, False).split == split


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "/nowhere/at/all", "nowhere/*.jsonl", "a/b/c"])
def test_a_wrong_path_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr(hub, "splits", lambda *_: pytest.fail("asked the hub"))
    assert f"There is no file or folder {name}" in refusal(name)


def test_a_url_of_an_unknown_kind_is_refused():
    assert "gopher://x cannot be reached" in refusal("gopher://x")


def test_no_name_at_all_is_refused():
    assert "Nothing to read" in refusal()


# --- the hub, with local folders in its place ---


def test_a_name_that_is_no_path_is_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    split = hub.HubSplit([PAIR, {**PAIR, "chosen": None}], "someone/fruit", "train_prefs", "abc", "mit", False)
    monkeypatch.setattr(hub, "splits", lambda name, options: asked.append((name, options)) or [split])
    reading = sources.read("someone/fruit", hub_splits=["train_prefs"])
    assert outcomes(reading) == ["kept", "missing_field"]
    assert asked == [("someone/fruit", hub.Options(splits=("train_prefs",)))]
    (entry,) = reading.sources
    assert (entry["path"], entry["license"]) == ("someone/fruit/train_prefs", "mit")
    assert entry["origin"] == "https://huggingface.co/datasets/someone/fruit@abc"
    write(tmp_path / "someone/fruit/x.jsonl", lines(PAIR))  # now the path exists, and is what is meant
    assert outcomes(sources.read("someone/fruit")) == ["kept"]
    assert len(asked) == 1


def test_a_data_set_folder_is_read_through_its_card(tmp_path):
    split = "  - split: validation\n    path: rows/a.jsonl\n"
    card = f"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n{split}---\n"
    write(tmp_path / "fruit/README.md", card)
    write(tmp_path / "fruit/rows/a.jsonl", lines(PAIR, {**PAIR, "chosen": "A pear."}))
    write(tmp_path / "fruit/ledger/other.jsonl", lines({"status": "kept"}))
    reading = sources.read(str(tmp_path / "fruit"))
    assert [row.origin.split for row, _ in reading] == ["test", "test"]
    assert reading.sources[0]["name"] == "fruit"
    assert reading.sources[0]["rows"] == 2
    assert "no split nope" in refusal(str(tmp_path / "fruit"), hub_splits=["nope"])


def test_damage_to_a_data_set_is_refused_when_it_is_stamped(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: rows/a.parquet\n---\n"
    write(tmp_path / "fruit/README.md", card)
    stored = bytearray(as_parquet(ROWS * 400))
    stored[len(stored) // 3 : len(stored) // 3 + 2000] = bytes(2000)
    write(tmp_path / "fruit/rows/a.parquet", bytes(stored))
    reading = sources.read(str(tmp_path / "fruit"))  # its first rows are sound
    for act in (reading.stamps, lambda: list(reading)):
        with pytest.raises(UserError, match="fruit/train cannot be read") as refused:
            act()
        assert "\n" not in str(refused.value)


def test_a_file_that_is_out_of_reach_is_refused_when_it_is_stamped(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(PAIR))
    reading = sources.read(path)
    Path(path).unlink()
    with pytest.raises(UserError, match=r"x\.jsonl cannot be read \(FileNotFoundError"):
        reading.stamps()


@pytest.mark.parametrize("asked", [{"hub_config": "de"}, {"hub_revision": "main"}, {"hub_splits": ["train"]}])
def test_what_only_a_data_set_can_be_asked_is_not_ignored(asked, tmp_path):
    assert "Leave it out" in refusal(write(tmp_path / "x.jsonl", lines(PAIR)), **asked)


def test_one_of_several_configurations_must_be_named(tmp_path):
    entries = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("de", "en"))
    write(tmp_path / "fruit/README.md", f"---\nconfigs:\n{entries}---\n")
    for name in ("de", "en"):
        write(tmp_path / f"fruit/{name}.jsonl", lines({**PAIR, "prompt": name}))
    folder = str(tmp_path / "fruit")
    assert "['de', 'en']" in refusal(folder)
    ((_, record),) = sources.read(folder, hub_config="en")
    assert record.prompt[0].content == "en"
    assert "no revision 'main'" in refusal(folder, hub_config="en", hub_revision="main")


def test_a_folder_saved_by_datasets_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list([PAIR])}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    found = [row.origin.split for row, _ in sources.read(str(tmp_path / "saved"))]
    assert found == ["test"] + ["train"] * 5


def test_a_folder_without_data_is_refused(tmp_path):
    write(tmp_path / "fruit/.gitkeep", "")
    assert "cannot be loaded as a data set" in refusal(str(tmp_path / "fruit"))


# --- any bytes at all ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "narrator"]) | JSON,
        "content": st.text(max_size=4) | JSON,
        "from": st.sampled_from(["human", "gpt", "system"]) | JSON,
        "value": st.text(max_size=4) | JSON,
        "tool_calls": JSON,
    },
)
SIDE = st.text(max_size=4) | st.just("\n\nHuman: a\n\nAssistant: b") | TURN | st.lists(TURN, max_size=3) | JSON
COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "response",
    "messages",
    "conversations",
    "system",
    "tools",
    "metadata",
)
SCORES = ("chosen_score", "rejected_score", "score", "preference", "label")
ROW = st.fixed_dictionaries({}, optional={**dict.fromkeys(COLUMNS, SIDE), **dict.fromkeys(SCORES, JSON)})
LINE = st.one_of(
    ROW.map(lambda row: json.dumps(row).encode()),
    ROW.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20).map(lambda junk: junk.replace(b"\n", b"")),
)
QUIET = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(row=ROW)
def test_no_row_makes_a_format_raise(row):
    for format_ in sources.FORMATS:
        parsed = format_.parse(row)
        assert not isinstance(parsed, SetAside) or parsed.reason in REASONS


@QUIET
@given(content=st.lists(LINE, max_size=8), format_=st.sampled_from(FORMAT_NAMES))
def test_whatever_the_lines_every_row_is_counted_and_every_record_can_be_stored(content, format_, tmp_path):
    path = write(tmp_path / "x.jsonl", b"\n".join(content))
    expected = sum(bool(line.removeprefix(readers.BOM if n == 0 else b"").strip()) for n, line in enumerate(content))
    if not expected:
        assert "There are no rows" in refusal(path, format=format_)
        return
    reading = sources.read(path, format=format_)
    tally: dict[str, int] = defaultdict(int)
    for position, (row, record) in enumerate(reading):
        assert row.origin.position == position
        assert len(row.digest) == 64
        tally["kept" if not isinstance(record, SetAside) else record.reason] += 1
        if isinstance(record, Comparison):
            assert len(pair_row_id(record.prompt, record.chosen, record.rejected, record.tools)) == 64
            pa.array([turn.content for turn in (*record.prompt, *record.chosen, *record.rejected)], pa.string())
        elif isinstance(record, Completion):
            assert digest([turn.as_dict() for turn in record.completion])
        elif isinstance(record, SetAside):
            record.detail.encode("utf-8")
    assert sum(tally.values()) == reading.sources[0]["rows"] == expected
    assert tally.keys() <= {"kept", *REASONS}


@QUIET
@given(rows=st.lists(JSON, min_size=1, max_size=5), indent=st.sampled_from([None, 1]))
def test_an_array_holds_as_many_rows_as_items(rows, indent, tmp_path):
    path = write(tmp_path / "x.json", json.dumps(rows, indent=indent))
    assert len(outcomes(sources.read(path, format="hh"))) == len(rows)


# --- the sample data ---


# What may become of a row with a defect. Where a row has several, any of their reasons is right. A selection of pairs
# judges single answers and equal scores, so completions that have them are kept.
DEFECTS = {
    "same role twice in a row (chosen)": {"same_role_twice"},
    "same role twice in a row (rejected)": {"same_role_twice"},
    "context differs between the sides": {"contexts_differ", "same_role_twice"},
    "role marker inside the text (chosen)": {"role_marker_in_text"},
    "role marker inside the text (rejected)": {"role_marker_in_text"},
    "empty turn in the middle (chosen)": {"empty_turn"},
    "empty turn in the middle (rejected)": {"empty_turn"},
    "rejected answer empty": {"rejected_empty"},
    "rejected answer of at most 3 characters": {"kept"},
    "equal scores on both sides": {"equal_scores"},
    "both sides identical": {"identical_sides", "equal_scores"},
    "carriage return": {"kept"},
    "over 8,000 characters": {"kept"},
    "U+FFFD replacement character": {"replacement_character", "equal_scores"},
    "first/chosen side empty": {"chosen_empty", "rejected_empty"},
    "second/rejected side empty": {"chosen_empty", "rejected_empty"},
    "majority says tie": {"tie"},
    "value is not a string": {"wrong_type"},
    "prompt empty": {"prompt_empty"},
    "deleted message kept in the tree": {"deleted_message"},
    "all six comparisons are ties": {"tie"},
    "same completion repeated": {"repeated_answer", "conflicting_labels"},
    "same completion with different scores": {"conflicting_labels"},
    "fewer than two completions": {"kept"},
    "all scores equal": {"kept"},
    "empty completion": {"completion_empty"},
}


def judged(parsed: Parsed) -> set[str]:
    """The same after the gate."""
    parts = parsed.parts if isinstance(parsed, Several) else (parsed,)
    return ends(Several(tuple(part if isinstance(part, SetAside) else gate.check(part) or part for part in parts)))


def dirty_rows() -> dict[str, dict[int, set[str]]]:
    """The defects of each row of each file."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in (samples_dir() / "dirty_rows" / "examples.jsonl").read_text("utf-8").removesuffix("\n").split("\n"):
        example = json.loads(line)
        found[example["file"]][example["row"]].add(example["defect"])
    return found


def test_each_dirty_row_is_kept_or_set_aside_for_what_is_wrong_with_it():
    """Each where it stands: a message says something only in its tree."""
    checked = 0
    for file, rows in dirty_rows().items():
        found = [judged(parsed) for _, parsed in sources.read(str(samples_dir() / file))]
        for row, defects in rows.items():
            assert found[row] <= set.union(*(DEFECTS[defect] for defect in defects)), (file, row, defects, found[row])
            checked += len(defects)
    assert checked == 79


@pytest.mark.parametrize(
    ("folder", "name", "rows"),
    [
        ("hh_helpful", "hh", 1900),
        ("ultrafeedback_pairs", "explicit", 1000),
        ("conversational_pairs_en", "conversations", 200),
        ("conversational_pairs_zh", "conversations", 200),
        ("oasst1_trees", "oasst", 1418),
        ("human_judged/pandalm.json", "index_label", 704),
        ("human_judged/llmbar_natural.json", "index_label", 100),
        ("human_judged/llmbar_gptinst.json", "index_label", 92),
        ("ranked_qa", "fine_grained_qa", 350),
        ("scored_completions", "scored", 572),
        ("sentiment/imdb_completions.jsonl", "scored", 1800),
        ("unpaired", "unpaired", 200),
    ],
)
def test_real_files_are_recognised_and_nearly_all_of_their_rows_are_sound(folder, name, rows):
    reading = sources.read(str(samples_dir() / folder))
    found = outcomes(reading)
    assert (reading.format, len(found)) == (name, rows)
    content_reasons = sum(outcome not in ORDINARY for outcome in found)
    assert content_reasons <= 0.03 * rows


def test_known_defects_are_found_as_often_as_they_are_there():
    """The counts are those of the data's own description."""
    known = {
        "human_judged/pandalm.json": {"tie": 77, "wrong_type": 6, "prompt_empty": 1},
        "oasst1_trees/messages.jsonl": {"deleted_message": 24},
        "ranked_qa/fine_grained_qa.json": {"tie": 8},
        "scored_completions/tldr.jsonl": {"conflicting_labels": 17},
        "sentiment/imdb_completions.jsonl": {"completion_empty": 14},
    }
    for file, expected in known.items():
        found = [judged(parsed) for _, parsed in sources.read(str(samples_dir() / file))]
        assert {reason: sum(reason in each for each in found) for reason in expected} == expected, file
    tldr = [judged(parsed) for _, parsed in sources.read(str(samples_dir() / "scored_completions"))]
    assert sum(bool(each & {"conflicting_labels", "repeated_answer"}) for each in tldr) == 18


def test_each_two_ranked_replies_of_the_real_trees_are_a_pair():
    folder = samples_dir() / "oasst1_trees"
    messages = {row["message_id"]: row for row in map(json.loads, (folder / "messages.jsonl").open())}

    def hangs_on_nothing_deleted(name: str | None) -> bool:
        while name is not None:
            if name not in messages or messages[name]["deleted"]:
                return False
            name = messages[name]["parent_id"]
        return True

    ranked = defaultdict(list)
    for row in messages.values():
        if row["role"] == "assistant" and row["rank"] is not None and hangs_on_nothing_deleted(row["message_id"]):
            ranked[row["parent_id"]].append(row)
    expected = {
        (better["text"], worse["text"])
        for replies in ranked.values()
        for better in replies
        for worse in replies
        if better["rank"] < worse["rank"]
    }
    made = {
        (part.chosen[0].content, part.rejected[0].content)
        for _, parsed in sources.read(str(folder))
        for part in (parsed.parts if isinstance(parsed, Several) else ())
        if isinstance(part, Comparison)
    }
    assert made == expected
    assert len(made) > 500
