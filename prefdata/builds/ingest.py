"""ingest: source rows in, a first version out; every row read ends kept or set aside with its reason."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import pyarrow as pa

from prefdata import logical, sources, versions
from prefdata.builds import finish
from prefdata.builds.job import Stage, Unit, build_key
from prefdata.builds.options import as_config, check, option
from prefdata.draws import row_seed
from prefdata.errors import UserError
from prefdata.identity import digest, spelled
from prefdata.records import Comparison, Demonstration, RawRow, Record, SetAside
from prefdata.steps import gate
from prefdata.steps.tokenise import completion_rows, pair_rows
from prefdata.templates import PLAIN
from prefdata.tokens import Limits, Renderer
from prefdata.versions import Version, ledger_lines
from prefdata.work import Tables, Work, unit_key
from schemas import completions, pairs
from schemas.ledger import KEPT, SET_ASIDE

NAME = "ingest"
STAGES = ("read", "format", "gate", "tokens", "split", "publish")
UNIT_ROWS = 2048
OVERFLOW = ("truncate", "set_aside")
TEST_FRACTION, MIN_ANSWER_TOKENS, SEED = 0.05, 1, 0
MOST_NAMED = 12  # inputs that are named one by one in the notices
# what the last ingest hands on with its tokenizer when another source is named
OF_THE_TOKENIZER = ("model", "chat_template", "template_args")

_READING = ("unreadable_row", "not_an_object")
_LINES = pa.schema(
    [
        ("digest", pa.string()),
        ("origin", pa.string()),
        ("split", pa.string()),
        ("row_id", pa.string()),
        ("prompt", pa.string()),  # names the prompt by its tokens
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


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
    license: str | None = option(None, "licence of the source (default: as the hub states it)")
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
    trust_remote_code: bool = option(False, "run Python code that comes with the tokenizer")


@dataclass(frozen=True)
class Settled(Options):
    """Options with nothing open that a build must know."""

    test_fraction: float = TEST_FRACTION
    min_answer_tokens: int = MIN_ANSWER_TOKENS
    overflow: str = OVERFLOW[0]
    seed: int = SEED


class Ingest:
    """The job: tokenise what the source yields, then publish."""

    name = NAME
    rows: int | None = None
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        self.root = versions.root(root)
        self.work = Work(self.root)
        last = _last_ingest(self.root)
        self.options = settled(options, last)
        if not 0 <= self.options.test_fraction < 1:
            raise UserError(f"test_fraction is {self.options.test_fraction}, and must be at least 0 and below 1")
        self.renderer = _renderer(options, self.options, last)
        self.limits = _limits(self.options, self.renderer)
        self.reading = _reading(self.options)
        self.notices = _notices(options, self.options, self.reading, last)
        self.tokenizer = {**self.renderer.fingerprint, **self.limits.as_dict()}
        self.config = as_config(self.options, model=self.renderer.name, format=self.reading.format)
        fingerprints = {"tokenizer": _decisive(self.tokenizer), "sources": self.reading.stamps()}
        self.build_key = build_key(NAME, self.config, [], fingerprints)
        self._stage = TokeniseStage(self)
        versions.writable(self.root)

    def stages(self) -> Iterator[Stage]:
        """Tokenising is all there is to do."""
        yield self._stage

    def publish(self) -> Version:
        """Rows in the source's order; equal rows, and train rows whose prompt is in the test split, are set aside."""
        kind = self._stage.kind
        seen: set[bytes] = set()
        held_out = self._held_out_prompts()
        with versions.Staging(self.root, logical.BASE[kind], self.build_key) as staging:
            for tables in self._finished():
                lines = [_published(line, seen, held_out) for line in tables["lines"].to_pylist()]
                tokenised = [line for line in lines if line["row_id"] is not None]
                for split in versions.SPLITS:
                    kept = [line["reason"] is None and line["split"] == split for line in tokenised]
                    staging.add(split, tables["rows"].filter(pa.array(kept, pa.bool_())))
                staging.ledger(ledger_lines(_ledger_line(line) for line in lines))
            return finish.publish(staging, STAGES, self._fields(kind))

    def _finished(self) -> Iterator[Tables]:
        for key in self._stage.keys:
            tables = self.work.load(key)
            if tables is None:
                raise KeyError(f"the unit {key[:12]} of stage tokenise is not done")
            yield tables

    def _held_out_prompts(self) -> set[str]:
        return {
            line["prompt"]
            for tables in self._finished()
            for line in tables["lines"].select(["prompt", "split", "reason"]).to_pylist()
            if line["split"] == "test" and line["reason"] is None
        }

    def _fields(self, kind: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "seeds": {"seed": self.options.seed},
            "round": 0,
            "parents": [],
            "sources": self.reading.sources,
            "tokenizer": self.tokenizer,
            "generator": None,
            "reference": None,
        }


