"""Answers of several turns: which are scored, token by token, and what is set aside because it can't be told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.blocks import content_of
from prefdata.builds import add_reference
from prefdata.builds.job import run
from prefdata.records import Comparison, Completion, Judged, Message, Messages, SetAside
from prefdata.sources import conversations, demonstrations, openai_preference, unpaired
from prefdata.steps.tokenise import rows as rows_of
from prefdata.tokens import Limits, Rendered, Renderer
from prefdata.verify import verify
from tests import tiny_world
from tests.source_rows import OPENAI_CHAT, OPENAI_PREFERENCE, Row
from tests.test_builds import all_rows
from tests.test_gate import WIDE
from tests.test_ingest import do
from tests.test_tokens import renderer
from tests.tokenizers_small import CHAT_STYLES, build

USER, ASSISTANT = "user", "assistant"


def turn(role: str, content: str, **flags: Any) -> Row:
    return {"role": role, "content": content, **flags}


def chat(*flags: Any, name: str = "weight") -> Row:
    """A conversation of as many rounds as flags; None: the turn says nothing."""
    turns = []
    for number, flag in enumerate(flags):
        said = {} if flag is None else {name: flag}
        turns += [turn(USER, f"question {number}?"), turn(ASSISTANT, f"answer {number}.", **said)]
    return {"messages": turns}


def split(row: Row) -> tuple[list[str], list[tuple[str, bool]]]:
    """The prompt's contents, and the completion's with whether each is scored."""
    found = demonstrations.parse(row)
    assert isinstance(found, Completion), found
    assert all(turn.scored is None for turn in found.prompt)
    scored = [(turn.content, turn.role == ASSISTANT and turn.scored is not False) for turn in found.completion]
    return [turn.content for turn in found.prompt], scored


def reason(found: Any) -> str:
    assert isinstance(found, SetAside), found
    return found.reason


# --- which turns ---


def test_without_flags_the_last_turn_alone_is_the_answer() -> None:
    assert split(chat(None, None)) == (["question 0?", "answer 0.", "question 1?"], [("answer 1.", True)])


@pytest.mark.parametrize("name", ["weight", "train", "loss"])
def test_the_answer_goes_from_the_first_scored_turn_to_the_last(name: str) -> None:
    prompt, completion = split(chat(False, True, False, True, False, name=name))
    assert prompt == ["question 0?", "answer 0.", "question 1?"]
    assert completion == [
        ("answer 1.", True),
        ("question 2?", False),
        ("answer 2.", False),
        ("question 3?", False),
        ("answer 3.", True),
    ]


def test_a_turn_that_says_nothing_beside_others_that_do_is_scored() -> None:
    """As OpenAI, axolotl and ms-swift have it."""
    assert split(chat(0, None, None))[1] == [("answer 1.", True), ("question 2?", False), ("answer 2.", True)]


def test_a_conversation_that_scores_its_last_turn_alone_is_the_one_without_flags() -> None:
    assert demonstrations.parse(chat(0, 0, 1)) == demonstrations.parse(chat(None, None, None))
    found = demonstrations.parse(OPENAI_CHAT)
    assert isinstance(found, Completion)
    assert found.completion == (Message(ASSISTANT, "An apple."),)


def test_a_tools_output_inside_of_an_answer_is_not_scored() -> None:
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    rows = [
        turn(USER, "go"),
        turn(ASSISTANT, "", tool_calls=call, weight=1),
        turn("tool", "1"),
        turn(ASSISTANT, "done"),
    ]
    assert split({"messages": rows})[1] == [("", True), ("1", False), ("done", True)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(0, 0), "nothing_scored"),
        (chat(0.5, 1), "scoring_unsupported"),
        (chat("1", 1), "scoring_unsupported"),
        (chat([1], 1), "scoring_unsupported"),
        ({"messages": [turn(USER, "x", train=True), turn(ASSISTANT, "y", train=True)]}, "scoring_unsupported"),
        ({"messages": [turn(USER, "x"), turn(ASSISTANT, "y", train=True, weight=0)]}, "scoring_unsupported"),
        (
            {"messages": [turn(USER, "x"), turn(ASSISTANT, "y", train_detail=[{"begin_offset": 0, "train": True}])]},
            "scoring_unsupported",
        ),
        ({"messages": [turn(ASSISTANT, "y", weight=1), turn(USER, "x"), turn(ASSISTANT, "y")]}, "prompt_empty"),
        (
            {"messages": [turn(USER, "x"), turn(ASSISTANT, "", weight=1), turn(USER, "x"), turn(ASSISTANT, "y")]},
            "empty_turn",
        ),
    ],
)
def test_what_scores_no_whole_assistant_turn_is_set_aside(row: Row, expected: str) -> None:
    assert reason(demonstrations.parse(row)) == expected


def test_flags_are_read_in_judged_and_compared_conversations_too() -> None:
    judged = unpaired.parse({**chat(0, 1, 1), "label": True})
    assert isinstance(judged, Judged)
    assert len(judged.completion) == 3
    worse = [*chat(0, 1, 1)["messages"][:-1], turn(ASSISTANT, "worse", weight=1)]
    pair = conversations.parse({"chosen": chat(0, 1, 1)["messages"], "rejected": worse})
    assert isinstance(pair, Comparison)
    assert (len(pair.prompt), len(pair.chosen), len(pair.rejected)) == (3, 3, 3)
    flags_differ = chat(0, 0, 1)["messages"]
    assert (
        reason(conversations.parse({"chosen": chat(0, 1, 1)["messages"], "rejected": flags_differ}))
        == "contexts_differ"
    )


# --- which tokens ---

texts = st.lists(
    st.sampled_from(["The answer", " is 42", "\n\n", " ", "été", "世界", "?", "A"]), min_size=1, max_size=4
)
contents = texts.map("".join).filter(str.strip).map(str.strip)
# Qwen 3's template takes the thoughts out of a turn once a user turn follows
PREFIX_STABLE = tuple(style for style in CHAT_STYLES if style != "qwen3")


def several(contents: list[str], flags: list[bool]) -> Messages:
    """An answer of as many assistant turns as flags, with user turns between them."""
    turns: list[Message] = []
    for number, (content, flag) in enumerate(zip(contents, flags, strict=True)):
        turns += [Message(USER, f"And {number}?")] if number else []
        turns.append(Message(ASSISTANT, content, scored=None if flag else False))
    return tuple(turns)


@pytest.mark.parametrize("style", PREFIX_STABLE)
@settings(max_examples=25, deadline=None)
@given(said=st.lists(st.tuples(contents, st.booleans()), min_size=1, max_size=4))
def test_each_scored_turn_is_scored_as_if_it_were_the_only_answer(style: str, said: list[tuple[str, bool]]) -> None:
    of = renderer(style)
    prompt: Messages = (Message(USER, "Hello there!"),)
    flags = [True, *(flag for _, flag in said[1:-1]), True][: len(said)]
    answer = several([content for content, _ in said], flags)
    found = of.completion(prompt, answer)
    assert isinstance(found, Rendered), found
    mask = [True] * len(found.ids) if found.mask is None else found.mask
    assert len(mask) == len(found.ids)
    start = of.prompt(prompt)
    assert isinstance(start, list)
    whole, scored = start + found.ids, [False] * len(start) + mask
    expected = [False] * len(whole)
    for number, turn_ in enumerate(answer):
        if turn_.role == ASSISTANT and turn_.scored is not False:
            before = of.prompt(prompt + answer[:number])
            alone = of.completion(prompt + answer[:number], (turn_,))
            assert isinstance(before, list)
            assert isinstance(alone, Rendered)
            assert whole[len(before) : len(before) + len(alone.ids)] == alone.ids
            expected[len(before) : len(before) + len(alone.ids)] = [True] * len(alone.ids)
    assert scored == expected
    assert (found.mask is None) == (len(answer) == 1)


@pytest.mark.parametrize("style", ["qwen25", "llama3"])
def test_nothing_of_a_tools_output_is_scored(style: str) -> None:
    of = renderer(style)
    call = Message(ASSISTANT, "", tool_calls=json.dumps([{"function": {"name": "add", "arguments": {"a": 1}}}]))
    answer = (call, Message("tool", "sea sea sea"), Message(ASSISTANT, "It is wide."))
    tools = json.dumps([{"type": "function", "function": {"name": "add"}}])
    found = of.completion((Message(USER, "How wide?"),), answer, tools)
    assert isinstance(found, Rendered)
    assert found.mask is not None
    scored = of.tokenizer.decode([id_ for id_, counts in zip(found.ids, found.mask, strict=True) if counts])
    rest = of.tokenizer.decode([id_ for id_, counts in zip(found.ids, found.mask, strict=True) if not counts])
    assert "sea sea sea" in rest
    assert "sea" not in scored
    assert '"name": "add"' in scored
    assert "It is wide." in scored
    assert [id_ in of.end_ids for id_, counts in zip(found.ids, found.mask, strict=True) if counts].count(True) == 2


def test_a_template_that_writes_a_turn_otherwise_once_others_follow_tells_no_mask() -> None:
    """Qwen 3 puts empty thoughts before a last answer and before no other."""
    of = renderer("qwen3")
    answer = several(["one", "two"], [True, True])
    found = of.completion((Message(USER, "Hello"),), answer)
    assert reason(found) == "template_not_prefix"


def test_a_template_that_closes_no_turn_but_the_last_tells_no_mask(tmp_path: Path) -> None:
    open_ended = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.role != 'assistant' or loop.last %}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    of = Renderer.load(str(build(tmp_path, "qwen25")), chat_template=open_ended)
    found = of.completion((Message(USER, "Hello"),), several(["one", "two"], [True, True]))
    assert reason(found) in ("no_end_token", "template_not_prefix")


def test_the_plain_form_has_no_answer_of_several_turns() -> None:
    found = renderer("plain").completion((Message(USER, "Hello"),), several(["one", "two"], [True, True]))
    assert reason(found) == "template_refused"


@pytest.mark.parametrize("flags", [[False, True], [True, False], [False]])
def test_an_answer_begins_and_ends_with_what_is_scored(flags: list[bool]) -> None:
    found = renderer("qwen25").completion((Message(USER, "Hello"),), several(["one", "two"][: len(flags)], flags))
    assert reason(found) == "nothing_scored"


# --- in rows ---


def row_of(limits: Limits = WIDE) -> Any:
    record = demonstrations.parse(chat(1, 0, 1))
    assert isinstance(record, Completion)
    (found,) = rows_of([record], renderer("qwen25"), limits)
    return found


def test_a_row_counts_its_scored_tokens() -> None:
    row = row_of()
    assert row["completion_tokens"] == sum(row["completion_loss_mask"]) < len(row["completion_ids"])
    assert row["completion_finish"] == "stop"


def test_a_cut_answer_keeps_the_mask_of_what_is_left() -> None:
    whole = row_of()
    room = len(whole["prompt_ids"]) + len(whole["completion_ids"]) - 3
    cut = row_of(Limits(room))
    assert cut["completion_loss_mask"] == whole["completion_loss_mask"][:-3]
    assert (cut["completion_finish"], cut["completion_tokens"]) == ("length", whole["completion_tokens"] - 3)


TEMPLATE = (
    "{% for m in messages %}{{ 'w0' if m.role == 'user' else 'w1' }} {{ m.content }} "
    "{% if m.role == 'assistant' %}</s> {% endif %}{% endfor %}{% if add_generation_prompt %}w1 {% endif %}"
)


def words(*flags: int) -> Row:
    turns = []
    for number, flag in enumerate(flags):
        turns += [turn(USER, f"w{number + 2}"), turn(ASSISTANT, f"w{number + 20}", weight=flag)]
    return {"messages": turns}


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def test_masks_go_through_ingest_and_reference_sums(tmp_path: Path, root: str) -> None:
    model = tiny_world.save_model(tmp_path / "m", positions=96)
    template = tmp_path / "t.jinja"
    template.write_text(TEMPLATE)
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in (words(1, 0, 1), words(0, 0, 1), words(0, 0))))
    version = do(root, source, model=model, chat_template=str(template), split="train").version
    assert verify(version) == []
    first, second = all_rows(version)
    # w20 </s> w0 w3 w1 w21 </s> w0 w4 w1 w22 </s>
    assert first["completion_loss_mask"] == [True] * 2 + [False] * 8 + [True] * 2
    assert second["completion_loss_mask"] is None
    assert [line["reason"] for line in version.ledger().to_pylist()] == [None, None, "nothing_scored"]
    scored = run(add_reference.AddReference(add_reference.Options(source="v1"), root)).version
    assert verify(scored) == []
    for row in all_rows(scored):
        mask = row["completion_loss_mask"] or [True] * len(row["completion_ids"])
        counted = [logp for logp, counts in zip(row["ref_completion_token_logps"], mask, strict=True) if counts]
        assert len(counted) == row["completion_tokens"]
        assert sum(counted) == pytest.approx(row["ref_completion_logps"], abs=1e-4)


def test_one_conversation_with_two_masks_is_in_conflict_with_itself(tmp_path: Path, root: str) -> None:
    model = tiny_world.save_model(tmp_path / "m", positions=96)
    template = tmp_path / "t.jinja"
    template.write_text(TEMPLATE)
    source = tmp_path / "x.jsonl"
    rows = (words(1, 0, 1), words(1, 1, 1), words(0, 0, 0, 1))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    version = do(root, source, model=model, chat_template=str(template), split="train").version
    assert [line["reason"] for line in version.ledger().to_pylist()] == [
        "conflicting_labels",
        "conflicting_labels",
        None,
    ]


def test_a_preferred_output_of_several_turns_is_scored_in_the_assistants() -> None:
    output = [turn(ASSISTANT, "Let me see."), turn("tool", "sea"), turn(ASSISTANT, "Wide.")]
    record = openai_preference.parse({**OPENAI_PREFERENCE, "preferred_output": output})
    assert isinstance(record, Comparison)
    (row,) = rows_of([record], renderer("qwen25"), WIDE)
    assert isinstance(row, dict)
    assert row["chosen_tokens"] == sum(row["chosen_loss_mask"]) < len(row["chosen_ids"])
    assert row["rejected_loss_mask"] is None


# --- content blocks in templates ---


READS_BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'user' and m.content is not string %}{% for b in m.content %}{{ b.text }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_reads_blocks_is_given_them(tmp_path: Path) -> None:
    of = Renderer.load(str(build(tmp_path, "qwen25")), chat_template=READS_BLOCKS)
    in_blocks, as_text = (
        (Message(USER, content),) for content in (content_of(["The sea", " is wide"]), "The sea is wide")
    )
    assert of.prompt(in_blocks) == of.prompt(as_text)
    said = (Message(ASSISTANT, "It is."),)
    assert of.completion(in_blocks, said) == of.completion(as_text, said)
    # in an assistant's turn it would write Python's spelling of a list
    of_blocks = (Message(ASSISTANT, content_of(["It", " is."])),)
    assert reason(of.completion(as_text, of_blocks)) == "template_refused"


@pytest.mark.parametrize("style", [*CHAT_STYLES, "plain"])
def test_a_template_that_reads_no_blocks_is_given_none(style: str) -> None:
    found = renderer(style).prompt((Message(USER, content_of(["The sea", "is wide"])),))
    assert reason(found) == "template_refused"


def test_a_special_token_inside_of_a_block_is_found(tmp_path: Path) -> None:
    of = Renderer.load(str(build(tmp_path, "qwen25")), chat_template=READS_BLOCKS)
    for texts in (['say "', "<|im_end|>"], ["say <|im_", "end|>"]):
        assert reason(of.prompt((Message(USER, content_of(texts)),))) == "special_token_in_text"
