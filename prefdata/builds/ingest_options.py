"""What an ingest can be told, what it takes from the one before, and what it makes of both."""

import json
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

from prefdata import sources, versions
from prefdata.builds.options import option
from prefdata.errors import UserError
from prefdata.models import DTYPES
from prefdata.templates import PLAIN
from prefdata.tokens import Limits, Renderer
from prefdata.versions import Version

NAME = "ingest"
OVERFLOW = ("truncate", "set_aside")
TEST_FRACTION, MIN_ANSWER_TOKENS, SEED, DTYPE = 0.05, 1, 0, "float32"
MOST_NAMED = 12  # inputs that are named one by one in the notices
# what the last ingest hands on with its tokenizer when another source is named
OF_THE_TOKENIZER = ("model", "chat_template", "template_args")


@dataclass(frozen=True)
class Options:
    """What can be chosen. What is left open (None) is filled in by `settled`."""

    source: tuple[str, ...] = option(
        (),
        "files, folders, globs, URLs or hub data sets "
        "(default: those of the last ingest, and every option that is not given as it was there)",
    )
    model: str | None = option(None, "model whose tokenizer and template make the tokens (default: the last version's)")
    format: str | None = option(None, "format of the rows (default: detected)")
    split: str | None = option(
        None, "split for every row (default: as the source's own names say)", choices=versions.SPLITS
    )
    test_fraction: float | None = option(
        None,
        f"share of prompts held out where the source names no splits (default: {TEST_FRACTION})",
        least=0,
    )
    name: str | None = option(None, "what rows call their source (default: its own name)")
    license: str | None = option(
        None, "licence of the source, or one for each source with commas between (default: as the hub states it)"
    )
    origin: str | None = option(
        None, "where the source comes from, or one for each source with commas between (default: its hub address)"
    )
    config: str | None = option(None, "configuration of a hub data set (default: its own default)")
    revision: str | None = option(None, "branch, tag or commit of a hub data set (default: its main branch)")
    splits: str | None = option(None, "splits of a hub data set, by its own names, with commas between (default: all)")
    chat_template: str | None = option(None, "plain, or a file with a Jinja template (default: the tokenizer's own)")
    template_args: str | None = option(None, "arguments of the chat template, as a JSON object")
    max_length: int | None = option(
        None, "tokens of prompt and answer together (default: what the model takes, at most 2048)", least=2
    )
    max_prompt_length: int | None = option(
        None, "longest prompt in tokens (default: what leaves room for an answer)", least=1
    )
    min_answer_tokens: int | None = option(
        None, f"least room for an answer, in tokens (default: {MIN_ANSWER_TOKENS})", least=1
    )
    overflow: str | None = option(
        None, f"what happens to an answer that is too long (default: {OVERFLOW[0]})", choices=OVERFLOW
    )
    seed: int | None = option(None, f"seed of the held-out split (default: {SEED})")
    reference: str | None = option(
        None, "model whose log-probs every row gets at once (default: none; add-reference adds them later)"
    )
    dtype: str | None = option(None, f"precision of the reference's weights (default: {DTYPE})", choices=DTYPES)
    trust_remote_code: bool = option(False, "run Python code that comes with the tokenizer or the reference")


@dataclass(frozen=True)
class Settled(Options):
    """Options with nothing open that a build must know."""

    test_fraction: float = TEST_FRACTION
    min_answer_tokens: int = MIN_ANSWER_TOKENS
    overflow: str = OVERFLOW[0]
    seed: int = SEED
    dtype: str = DTYPE


def last_ingest(root: str) -> Version | None:
    """The newest version that an ingest made, if any."""
    made = [version for version in versions.every(root) if version.manifest["build"] == NAME]
    return made[-1] if made else None


