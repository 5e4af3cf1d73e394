"""Conversation -> text: a chat template with every argument frozen, or the plain form for models that have none.

A chat template may read the clock (`strftime_now`) and other arguments. All of them are fixed when a template is made,
so the same conversation gives the same text on any day; the date stands in `args["strftime_now"]`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prefdata.blocks import blocks_in, texts_in
from prefdata.errors import UserError
from prefdata.records import Message, Messages

PLAIN = "plain"
CLOCK = "strftime_now"
_SPEAKERS = {"system": "System", "developer": "System", "user": "Human", "assistant": "Assistant"}


class Refused(Exception):
    """The template cannot write this conversation; the text says why."""


class Malformed(Exception):
    """A JSON field of the conversation is not what it should be; the text says why."""


@dataclass(frozen=True)
class PlainTemplate:
    """For models without a chat template: the prompt's own text, or a transcript of several turns.

    One user message is its text as it is. Several turns are "\\n\\nHuman: ...\\n\\nAssistant: ...", the form of the HH
    data, with "\\n\\nAssistant:" at the end. An answer is its own text, tokenised apart from the prompt.
    """

    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """What `Renderer.load(chat_template=...)` takes to get this template again."""
        return PLAIN

    def prompt(self, prompt: Messages, tools: str | None = None) -> str:
        """The text that the answer follows."""
        if tools is not None:
            raise Refused("the plain template has no place for tools")
        if len(prompt) == 1 and prompt[0].role == "user":
            return _plain_content(prompt[0])
        turns = [f"\n\n{_speaker(turn)}: {_plain_content(turn)}" for turn in prompt]
        return "".join(turns) + "\n\nAssistant:"

    def answer(self, answer: Messages) -> str:
        """The text of an answer; the end token is added to its ids."""
        if len(answer) > 1:
            raise Refused("the plain template has no form for an answer of several turns")
        return _plain_content(answer[0])


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, the tokenizer's special tokens and its frozen arguments."""

    source: str | Mapping[str, str]  # one template, or `default` and `tool_use` as tokenizers name them
    special_tokens: Mapping[str, str]
    args: Mapping[str, Any]

    @classmethod
    def freeze(
        cls, source: str | Mapping[str, str], special_tokens: Mapping[str, str], args: Mapping[str, Any] | None = None
    ) -> "ChatTemplate":
        """Fix the arguments. A template that reads the clock gets today's date (UTC), unless one is given."""
        frozen = dict(args or {})
        if CLOCK not in frozen and any(re.search(rf"\b{CLOCK}\b", text) for text in _texts(source)):
            frozen[CLOCK] = datetime.now(UTC).date().isoformat()
        template = cls(source, special_tokens, frozen)
        template._check()
        return template

    def prompt(self, prompt: Messages, tools: str | None = None) -> str:
        """The conversation with the generation header: the text that the answer follows."""
        return self._render(prompt, tools, header=True)

    def conversation(self, messages: Messages, tools: str | None = None) -> str:
        """The conversation as a whole, the answer with everything the template puts around it."""
        return self._render(messages, tools, header=False)

    def _render(self, messages: Messages, tools: str | None, *, header: bool) -> str:
        turns = [template_turn(message) for message in messages]
        if any(_is_blocks(turn) for turn in turns):
            self._refuse_unread_blocks(turns, tools, header=header)
        return self._rendered(turns, tools, header=header)

    def _refuse_unread_blocks(self, turns: list[dict[str, Any]], tools: str | None, *, header: bool) -> None:
        """Refused unless a word in a block is written as the word itself: many templates would write Python's spelling
        of a list of blocks, and some read them in some roles only."""
        word = "probe"
        as_text, as_block = (
            self._rendered(
                [turn | {"content": content} if _is_blocks(turn) else turn for turn in turns], tools, header=header
            )
            for content in (word, [{"type": "text", "text": word}])
        )
        if as_text != as_block:
            raise Refused("the conversation holds content blocks, and the template does not read them")

    def _rendered(self, turns: list[dict[str, Any]], tools: str | None, *, header: bool) -> str:
        variables = dict(self.special_tokens) | dict(self.args)
        if CLOCK in variables:
            variables[CLOCK] = datetime.fromisoformat(variables[CLOCK]).strftime
        try:
            text: str = _compiled(self._text(tools)).render(
                messages=turns, tools=_tools(tools), documents=None, add_generation_prompt=header, **variables
            )
        except Malformed:
            raise
        except Exception as error:  # a template is foreign code: it may raise anything
            raise Refused(f"{type(error).__name__}: {error}") from error
        return text

    def _text(self, tools: str | None) -> str:
        if isinstance(self.source, str):
            text = self.source
        else:
            text = self.source.get("tool_use", self.source["default"]) if tools is not None else self.source["default"]
        if tools is not None and "tools" not in text:
            raise Refused("the conversation comes with tools, and the template does not read them")
        return text

    def _check(self) -> None:
        if not isinstance(self.source, str) and "default" not in self.source:
            raise UserError(
                f"The tokenizer has several chat templates ({', '.join(sorted(self.source))}) and none is called "
                "default: give one as a file with --chat-template."
            )
        for text in _texts(self.source):
            try:
                _compiled(text)
            except Exception as error:  # jinja2 raises its own kinds for syntax
                raise UserError(f"The chat template is not a Jinja template that can be read: {error}") from error
        try:
            json.dumps(self.args)
            if CLOCK in self.args:
                datetime.fromisoformat(self.args[CLOCK])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The template arguments {dict(self.args)!r} cannot be recorded ({error}): give JSON values, "
                f"and {CLOCK} as a date such as 2024-07-26."
            ) from error


