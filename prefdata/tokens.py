"""Conversations -> token ids: what the prompt is, what the answer is, where it ends. The only place that decides it.

prompt ids = template(prompt, with the generation header). An answer = the ids that follow exactly that prefix in
template(prompt + answer), up to and including the first end id after the answer's text; template text after it is cut.

An answer of several turns (an assistant that calls a tool, the tool's output, the assistant again) is scored in its
assistant turns alone, as far as these do not say that they are not to be. Where such a turn begins is read off the
template's own text of all that comes before it, with the generation header; where it ends, off that of the conversation
up to it. If the template writes a turn otherwise once others follow, neither can be told, and the answer is set aside.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

from prefdata import models, vocabulary
from prefdata.errors import UserError
from prefdata.records import Message, Messages, SetAside
from prefdata.templates import PLAIN, ChatTemplate, Malformed, PlainTemplate, Refused, Template, texts_of, unescaped

DEFAULT_MAX_LENGTH = 2048
_SURROGATE = re.compile("[\ud800-\udfff]")
_DETAIL_CHARACTERS = 300
_PROBE_QUESTION = "probe-question"
_PROBE_ANSWER = "probe-answer"


@dataclass(frozen=True)
class Limits:
    """How many tokens a row may have, and what happens to an answer that has more."""

    max_length: int  # tokens of prompt and completion together
    max_prompt_length: int | None = None
    min_answer_tokens: int = 1  # a prompt that leaves less room than this is set aside
    overflow: Literal["truncate", "set_aside"] = "truncate"

    def __post_init__(self) -> None:
        if self.overflow not in ("truncate", "set_aside"):
            raise UserError(f"overflow is {self.overflow!r}; it can be truncate or set_aside.")
        if self.min_answer_tokens < 1:
            raise UserError(f"min_answer_tokens is {self.min_answer_tokens}; an answer needs at least 1 token.")
        if self.max_length <= self.min_answer_tokens:
            raise UserError(
                f"max_length is {self.max_length}, which leaves no room for a prompt and an answer of "
                f"{self.min_answer_tokens} tokens: raise it."
            )
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise UserError(f"max_prompt_length is {self.max_prompt_length}; a prompt needs at least 1 token.")

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Rendered:
    """The ids of one answer."""

    ids: list[int]
    content_start: int  # tokens that the template puts before the text of the answer's first turn
    finish: str  # "stop": the last id is an end id; "length": the answer was cut and has none
    mask: list[bool] | None = None  # which ids are scored; None: all

    @property
    def content_tokens(self) -> int:
        """Tokens of the answer itself, without the template's opening and the end id."""
        return max(0, len(self.ids) - self.content_start - (self.finish == "stop"))

    @property
    def scored_tokens(self) -> int:
        """Tokens that count."""
        return len(self.ids) if self.mask is None else sum(self.mask)

    def cut(self, room: int) -> "Rendered":
        """The answer in at most `room` tokens. A cut answer ends where it was cut: no end id is added."""
        if len(self.ids) <= room:
            return self
        mask = None if self.mask is None else self.mask[:room]
        return replace(self, ids=self.ids[:room], finish="length", mask=mask)


@dataclass(frozen=True)
class Conversation:
    """What a renderer takes: a prompt and any number of answers to it, each the turn or the turns that follow it."""

    prompt: Messages
    answers: tuple[Messages, ...] = ()
    tools: str | None = None


@dataclass(frozen=True)
class Tokenised:
    """What it gives back: the prompt's ids, and for every answer its ids or why it has none."""

    prompt_ids: list[int]
    answers: tuple[Rendered | SetAside, ...]


@dataclass(frozen=True)
class _Turn:
    """A scored turn of an answer of several: the text before it, generation header included, and up to its end."""

    before: str
    upto: str


@dataclass(frozen=True)
class _Answer:
    """An answer as text; of several turns also those that are scored."""

    text: str
    scored: tuple[_Turn, ...] = ()


@dataclass(frozen=True)
class _Texts:
    """A conversation as text, split where tokenising the parts gives the ids of the whole.

    `head` + `tail` is the templated prompt; an answer's texts start with `tail`, so that only the little between the
    last boundary and the answer is tokenised again for each answer.
    """

    head: str
    tail: str
    answers: tuple[_Answer | SetAside, ...]


