"""What becomes of a conversation: ids that follow the templated prompt exactly, and end where the model ends."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.errors import UserError
from prefdata.records import Message, Messages, SetAside
from prefdata.tokens import Conversation, Limits, Rendered, Renderer, Tokenised, differences, shared_prefix
from tests.samples import samples_dir
from tests.tokenizers_small import CHAT_STYLES, TEMPLATES, USABLE_STYLES, build, template

DATE = {"strftime_now": "2024-07-26"}
HELLO: Messages = (Message("user", "Hello there! How are you?"),)
FINE: Messages = (Message("assistant", "I'm fine, thanks."),)
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {"type": "object"}}}

# pieces that meet badly at the seams of a template: whitespace, newlines, other scripts, thoughts
_PIECES = ["The answer", " is 42", "\n", "\n\n", " ", "\t", "été", "世界", "?", "🙂", "<think>", "</think>", "A", "\r"]
_ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
texts = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=6).map("".join) | _ANY


@cache
def renderer(style: str) -> Renderer:
    """One renderer per style, its clock frozen."""
    with TemporaryDirectory() as folder:
        model = str(build(Path(folder), style))
        return Renderer.load(model, template_args=DATE if style == "llama3" else None)


def turns(*contents: str) -> Messages:
    """User and assistant in turn, the user first."""
    return tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))


def prompt_ids(of: Renderer, prompt: Messages = HELLO, tools: str | None = None) -> list[int]:
    ids = of.prompt(prompt, tools)
    assert not isinstance(ids, SetAside), ids
    return ids


def answer(of: Renderer, prompt: Messages = HELLO, completion: Messages = FINE, tools: str | None = None) -> Rendered:
    found = of.completion(prompt, completion, tools)
    assert not isinstance(found, SetAside), found
    return found


def as_transformers_does(of: Renderer, messages: Messages, header: bool) -> list[int]:
    """The oracle: transformers' own rendering, the whole text tokenised at once."""
    date = {"date_string": "26 Jul 2024"}  # what the frozen clock says
    ids = of.tokenizer.apply_chat_template(
        [message.as_dict() for message in messages], add_generation_prompt=header, return_dict=False, **date
    )
    return list(ids)


def by_the_rule(of: Renderer, prompt: Messages, completion: Messages) -> list[int] | str:
    """The rule as the design states it, in its simplest form."""
    before = as_transformers_does(of, prompt, header=True)
    whole = as_transformers_does(of, prompt + completion, header=False)
    if whole[: len(before)] != before:
        return "template_not_prefix"
    ends = [i for i in range(len(before), len(whole)) if whole[i] in of.end_ids]
    return whole[len(before) : ends[0] + 1] if ends else "no_end_token"


# the rule


@pytest.mark.parametrize("style", CHAT_STYLES)
@settings(max_examples=40, deadline=None)
@given(contents=st.lists(texts, min_size=1, max_size=3), said=texts)
def test_a_completion_is_what_follows_the_prompt_in_transformers_rendering(
    style: str, contents: list[str], said: str
) -> None:
    of = renderer(style)
    prompt = turns(*contents) if len(contents) != 2 else (Message("system", contents[0]), Message("user", contents[1]))
    completion: Messages = (Message("assistant", said),)
    found = of.render([Conversation(prompt, (completion,))])[0]
    if isinstance(found, SetAside):
        assert (style, found.reason, prompt[0].role) == ("gemma2", "template_refused", "system")
        return
    assert found.prompt_ids == as_transformers_does(of, prompt, header=True)
    rendered, expected = found.answers[0], by_the_rule(of, prompt, completion)
    assert (rendered.reason if isinstance(rendered, SetAside) else rendered.ids) == expected
    if isinstance(rendered, Rendered):
        assert rendered.finish == "stop"
        assert rendered.ids[-1] in of.end_ids
        assert 0 <= rendered.content_start < len(rendered.ids)