class TokeniseStage:
    """Records -> rows with tokens, in batches of the source's order."""

    name = "tokenise"

    def __init__(self, job: Ingest) -> None:
        self._job = job
        self.keys: list[str] = []
        self._kind: str | None = None

    @property
    def kind(self) -> str:
        """What the source's rows are; known once they were read."""
        if self._kind is None:
            raise UserError(
                f"no row of {', '.join(self._job.config['source'])} could be read as {self._job.reading.format}; nothing was published"
            )
        return self._kind

    def units(self) -> Iterator[Unit]:
        """Runs of source rows, each keyed by what was read."""
        self.keys = []
        rows = iter(self._job.reading)
        while batch := list(islice(rows, UNIT_ROWS)):
            for _, record in batch:
                if not isinstance(record, SetAside):
                    self._learn_kind(record)
            unit = Unit(self._key(batch), len(batch), batch)
            self.keys.append(unit.key)
            yield unit

    def compute(self, unit: Unit) -> Tables:
        """Rows, and one line for every row read."""
        batch: list[tuple[RawRow, Record | SetAside]] = unit.inputs
        judged = [_judge(record) for _, record in batch]
        made = iter(self._rows([record for record in judged if not isinstance(record, tuple)]))
        rows, lines = [], []
        for (raw, _), record in zip(batch, judged, strict=True):
            stage, result = record if isinstance(record, tuple) else ("tokens", next(made))
            lines.append(self._line(raw, stage, result))
            if not isinstance(result, SetAside):
                rows.append(result)
        schema = logical.BASE[self._kind or pairs.KIND]
        return {"rows": pa.Table.from_pylist(rows, schema=schema), "lines": pa.Table.from_pylist(lines, schema=_LINES)}

    def close(self) -> None:
        """Nothing is held."""

    def _learn_kind(self, record: Record) -> None:
        kind = pairs.KIND if isinstance(record, Comparison) else completions.KIND
        if self._kind not in (None, kind):
            raise UserError(f"the source mixes {self._kind} and {kind}; ingest them apart, each with its --format")
        self._kind = kind

    def _rows(self, records: list[Record]) -> list[dict[str, Any] | SetAside]:
        if self._kind == completions.KIND:
            good = [record for record in records if isinstance(record, Demonstration)]
            return completion_rows(good, self._job.renderer, self._job.limits)
        compared = [record for record in records if isinstance(record, Comparison)]
        return pair_rows(compared, self._job.renderer, self._job.limits)

    def _line(self, raw: RawRow, stage: str, result: dict[str, Any] | SetAside) -> dict[str, Any]:
        line: dict[str, Any] = {"digest": raw.digest, "origin": str(raw.origin)}
        if isinstance(result, SetAside):
            return {**line, "stage": stage, "reason": result.reason, "detail": result.detail or None}
        prompt = digest(result["prompt_ids"])  # what a model sees: texts that differ may be equal tokens
        split = raw.origin.split or self._drawn_split(prompt)
        return {**line, "split": split, "row_id": result["row_id"], "prompt": prompt}

    def _drawn_split(self, prompt: str) -> str:
        """By prompt, so that equal prompts stay together and added rows move none."""
        draw = row_seed(self._job.options.seed, prompt, "split") / 2**63
        return "test" if draw < self._job.options.test_fraction else "train"

    def _key(self, batch: list[tuple[RawRow, Record | SetAside]]) -> str:
        options = self._job.options
        config = {
            "format": self._job.reading.format,
            "tokenizer": _decisive(self._job.tokenizer),
            "name": options.name,
            "license": options.license,
            "test_fraction": options.test_fraction,
            "split_by": "prompt_ids",
            "seed": options.seed,
        }
        members = [f"{raw.origin}|{raw.origin.split}|{raw.digest}" for raw, _ in batch]
        return unit_key("tokenise", spelled(config), members)