class Renderer:
    """A tokenizer, a template with frozen arguments, and the ids that end an answer."""

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        template: Template,
        end_ids: tuple[int, ...],
        *,
        model_max_length: int | None = None,
        commit: str | None = None,
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.template = template
        self.end_ids = end_ids
        self.model_max_length = model_max_length
        self.commit = commit  # of a hub model
        self._special = vocabulary.special_pattern(tokenizer, end_ids)
        self._boundary: str | None = None
        self._opening = ""  # what the template puts before an answer's text, if that is always the same
        if isinstance(template, ChatTemplate):
            self._probe(template)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        chat_template: str | Mapping[str, str] | None = None,
        template_args: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> "Renderer":
        """From a local folder or a hub name.

        `chat_template`: None for the tokenizer's own (plain if it has none), "plain", a file with a Jinja template, or
        what a fingerprint holds as `template`. `template_args` are handed to the template and recorded; a template that
        reads the clock gets today's date unless `template_args["strftime_now"]` names another.
        """
        source = models.resolve(model, weights=False, remote_code=trust_remote_code)
        tokenizer = vocabulary.load(model, source.folder, trust_remote_code)
        template = _choose_template(tokenizer, chat_template, template_args)
        end_ids = vocabulary.end_ids(model, source.folder, tokenizer)
        most = vocabulary.max_length(model, source.folder, tokenizer, trust_remote_code)
        return cls(source.name, tokenizer, template, end_ids, model_max_length=most, commit=source.commit)

    @classmethod
    def like(
        cls, fingerprint: Mapping[str, Any], model: str | None = None, *, trust_remote_code: bool = False
    ) -> "Renderer":
        """With the template and arguments of a fingerprint; from its model, or from one that should agree with it."""
        commit = fingerprint.get("commit")
        return cls.load(
            model or (f"{fingerprint['name']}@{commit}" if commit else fingerprint["name"]),
            chat_template=fingerprint["template"],
            template_args=fingerprint["template_args"],
            trust_remote_code=trust_remote_code,
        )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What decides the ids, for the manifest; `differences` compares two of them."""
        source = self.template.source
        return {
            "name": self.name,
            "commit": self.commit,
            "digest": vocabulary.digest(self.tokenizer),
            "template": source if isinstance(source, str) else dict(source),
            "template_digest": hashlib.sha256(_template_bytes(source)).hexdigest(),
            "template_args": dict(self.template.args),
            "plain": self.plain,
            "end_ids": list(self.end_ids),
            "model_max_length": self.model_max_length,
        }

    @property
    def plain(self) -> bool:
        """There is no chat template: an answer is its text and an end token."""
        return isinstance(self.template, PlainTemplate)

    def limits(
        self,
        max_length: int | None = None,
        *,
        max_prompt_length: int | None = None,
        min_answer_tokens: int = 1,
        overflow: Literal["truncate", "set_aside"] = "truncate",
    ) -> Limits:
        """Limits that the model can hold. By default as many tokens as it has positions, and at most 2048."""
        most = self.model_max_length
        if max_length is not None and most is not None and max_length > most:
            raise UserError(
                f"max_length {max_length} is more than {self.name} can read ({most} tokens): ask for at most {most}."
            )
        if max_length is None:
            max_length = min(DEFAULT_MAX_LENGTH, most or DEFAULT_MAX_LENGTH)
        return Limits(max_length, max_prompt_length, min_answer_tokens, overflow)

    def prompt(self, prompt: Messages, tools: str | None = None) -> list[int] | SetAside:
        """The ids of a prompt, generation header included."""
        tokenised = self.render([Conversation(prompt, (), tools)])[0]
        return tokenised if isinstance(tokenised, SetAside) else tokenised.prompt_ids

    def completion(self, prompt: Messages, completion: Messages, tools: str | None = None) -> Rendered | SetAside:
        """The ids of an answer to a prompt, end id included."""
        tokenised = self.render([Conversation(prompt, (completion,), tools)])[0]
        return tokenised if isinstance(tokenised, SetAside) else tokenised.answers[0]

    def render(self, conversations: Sequence[Conversation]) -> list[Tokenised | SetAside]:
        """Ids for many conversations, tokenised in one go. Each result depends on its own conversation only."""
        written = [self._write(conversation) for conversation in conversations]
        ids = self._encode(chain.from_iterable(self._pieces(texts) for texts in written if isinstance(texts, _Texts)))
        return [texts if isinstance(texts, SetAside) else self._read(texts, ids) for texts in written]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text for a person to read, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _write(self, conversation: Conversation) -> _Texts | SetAside:
        tools = conversation.tools
        foreign = self._foreign(conversation.prompt) or (
            None if tools is None else self._foreign_text(unescaped(tools))
        )
        if foreign is not None:
            return foreign
        try:
            prompt = self.template.prompt(conversation.prompt, tools)
        except (Refused, Malformed) as error:
            return _refusal(error)
        cut = len(prompt) if self.plain else self._cut(prompt)
        answers = tuple(self._write_answer(conversation, answer, prompt, cut) for answer in conversation.answers)
        return _Texts(prompt[:cut], prompt[cut:], answers)

    def _write_answer(self, conversation: Conversation, answer: Messages, prompt: str, cut: int) -> _Answer | SetAside:
        if (wrong := _not_an_answer(answer) or self._foreign(answer)) is not None:
            return wrong
        try:
            if isinstance(self.template, PlainTemplate):
                return _Answer(self.template.answer(answer))
            whole = self.template.conversation(conversation.prompt + answer, conversation.tools)
            scored = self._write_turns(conversation, answer, whole) if len(answer) > 1 else ()
        except (Refused, Malformed) as error:
            return _refusal(error)
        for text in (prompt, *(text for turn in scored for text in (turn.before, turn.upto))):
            if not whole.startswith(text):
                return SetAside("template_not_prefix", _divergence(text, whole))
        return _Answer(whole[cut:], tuple(_Turn(turn.before[cut:], turn.upto[cut:]) for turn in scored))

    def _write_turns(self, conversation: Conversation, answer: Messages, whole: str) -> tuple[_Turn, ...]:
        """The scored turns of an answer of several."""
        assert isinstance(self.template, ChatTemplate)
        turns = []
        for number, turn in enumerate(answer):
            if turn.role == "assistant" and turn.scored is not False:
                before = self.template.prompt(conversation.prompt + answer[:number], conversation.tools)
                last = number == len(answer) - 1
                upto = conversation.prompt + answer[: number + 1]
                turns.append(_Turn(before, whole if last else self.template.conversation(upto, conversation.tools)))
        return tuple(turns)

    def _cut(self, prompt: str) -> int:
        return 0 if self._boundary is None else max(0, prompt.rfind(self._boundary))

    def _pieces(self, texts: _Texts) -> Iterable[str]:
        yield texts.head
        yield texts.tail
        yield texts.tail + self._opening
        for answer in texts.answers:
            if isinstance(answer, _Answer):
                yield answer.text
                for turn in answer.scored:
                    yield from (turn.before, turn.before + self._opening, turn.upto)

    def _encode(self, texts: Iterable[str]) -> dict[str, list[int]]:
        unique = list(dict.fromkeys(texts))
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # whoever used this tokenizer before may have left them on
        backend.no_padding()
        encodings = backend.encode_batch_fast(unique, add_special_tokens=False)
        return {text: encoding.ids for text, encoding in zip(unique, encodings, strict=True)}

    def _read(self, texts: _Texts, ids: Mapping[str, list[int]]) -> Tokenised:
        answers = tuple(
            answer if isinstance(answer, SetAside) else self._read_answer(texts.tail, answer, ids)
            for answer in texts.answers
        )
        return Tokenised(self._prompt_start + ids[texts.head] + ids[texts.tail], answers)

    def _read_answer(self, tail: str, answer: _Answer, ids: Mapping[str, list[int]]) -> Rendered | SetAside:
        whole = ids[answer.text]
        if self.plain:
            return Rendered([*whole, self._end_id], 0, "stop")
        span = self._span(tail, answer.text, ids)
        if isinstance(span, SetAside):
            return span
        start, content, end = span
        if not answer.scored:
            return Rendered(whole[start:end], content - start, "stop")
        return self._read_turns(answer, ids, start, content)

    def _read_turns(
        self, answer: _Answer, ids: Mapping[str, list[int]], start: int, content: int
    ) -> Rendered | SetAside:
        """An answer of several turns, up to the end of its last scored one."""
        whole = ids[answer.text]
        mask = [False] * len(whole)
        for turn in answer.scored:
            span = self._span(turn.before, answer.text, ids)
            if isinstance(span, SetAside):
                return span
            first, _, end = span
            upto = ids[turn.upto]
            if end > len(upto):
                return SetAside(
                    "no_end_token", f"none of the end ids {list(self.end_ids)} ends a scored turn before the last"
                )
            if whole[:end] != upto[:end]:
                return SetAside("template_not_prefix", _token_divergence(self.tokenizer, upto, whole))
            mask[first:end] = [True] * (end - first)
        return Rendered(whole[start:end], content - start, "stop", mask[start:end])

    def _span(self, before: str, text: str, ids: Mapping[str, list[int]]) -> tuple[int, int, int] | SetAside:
        """Where in the ids of `text` a turn starts, where its content does, and where it ends: past the first end id
        at or after its content."""
        prefix, whole = ids[before], ids[text]
        if whole[: len(prefix)] != prefix:
            return SetAside("template_not_prefix", _token_divergence(self.tokenizer, prefix, whole))
        opened = text.startswith(self._opening, len(before))
        content = shared_prefix(ids[before + self._opening], whole) if opened else len(prefix)
        ends = [whole.index(end, content) for end in self.end_ids if end in whole[content:]]
        if not ends:
            return SetAside("no_end_token", f"none of the end ids {list(self.end_ids)} follows the answer")
        return len(prefix), content, min(ends) + 1

    @cached_property
    def _prompt_start(self) -> list[int]:
        """What the tokenizer puts before a plain prompt (BOS), not what it puts after; a chat template has its own."""
        if not self.plain:
            return []
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return list(full[:at])

    @cached_property
    def _end_id(self) -> int:
        """The end id that a plain answer gets: the tokenizer's own, if the model stops at it."""
        eos = self.tokenizer.eos_token_id
        return eos if eos in self.end_ids else self.end_ids[0]

    def _foreign(self, messages: Messages) -> SetAside | None:
        found = (self._foreign_text(text) for message in messages for text in texts_of(message))
        return next((reason for reason in found if reason is not None), None)

    def _foreign_text(self, text: str) -> SetAside | None:
        """What a text may not hold: the spelling of a special token, or code points that are no characters."""
        if (special := self._special.search(text)) is not None:
            return SetAside("special_token_in_text", special.group())
        if not text.isascii() and (half := _SURROGATE.search(text)) is not None:
            return SetAside("lone_surrogate", f"{half.group()!a} at character {half.start()}")
        return None

    def _probe(self, template: ChatTemplate) -> None:
        """Ask the template for a simple conversation, and learn from it how answers open and close."""
        question = (Message("user", _PROBE_QUESTION),)
        try:
            prompt = template.prompt(question)
            whole = template.conversation((*question, Message("assistant", _PROBE_ANSWER)))
        except Refused as error:
            raise UserError(
                f"The chat template of {self.name} refuses a question and its answer ({error}): {_OTHER_TEMPLATE}"
            ) from error
        if not whole.startswith(prompt) or _PROBE_ANSWER not in whole[len(prompt) :]:
            raise UserError(self._unfollowed(_divergence(prompt, whole)))
        self._opening, _, closing = whole[len(prompt) :].partition(_PROBE_ANSWER)
        self._boundary = self._find_boundary(prompt, whole)
        found = self.completion(question, (Message("assistant", _PROBE_ANSWER),))
        if isinstance(found, SetAside):
            unclosed = found.reason == "no_end_token"
            raise UserError(self._unclosed(closing) if unclosed else self._unfollowed(found.detail))

    def _unfollowed(self, detail: str) -> str:
        return (
            f"With the chat template of {self.name} no answer follows its prompt: {detail}. "
            f"Give the template's argument that changes this (such as enable_thinking), or {_OTHER_TEMPLATE}"
        )

    def _unclosed(self, closing: str) -> str:
        seen = [f"{token!r} ({id_})" for id_, token in self._named(self._encode([closing])[closing])]
        ends = [f"{token!r} ({id_})" for id_, token in self._named(self.end_ids)]
        return (
            f"The chat template of {self.name} closes an answer with {', '.join(seen) or 'nothing'}, and none of it is "
            f"an end id of the model: {', '.join(ends)}. Put the id that ends a turn into eos_token_id of the model's "
            f"generation_config.json, or {_OTHER_TEMPLATE}"
        )

    def _named(self, ids: Iterable[int]) -> list[tuple[int, str]]:
        return [(id_, str(self.tokenizer.convert_ids_to_tokens(id_))) for id_ in ids]

    def _find_boundary(self, prompt: str, whole: str) -> str | None:
        """The special token that starts the generation header, if text can be tokenised apart before it.

        A tokenizer splits its input at such tokens before anything else, so the ids of the whole are those of the
        parts. That saves tokenising the prompt again for every answer.
        """
        added = list(self.tokenizer.added_tokens_decoder.values())
        last = max(
            (token for token in added if token.content in prompt), key=lambda t: prompt.rfind(t.content), default=None
        )
        if last is None or not last.special or last.normalized or last.lstrip or last.single_word:
            return None
        if any(vocabulary.overlap(last.content, other.content) for other in added if other.content != last.content):
            return None
        cut = prompt.rfind(last.content)
        ids = self._encode([whole, whole[:cut], whole[cut:]])
        return last.content if ids[whole] == ids[whole[:cut]] + ids[whole[cut:]] else None