@pytest.mark.parametrize("style", USABLE_STYLES)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5))
def test_a_row_does_not_depend_on_the_batch_it_stands_in(style: str, rows: list[tuple[str, str, str]]) -> None:
    of = renderer(style)
    asked = [Conversation(turns(q), (turns(q, a)[1:], turns(q, b)[1:])) for q, a, b in rows]
    together = of.render(asked)
    assert together == [of.render([one])[0] for one in asked]
    for conversation, found in zip(asked, together, strict=True):
        assert isinstance(found, Tokenised)
        assert found.prompt_ids == of.prompt(conversation.prompt)
        assert list(found.answers) == [of.completion(conversation.prompt, side) for side in conversation.answers]


@pytest.mark.parametrize("style", CHAT_STYLES)
def test_the_answer_ends_with_the_turn_and_template_text_after_it_is_cut(style: str) -> None:
    of = renderer(style)
    ids = answer(of).ids
    whole = as_transformers_does(of, HELLO + FINE, header=False)
    rest = whole[len(prompt_ids(of)) + len(ids) :]
    assert of.tokenizer.decode(rest).strip() == ""
    assert [i for i in ids if i in of.end_ids] == [ids[-1]]


@pytest.mark.parametrize("style", [style for style in USABLE_STYLES if style != "words"])
def test_decoding_an_answer_gives_its_text(style: str) -> None:
    of = renderer(style)
    rendered = answer(of, completion=(Message("assistant", "The sea is wide.\nThe sea is blue."),))
    assert of.decode(rendered.ids[rendered.content_start :]).strip() == "The sea is wide.\nThe sea is blue."


@pytest.mark.parametrize("style", CHAT_STYLES)
def test_the_prompt_is_tokenised_once_for_all_answers(style: str) -> None:
    """Behind the speed: only what follows the last special token of the prompt is tokenised again for each answer."""
    of = renderer(style)
    long = turns("The quick brown fox. " * 200)
    texts_ = of._write(Conversation(long, (FINE,)))
    assert not isinstance(texts_, SetAside)
    assert all(len(text) < 200 for text in (texts_.tail, *texts_.answers) if isinstance(text, str))


# what a template puts around an answer


def test_thinking_that_the_template_adds_is_no_content() -> None:
    of = renderer("qwen3")
    rendered = answer(of)
    assert of.tokenizer.decode(rendered.ids[: rendered.content_start]) == "<think>\n\n</think>\n\n"
    assert of.decode(rendered.ids[rendered.content_start :]) == "I'm fine, thanks."
    assert rendered.content_tokens == len(rendered.ids) - rendered.content_start - 1


def test_thinking_of_the_answer_itself_is_content() -> None:
    rendered = answer(renderer("qwen3"), completion=(Message("assistant", "<think>\nHm.\n</think>\n\nFine."),))
    assert rendered.content_start == 0


def test_an_argument_of_the_template_moves_the_thinking_into_the_prompt(tmp_path: Path) -> None:
    of = Renderer.load(str(build(tmp_path, "qwen3")), template_args={"enable_thinking": False})
    assert of.decode(prompt_ids(of)).endswith("<think>\n\n</think>\n\n")
    assert answer(of).content_start == 0
    assert of.fingerprint["template_args"] == {"enable_thinking": False}
    assert differences(renderer("qwen3").fingerprint, of.fingerprint) == [
        "the template argument enable_thinking is not given there and False here"
    ]


@pytest.mark.parametrize("style", ["llama3", "gemma3"])
def test_white_space_that_the_template_trims_leaves_no_content(style: str) -> None:
    assert answer(renderer(style), completion=(Message("assistant", " \n "),)).content_tokens == 0


def test_of_several_end_ids_after_an_answer_the_first_ends_it(tmp_path: Path) -> None:
    closing_twice = template("qwen25") + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    of = Renderer.load(str(build(tmp_path, "qwen25")), chat_template=closing_twice)
    assert answer(of) == answer(renderer("qwen25"))