def _judge(record: Record | SetAside) -> Record | tuple[str, SetAside]:
    """The record, or the stage that sets it aside and why."""
    if isinstance(record, SetAside):
        return ("read" if record.reason in _READING else "format"), record
    refused = gate.check(record)
    return record if refused is None else ("gate", refused)


def _published(line: dict[str, Any], seen: set[bytes], held_out: set[str]) -> dict[str, Any]:
    """The line with a reason if its row is not published after all."""
    if line["reason"] is not None:
        return line
    if line["split"] == "train" and line["prompt"] in held_out:
        return {
            **line,
            "stage": "split",
            "reason": "prompt_in_test",
            "detail": "the source has this prompt, token by token, in its test split",
        }
    name = bytes.fromhex(line["row_id"])
    if name in seen:
        return {
            **line,
            "stage": "publish",
            "reason": "duplicate_row",
            "detail": f"row {line['row_id']} was read before",
        }
    seen.add(name)
    return line


def _ledger_line(line: dict[str, Any]) -> dict[str, Any]:
    shared = {"row_id": line["digest"], "origin": line["origin"]}
    if line["reason"] is None:
        return {**shared, "status": KEPT, "stage": "publish", "made": [line["row_id"]]}
    return {**shared, "status": SET_ASIDE, **{name: line[name] for name in ("stage", "reason", "detail")}}


def _decisive(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What of a tokenizer's fingerprint decides the tokens: not its name, nor the template's text beside its digest."""
    return {name: value for name, value in tokenizer.items() if name not in ("name", "template")}


def _last_ingest(root: str) -> Version | None:
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


def _renderer(given: Options, options: Settled, last: Version | None) -> Renderer:
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


def _limits(options: Settled, renderer: Renderer) -> Limits:
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


def _reading(options: Settled) -> sources.Reading:
    own_splits = [name.strip() for name in (options.splits or "").split(",") if name.strip()]
    if options.splits is not None and not own_splits:
        raise UserError(f"splits is {options.splits!r}, which names none: leave it out to read them all")
    return sources.read(
        options.source,
        format=options.format,
        split=options.split,
        name=options.name,
        license=options.license,
        hub_config=options.config,
        hub_revision=options.revision,
        hub_splits=own_splits,
    )


def _notices(given: Options, options: Settled, reading: sources.Reading, last: Version | None) -> list[str]:
    """What was taken from where, the format, and the split of each input."""
    notices = []
    if last is not None and not given.source:
        notices.append(f"source and options that are not given are those of {last.name}")
    elif last is not None and given.model is None:
        notices.append(f"tokenizer and chat template are those of {last.name}: {options.model}")
    notices.append(f"format: {reading.why}")
    splits = reading.splits()
    held_out = f"{100 * options.test_fraction:g} % of prompts are held out" if options.test_fraction else "all is train"
    unnamed = f"no split named: {held_out}"
    notices += [f"{shown} -> {split}" if split else f"{shown}: {unnamed}" for shown, split in splits[:MOST_NAMED]]
    rest = Counter(f"-> {split}" if split else unnamed for _, split in splits[MOST_NAMED:])
    return notices + [f"{count} more inputs {where}" for where, count in rest.items()]


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