_OTHER_TEMPLATE = "choose another template with --chat-template FILE (or plain)."


def _not_an_answer(answer: Messages) -> SetAside | None:
    """Why messages are no answer: it begins and ends with a scored assistant turn, and no two follow each other."""
    roles = [turn.role for turn in answer]
    if not roles or not roles[0] == roles[-1] == "assistant" or ("assistant", "assistant") in pairwise(roles):
        found = ", ".join(roles) or "none"
        return SetAside("no_assistant_turn", f"an answer begins and ends with the assistant; found: {found}")
    if answer[0].scored is False or answer[-1].scored is False:
        return SetAside("nothing_scored", "an answer begins and ends with a turn that is scored")
    return None


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    import numpy as np

    length = min(len(one), len(other))
    if length == 0 or one[0] != other[0]:
        return 0
    differ = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(differ[0]) if differ.size else length


def differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, how two fingerprints differ in what they do to a conversation; empty when they agree."""
    found = []
    if stored["digest"] != here["digest"]:
        found.append(
            f"the tokenizer is {stored['name']} ({stored['digest'][:12]}) there and "
            f"{here['name']} ({here['digest'][:12]}) here"
        )
    if stored["template_digest"] != here["template_digest"]:
        found.append(f"the chat template is {_template_name(stored)} there and {_template_name(here)} here")
    found += [
        f"the template argument {key} is {_value(stored, key)} there and {_value(here, key)} here"
        for key in sorted(stored["template_args"].keys() | here["template_args"].keys())
        if _value(stored, key) != _value(here, key)
    ]
    if sorted(stored["end_ids"]) != sorted(here["end_ids"]):
        found.append(f"answers end with ids {stored['end_ids']} there and {here['end_ids']} here")
    return found


def _value(fingerprint: Mapping[str, Any], key: str) -> str:
    return repr(fingerprint["template_args"][key]) if key in fingerprint["template_args"] else "not given"


def _template_name(fingerprint: Mapping[str, Any]) -> str:
    return PLAIN if fingerprint["plain"] else fingerprint["template_digest"][:12]


def _template_bytes(source: str | Mapping[str, str]) -> bytes:
    text = source if isinstance(source, str) else json.dumps(dict(source), sort_keys=True)
    return text.encode("utf-8")


def _refusal(error: Refused | Malformed) -> SetAside:
    reason = "wrong_type" if isinstance(error, Malformed) else "template_refused"
    return SetAside(reason, str(error)[:_DETAIL_CHARACTERS])


def _divergence(prompt: str, whole: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    return f"at character {at} the prompt goes on {prompt[at : at + 40]!r}, the conversation {whole[at : at + 40]!r}"


def _token_divergence(tokenizer: Any, prefix: Sequence[int], whole: Sequence[int]) -> str:
    at = shared_prefix(prefix, whole)
    ours, theirs = (tokenizer.convert_ids_to_tokens(list(ids[at : at + 1])) for ids in (prefix, whole))
    return f"the end of the prompt is the token {ours} alone and {theirs} with the answer"


def _choose_template(
    tokenizer: Any, chat_template: str | Mapping[str, str] | None, args: Mapping[str, Any] | None
) -> Template:
    source = chat_template or tokenizer.chat_template or PLAIN
    if source == PLAIN:
        if args:
            raise UserError(
                f"The plain template takes no arguments, and it was given {', '.join(sorted(args))}: leave them out."
            )
        return PlainTemplate()
    if isinstance(chat_template, str) and not ("{{" in chat_template or "{%" in chat_template):
        source = _read_template(Path(chat_template).expanduser())
    return ChatTemplate.freeze(source, tokenizer.special_tokens_map, args)


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The chat template {path} cannot be read ({error}): give the path of a Jinja file, or plain for none."
        ) from error