def test_every_end_id_of_the_generation_config_counts(tmp_path: Path) -> None:
    of = renderer("gemma2")
    assert [of.tokenizer.convert_ids_to_tokens(i) for i in of.end_ids] == ["<eos>", "<end_of_turn>"]
    assert of.tokenizer.convert_ids_to_tokens(answer(of).ids[-1]) == "<end_of_turn>"
    single = Renderer.load(str(build(tmp_path, "llama3", end_ids=None)), template_args=DATE)
    assert single.end_ids == (single.tokenizer.eos_token_id,)


# dates and other arguments


def test_the_clock_is_frozen_at_the_recorded_date(tmp_path: Path) -> None:
    folder = str(build(tmp_path, "llama3"))
    today = Renderer.load(folder)
    assert set(today.fingerprint["template_args"]) == {"strftime_now"}
    text = today.tokenizer.decode(prompt_ids(renderer("llama3")))
    assert "Today Date: 26 Jul 2024\n" in text
    assert prompt_ids(today) != prompt_ids(renderer("llama3"))
    again = Renderer.like(renderer("llama3").fingerprint, folder)
    assert prompt_ids(again) == prompt_ids(renderer("llama3"))
    assert differences(renderer("llama3").fingerprint, again.fingerprint) == []
    assert [text for text in differences(today.fingerprint, again.fingerprint) if "strftime_now" in text]


def test_a_template_that_reads_no_clock_records_no_date() -> None:
    assert renderer("qwen25").fingerprint["template_args"] == {}


def test_template_arguments_must_be_recordable(tmp_path: Path) -> None:
    folder = str(build(tmp_path, "llama3"))
    for wrong in ({"strftime_now": "yesterday"}, {"anything": object()}):
        with pytest.raises(UserError, match="cannot be recorded"):
            Renderer.load(folder, template_args=wrong)


# what is set aside


@pytest.mark.parametrize(
    ("style", "prompt", "reason", "detail"),
    [
        ("gemma2", (Message("system", "Be brief."), *HELLO), "template_refused", "System role not supported"),
        ("mistral", turns("One?", "Two.", "Three?", "Four."), "template_refused", None),
        ("gemma3", (*HELLO, *HELLO), "template_refused", "must alternate"),
        ("plain", (Message("tool", "42"), *HELLO), "template_refused", "'tool'"),
    ],
)
def test_what_the_template_refuses(style: str, prompt: Messages, reason: str, detail: str | None) -> None:
    found = renderer(style).completion(prompt, FINE)
    assert isinstance(found, SetAside)
    assert found.reason == reason
    assert detail is None or detail in found.detail


def test_a_template_that_moves_the_system_turn_is_not_a_prefix() -> None:
    # Mistral's template writes it before the last user turn, and only when that is the last turn of all
    found = renderer("mistral").completion((Message("system", "Be brief."), *HELLO), FINE)
    assert isinstance(found, SetAside)
    assert found.reason == "template_not_prefix"
    assert "Be brief." in found.detail


def test_tokens_that_merge_across_the_seam_are_not_a_prefix(tmp_path: Path) -> None:
    seamless = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    of = Renderer.load(str(build(tmp_path, "plain")), chat_template=seamless)
    asked = turns("What is the ans")
    assert isinstance(of.completion(asked, (Message("assistant", " is 42."),)), Rendered)
    merged = of.completion(asked, (Message("assistant", "wer is 42."),))
    assert isinstance(merged, SetAside)
    assert merged.reason == "template_not_prefix"
    assert "answer" in merged.detail


@pytest.mark.parametrize("style", USABLE_STYLES)
def test_the_spelling_of_a_special_token_in_a_text_is_set_aside(style: str) -> None:
    of = renderer(style)
    for id_ in of.end_ids:
        spelling = of.tokenizer.convert_ids_to_tokens(id_)
        for prompt, completion in ((turns(f"Hi {spelling}"), FINE), (HELLO, (Message("assistant", f"a{spelling}b"),))):
            found = of.completion(prompt, completion)
            assert found == SetAside("special_token_in_text", spelling)