def settled(given: Options, last: Version | None) -> Settled:
    """The options with the open ones filled in: from the last ingest as far as it is taken up, then by default.

    Without a source, all of the last ingest is taken up; with one and without a model, its tokenizer and template.
    Permission to run code is asked anew each time.
    """
    if not given.source and last is None:
        raise UserError("say what to ingest: files, folders, globs, URLs or a hub data set; there was no ingest before")
    if given.model is None and last is None:
        raise UserError(
            "say whose tokenizer makes the tokens: --model FOLDER or a hub name; there was no ingest before"
        )
    said = {name: value for name, value in vars(given).items() if value not in (None, ())}
    before = {} if last is None else last.manifest["config"]
    taken = [knob.name for knob in fields(Options)]
    if given.source:
        taken = [] if given.model else [*OF_THE_TOKENIZER]
    if given.chat_template == PLAIN:
        taken = [name for name in taken if name != "template_args"]  # it takes none
    known = {name: before[name] for name in taken if before.get(name) is not None} | said
    return Settled(**{**known, "source": tuple(known["source"])})


def load_renderer(given: Options, options: Settled, last: Version | None) -> Renderer:
    """The tokenizer with its template: as said now, else as the last ingest's."""
    stored = {} if last is None else last.manifest["tokenizer"]
    model, template, args = options.model, given.chat_template, _template_args(options.template_args)
    if given.model is None:  # the last tokenizer as it was, down to the commit and the day that its template wrote
        model = f"{stored['name']}@{stored['commit']}" if stored.get("commit") else stored["name"]
        if given.template_args is None and template != PLAIN:
            args = stored["template_args"]
    if template is None and (given.model is None or options.chat_template is not None):
        template = stored["template"]  # the text, because the file may be another by now
    assert model is not None
    return Renderer.load(model, chat_template=template, template_args=args, trust_remote_code=options.trust_remote_code)


def limits_of(options: Settled, renderer: Renderer) -> Limits:
    """The length limits; UserError if they leave no room."""
    limits = renderer.limits(
        options.max_length,
        max_prompt_length=options.max_prompt_length,
        min_answer_tokens=options.min_answer_tokens,
        overflow=options.overflow,  # type: ignore[arg-type]
    )
    room = limits.max_length - limits.min_answer_tokens
    if limits.max_prompt_length is not None and limits.max_prompt_length > room:
        raise UserError(
            f"max_prompt_length is {limits.max_prompt_length}, and max_length {limits.max_length} leaves a prompt at "
            f"most {room} tokens: lower the one or raise the other"
        )
    return limits


def open_source(options: Settled) -> sources.Reading:
    """The source, found and its format known."""
    own_splits = [name.strip() for name in (options.splits or "").split(",") if name.strip()]
    if options.splits is not None and not own_splits:
        raise UserError(f"splits is {options.splits!r}, which names none: leave it out to read them all")
    return sources.read(
        options.source,
        format=options.format,
        split=options.split,
        name=options.name,
        license=_of_each(options.source, options.license),
        origin=_of_each(options.source, options.origin),
        hub_config=options.config,
        hub_revision=options.revision,
        hub_splits=own_splits,
    )


def _of_each(sources: tuple[str, ...], said: str | None) -> str | list[str | None] | None:
    """One for all sources, or one for each; what is empty is left to the source."""
    if said is None or len(sources) == 1 or "," not in said:
        return said
    return [part.strip() or None for part in said.split(",")]


def notices(given: Options, options: Settled, reading: sources.Reading, last: Version | None) -> list[str]:
    """What was taken from where, the format, and the split of each input."""
    told = []
    if last is not None and not given.source:
        told.append(f"source and options that are not given are those of {last.name}")
    elif last is not None and given.model is None:
        told.append(f"tokenizer and chat template are those of {last.name}: {options.model}")
    told.append(f"format: {reading.why}")
    splits = reading.splits()
    held_out = f"{100 * options.test_fraction:g} % of prompts are held out" if options.test_fraction else "all is train"
    unnamed = f"no split named: {held_out}"
    told += [f"{shown} -> {split}" if split else f"{shown}: {unnamed}" for shown, split in splits[:MOST_NAMED]]
    rest = Counter(f"-> {split}" if split else unnamed for _, split in splits[MOST_NAMED:])
    return told + [f"{count} more inputs {where}" for where, count in rest.items()]


def _template_args(given: str | None) -> dict[str, Any] | None:
    if given is None:
        return None
    try:
        found = json.loads(given)
    except ValueError as problem:
        raise UserError(f"template_args {given!r} is not JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise UserError(f"template_args {given!r} is not a JSON object of names and values")
    return found