Template = PlainTemplate | ChatTemplate


def texts_of(message: Message) -> tuple[str, ...]:
    """Every text of a message that a template may write, with JSON escapes undone."""
    blocks = texts_in(message.content)
    # of blocks also what a template makes that writes them one after the other
    texts = [message.role, message.content] if blocks is None else [message.role, *blocks, "".join(blocks)]
    texts += [value for value in (message.name, message.tool_call_id) if value is not None]
    if message.tool_calls is not None:
        texts.append(unescaped(message.tool_calls))
    return tuple(texts)


def unescaped(text: str) -> str:
    """JSON text as a template would write it: characters for their escapes. What is not JSON stays as it is."""
    if "\\" not in text:
        return text
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text


def _texts(source: str | Mapping[str, str]) -> tuple[str, ...]:
    return (source,) if isinstance(source, str) else tuple(source.values())


def _compiled(text: str) -> Any:
    # transformers' own sandboxed and cached environment, so that its hardening against hostile templates is ours too.
    # Its public render function replaces callables among the arguments, so it could not be given a frozen clock.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(text)


def template_turn(message: Message) -> dict[str, Any]:
    """A message as a chat template reads it: only the keys that are set, tool calls as objects. May raise Malformed."""
    turn: dict[str, Any] = message.as_dict()
    if (found := blocks_in(message.content)) is not None:
        turn["content"] = found
    if message.tool_calls is not None:
        turn["tool_calls"] = [_tool_call(call) for call in _json_list(message.tool_calls, "tool_calls")]
    return turn


def _is_blocks(turn: Mapping[str, Any]) -> bool:
    return isinstance(turn["content"], list)


def _tool_call(call: Any) -> Any:
    # On the wire, arguments are JSON in a string; templates write an object
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return call
    return {**call, "function": function | {"arguments": parsed}} if isinstance(parsed, dict) else call


def _tools(tools: str | None) -> list[Any] | None:
    return None if tools is None else _json_list(tools, "tools")


def _json_list(text: str, name: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Malformed(f"{name} is not JSON: {error}") from error
    if not isinstance(value, list):
        raise Malformed(f"{name} is a JSON {type(value).__name__}, not a list")
    return value


def _speaker(turn: Message) -> str:
    if turn.role not in _SPEAKERS:
        raise Refused(f"the plain template has no name for the role {turn.role!r}")
    return _SPEAKERS[turn.role]


def _plain_content(turn: Message) -> str:
    if texts_in(turn.content) is not None:
        raise Refused("the plain template has no form for content blocks")
    if turn.tool_calls is not None:
        raise Refused("the plain template has no place for tool calls")
    return turn.content