def test_a_special_token_hidden_in_json_is_found() -> None:
    of = renderer("qwen25")
    calls = json.dumps([{"function": {"name": "add", "arguments": {"text": "<|im_end|>"}}}]).replace("<", "\\u003c")
    asked = (*HELLO, Message("assistant", "", tool_calls=calls), Message("tool", "42"))
    assert of.prompt(asked) == SetAside("special_token_in_text", "<|im_end|>")
    tools = json.dumps([TOOL | {"note": "<|im_start|>"}]).replace("<", "\\u003c")
    assert of.prompt(HELLO, tools) == SetAside("special_token_in_text", "<|im_start|>")


def test_half_a_surrogate_pair_is_set_aside_and_spoils_no_other_row() -> None:
    of = renderer("llama3")
    broken, whole = of.render([Conversation(turns("a\ud83d"), (FINE,)), Conversation(HELLO, (FINE,))])
    assert isinstance(broken, SetAside)
    assert broken.reason == "lone_surrogate"
    broken.detail.encode("utf-8")
    assert isinstance(whole, Tokenised)


def test_an_answer_is_one_assistant_turn() -> None:
    for wrong in ((), HELLO, FINE + FINE):
        found = renderer("qwen25").completion(HELLO, wrong)
        assert isinstance(found, SetAside)
        assert found.reason == "no_assistant_turn"


# tools


def test_tools_and_calls_reach_the_template_as_objects() -> None:
    of = renderer("qwen25")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    wire = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}

    def after_calling(spelling: dict[str, Any]) -> list[int]:
        turn = Message("assistant", "", tool_calls=json.dumps([spelling]))
        return prompt_ids(of, (*HELLO, turn, Message("tool", "1", name=None)), json.dumps([TOOL]))

    one, other = after_calling(call), after_calling(wire)
    assert one == other
    text = of.tokenizer.decode(one)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
    assert '<tools>\n{"type": "function", "function": {"name": "add", "description": "Adds"' in text
    assert "None" not in text


def test_a_call_is_an_answer_with_content() -> None:
    of = renderer("llama3")
    calls = json.dumps([{"function": {"name": "add", "arguments": {"a": 1}}}])
    rendered = answer(of, completion=(Message("assistant", "", tool_calls=calls),), tools=json.dumps([TOOL]))
    assert of.decode(rendered.ids) == '{"name": "add", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("style", "tools", "reason"),
    [
        ("gemma3", json.dumps([TOOL]), "template_refused"),
        ("plain", json.dumps([TOOL]), "template_refused"),
        ("qwen25", "{", "wrong_type"),
        ("qwen25", "{}", "wrong_type"),
    ],
)
def test_tools_are_never_left_out_in_silence(style: str, tools: str, reason: str) -> None:
    found = renderer(style).prompt(HELLO, tools)
    assert isinstance(found, SetAside)
    assert found.reason == reason


# the plain form


def test_plain_text_is_its_tokens_and_an_end_token() -> None:
    of = renderer("plain")
    bos, eos = of.tokenizer.bos_token_id, of.tokenizer.eos_token_id

    def bare(text: str) -> list[int]:
        return list(of.tokenizer(text, add_special_tokens=False)["input_ids"])

    assert of.tokenizer(HELLO[0].content)["input_ids"][-1] == eos  # this tokenizer adds both, and the prompt keeps one
    assert prompt_ids(of) == [bos, *bare(HELLO[0].content)]
    assert answer(of) == Rendered([*bare(FINE[0].content), eos], 0, "stop")
    assert of.plain


def test_a_plain_answer_ends_where_the_model_stops(tmp_path: Path) -> None:
    of = Renderer.load(str(build(tmp_path, "plain", end_ids=[7])))  # not the tokenizer's own end token
    assert answer(of).ids == [*answer(renderer("plain")).ids[:-1], 7]


def test_plain_conversations_are_transcripts() -> None:
    of = renderer("plain")
    asked = (Message("system", "Be brief."), *turns("One?", "Two.", "Three?"))
    expected = "\n\nSystem: Be brief.\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant:"
    assert of.tokenizer.decode(prompt_ids(of, asked), skip_special_tokens=True) == expected


# loading


def test_templates_can_be_given(tmp_path: Path) -> None:
    folder = str(build(tmp_path / "model", "qwen25"))
    own, plain = Renderer.load(folder), Renderer.load(folder, chat_template="plain")
    by_file = Renderer.load(folder, chat_template=str(TEMPLATES / "qwen3.jinja"))
    assert plain.plain
    assert prompt_ids(plain) == own.tokenizer(HELLO[0].content, add_special_tokens=False)["input_ids"]
    assert by_file.fingerprint["template"] == template("qwen3")
    for one in (own, plain, by_file):
        again = Renderer.like(one.fingerprint)
        assert differences(one.fingerprint, again.fingerprint) == []
        assert prompt_ids(again) == prompt_ids(one)
    assert [text for text in differences(own.fingerprint, plain.fingerprint) if "plain here" in text]
    assert len(differences(own.fingerprint, by_file.fingerprint)) == 1


def test_of_several_templates_the_one_for_tools_is_used_with_tools(tmp_path: Path) -> None:
    folder = str(build(tmp_path, "qwen25"))
    both = {"default": template("qwen3"), "tool_use": template("qwen25")}
    of = Renderer.load(folder, chat_template=both)
    tools = json.dumps([TOOL])
    assert prompt_ids(of) == prompt_ids(Renderer.load(folder, chat_template=template("qwen3")))
    assert prompt_ids(of, tools=tools) == prompt_ids(Renderer.load(folder), tools=tools)
    assert prompt_ids(Renderer.like(of.fingerprint)) == prompt_ids(of)
    with pytest.raises(UserError, match="none is called default"):
        Renderer.load(folder, chat_template={"tool_use": template("qwen25")})


def test_a_template_after_which_no_answer_follows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no answer follows its prompt.*<think>"):
        Renderer.load(str(build(tmp_path, "r1")))


def test_a_template_that_closes_no_turn_with_an_end_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'<end_of_turn>' \(5\).*'<eos>' \(1\).*generation_config.json"):
        Renderer.load(str(build(tmp_path, "gemma2", end_ids=[1])))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, "plain", end_ids=None)
    settings_ = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings_["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_), encoding="utf-8")
    with pytest.raises(UserError, match=r"no end token.*eos_token"):
        Renderer.load(str(folder))


@pytest.mark.parametrize("wrong", ["1", [99999], [True, "</s>"]])
def test_end_ids_that_are_no_tokens_are_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(UserError, match="none of its tokenizer's"):
        Renderer.load(str(build(tmp_path, "plain", end_ids=wrong)))


def test_what_is_no_model_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    empty, only_config = tmp_path / "empty", tmp_path / "only_config"
    empty.mkdir()
    only_config.mkdir()
    (only_config / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    broken = build(tmp_path / "broken", "plain")
    (broken / "generation_config.json").write_text("{", encoding="utf-8")
    for folder, says in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "file", "is a file"),
        (empty, "no tokenizer"),
        (only_config, "no vocabulary"),
        (broken, "cannot be read"),
    ):
        with pytest.raises(UserError, match=says):
            Renderer.load(str(folder))


def test_templates_that_cannot_be_used_are_refused_in_words(tmp_path: Path) -> None:
    folder = str(build(tmp_path, "qwen25"))
    for wrong, says in (
        (str(tmp_path / "nowhere.jinja"), "cannot be read"),
        ("{% if %}", "not a Jinja template"),
        ("{{ raise_exception('never') }}", "refuses a question and its answer"),
    ):
        with pytest.raises(UserError, match=says):
            Renderer.load(folder, chat_template=wrong)
    with pytest.raises(UserError, match="takes no arguments"):
        Renderer.load(folder, chat_template="plain", template_args={"a": 1})


# fingerprints


@pytest.mark.parametrize("style", USABLE_STYLES)
def test_the_digest_survives_saving(style: str, tmp_path: Path) -> None:
    assert_survives_saving(renderer(style), tmp_path)


@pytest.mark.parametrize("sample", ["models/stories260k", "tokenizers/gpt2"])
def test_the_digest_of_published_tokenizers_survives_saving(sample: str, tmp_path: Path) -> None:
    assert_survives_saving(Renderer.load(str(samples_dir() / sample)), tmp_path)


def assert_survives_saving(of: Renderer, folder: Path) -> None:
    """Saved, loaded and used with padding, a tokenizer is still the same one."""
    of.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(of.end_ids)}), encoding="utf-8")
    again = Renderer.load(str(folder), template_args=of.fingerprint["template_args"] or None)
    again.tokenizer.pad_token = again.tokenizer.eos_token
    again.tokenizer(["a", "a b c"], padding="max_length", truncation=True, max_length=2)
    assert again.fingerprint["digest"] == of.fingerprint["digest"]
    assert differences(of.fingerprint, again.fingerprint) == []
    assert prompt_ids(again) == prompt_ids(of)  # neither cut nor padded


def test_another_token_is_another_tokenizer(tmp_path: Path) -> None:
    of, other = renderer("qwen25"), Renderer.load(str(build(tmp_path, "qwen25")))
    assert differences(of.fingerprint, other.fingerprint) == []
    other = Renderer.load(str(build(tmp_path, "qwen25")))
    other.tokenizer.add_tokens(["the sea"])
    assert "the tokenizer is" in differences(of.fingerprint, other.fingerprint)[0]
    fewer = dict(of.fingerprint, end_ids=[2])
    assert differences(of.fingerprint, fewer) == ["answers end with ids [0, 2] there and [2] here"]


def test_a_fingerprint_can_stand_in_a_manifest() -> None:
    for style in USABLE_STYLES:
        fingerprint = renderer(style).fingerprint
        assert json.loads(json.dumps(fingerprint)) == fingerprint


# limits


def test_limits_are_those_of_the_model(tmp_path: Path) -> None:
    small = Renderer.load(str(build(tmp_path / "small", "plain", positions=128)))
    large = Renderer.load(str(build(tmp_path / "large", "plain", positions=100_000)))
    unknown = Renderer.load(str(build(tmp_path / "unknown", "plain", positions=None)))
    assert [of.limits().max_length for of in (small, large, unknown)] == [128, 2048, 2048]
    assert small.limits(128) == Limits(128)
    assert large.limits(4096).max_length == 4096
    with pytest.raises(UserError, match=r"128 tokens.*at most 128"):
        small.limits(129)


@pytest.mark.parametrize(
    "wrong",
    [{"max_length": 1}, {"min_answer_tokens": 0}, {"max_prompt_length": 0}, {"overflow": "guess"}],
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        dataclasses.replace(Limits(64), **wrong)


@given(ids=st.lists(st.integers(0, 9), min_size=1), room=st.integers(1, 12))
def test_a_cut_answer_is_a_prefix_without_an_end(ids: list[int], room: int) -> None:
    whole = Rendered([*ids, 99], 0, "stop")
    cut = whole.cut(room)
    assert cut.ids == whole.ids[:room]
    assert (cut.finish == "stop") == (99 in cut.ids) == (room > len(ids))
    assert cut.content_tokens == min(room, len(ids))


@given(one=st.lists(st.integers(0, 2)), other=st.lists(st.integers(0, 2)))
def test_shared_prefix_is_what_both_begin_with(one: list[int], other: list[int]) -> None:
    n = shared_prefix(one, other)
    assert one[:n] == other[:n]
    assert one[n : n + 1] != other[n : n + 1] or n == min(len(one), len(other))


# published tokenizers


def test_a_real_tokenizer_keeps_its_bos_and_gets_its_end() -> None:
    of = Renderer.load(str(samples_dir() / "models" / "stories260k"))
    assert prompt_ids(of)[0] == of.tokenizer.bos_token_id
    assert prompt_ids(of).count(of.tokenizer.bos_token_id) == 1
    assert answer(of).ids[-1] == of.tokenizer.eos_token_id
    assert of.decode(answer(of).ids) == FINE[0].content
    assert of.limits().max_length == 512
    assert of.completion(HELLO, (Message("assistant", "<s>gone</s>"),)) == SetAside("special_token_in_text", "<s>")
