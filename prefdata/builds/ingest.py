"""ingest: source rows in, a first version out; every row read ends kept or set aside with its reason."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefdata import logical, versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.ingest_options import (
    NAME,
    Options,
    last_ingest,
    limits_of,
    load_renderer,
    notices,
    open_source,
    settled,
)
from prefdata.builds.inputs import reference_of_tokens
from prefdata.builds.job import Stage, build_key
from prefdata.builds.options import as_config, check
from prefdata.builds.tokenise import TokeniseStage
from prefdata.errors import UserError
from prefdata.records import SetAside
from prefdata.versions import Version, ledger_lines
from prefdata.work import Tables, Work

__all__ = ["NAME", "Ingest", "Options"]

SCORED_ROWS = 256
STAGES = ("read", "format", "gate", "tokens", "split", scoring.NAME, "publish")


@dataclass
class _Batch:
    """What one unit of rows read comes to: rows by split, not yet published before, and every part's line."""

    rows: dict[str, pa.Table]
    lines: list[dict[str, Any]]


@dataclass(frozen=True)
class _Known:
    """What all finished units together say."""

    held_out: frozenset[bytes]  # the prompts of the test split
    conflicting: frozenset[bytes]  # rows that stand in the source with different labels
    columns: frozenset[str]  # of the rows of any unit


@dataclass
class _Seen:
    """The rows that stand in the version so far; those of groups with the file and group that state them."""

    ids: set[bytes] = field(default_factory=set)
    groups: dict[bytes, bytes] = field(default_factory=dict)


class Ingest:
    """The job: tokenise what the source yields, score it if a reference is named, then publish."""

    name = NAME
    rows: int | None = None
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        self.root = versions.root(root)
        self.work = Work(self.root)
        last = last_ingest(self.root)
        self.options = settled(options, last)
        if not 0 <= self.options.test_fraction < 1:
            raise UserError(f"test_fraction is {self.options.test_fraction}, and must be at least 0 and below 1")
        renderer = load_renderer(options, self.options, last)
        limits = limits_of(self.options, renderer)
        self.reading = open_source(self.options)
        if self.options.reference is not None and self.reading.kind not in logical.REFERENCE:
            raise UserError(
                f"reference is {self.options.reference!r}, and {self.reading.kind} hold no answers that it could score: "
                "leave it out"
            )
        self.notices = notices(options, self.options, self.reading, last)
        self.tokenizer = {**renderer.fingerprint, **limits.as_dict()}
        self.reference, self._scoring = self._referenced()
        self.config = as_config(self.options, model=renderer.name, format=self.reading.format)
        fingerprints = {
            "tokenizer": _decisive(self.tokenizer),
            "sources": self.reading.stamps(),
            "reference": self.reference and self.reference["fingerprint"],
        }
        self.build_key = build_key(NAME, self.config, [], fingerprints)
        self._tokenising = TokeniseStage(
            self.reading, renderer, limits, self.options, _decisive(self.tokenizer), self.work.done
        )
        versions.writable(self.root)

    def stages(self) -> Iterator[Stage]:
        """Tokenising, and scoring what is to be published of it."""
        yield self._tokenising
        if self._scoring is not None:
            yield self._scoring

    def sample(self) -> Tables:
        """The first unit, computed but not kept: what a plan knows of the rest."""
        unit = next(iter(self._tokenising.units()))
        return self._tokenising.compute(unit)

    def publish(self) -> Version:
        """Rows in the source's order; equal rows, and train rows whose prompt is in the test split, are set aside."""
        kind = self.reading.kind
        optional = pa.schema([field for field in logical.OPTIONAL.get(kind, ()) if field.name in self._known.columns])
        schema = logical.schema_of(kind, optional, *([logical.REFERENCE[kind]] if self._scoring else []))
        with versions.Staging(self.root, schema, self.build_key) as staging:
            refused: dict[str, SetAside] = {}  # over all batches: rows of a tree state a pair in several of them
            for batch in self._batches():
                for split, rows in batch.rows.items():
                    staging.add(split, _with_columns(self._scored(rows, refused), optional))
                staging.ledger(ledger_lines(_ledger(batch.lines, refused)))
            return finish.publish(staging, STAGES, self._fields(kind))

    def _scored(self, rows: pa.Table, refused: dict[str, SetAside]) -> pa.Table:
        """The rows with their reference columns, if there is one; those that could not be scored go to `refused`."""
        if self._scoring is None:
            return rows
        parts = [scoring.attached(self._scoring, part, self.work) for part in _slices(rows)]
        if not parts:
            return rows
        rows = pa.concat_tables(parts)
        good = scoring.finite(self.reading.kind, rows)
        for row_id, fine in zip(rows["row_id"].to_pylist(), good.to_pylist(), strict=True):
            if not fine:
                refused[row_id] = SetAside("not_finite")
        return rows.filter(good)

    def _referenced(self) -> tuple[dict[str, Any] | None, scoring.ReferenceStage | None]:
        options = self.options
        if options.reference is None:
            return None, None
        entry, loading = reference_of_tokens(
            self.tokenizer, options.reference, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
        return entry, scoring.ReferenceStage(self._scoring_batches, entry, loading)

    def _scoring_batches(self) -> Iterator[scoring.Batch]:
        for batch in self._batches():
            for rows in batch.rows.values():
                for part in _slices(rows):
                    yield scoring.Batch(rows=partial(_same, part), known=_nothing_known)

    def _batches(self) -> Iterator[_Batch]:
        """What every finished unit comes to, in the source's order; the same whenever it is asked."""
        seen = _Seen()
        for tables in self._finished():
            lines = [_published(line, seen, self._known) for line in tables["lines"].to_pylist()]
            rows = {
                split: tables["rows"].take(
                    pa.array([line["row"] for line in lines if line["new"] and line["split"] == split], pa.int64())
                )
                for split in versions.SPLITS
            }
            yield _Batch(rows, lines)

    def _finished(self) -> Iterator[Tables]:
        return (self.work.result(key) for key in self._tokenising.keys)

    @cached_property
    def _known(self) -> _Known:
        held_out: set[bytes] = set()
        labels: dict[bytes, str] = {}
        conflicting: set[bytes] = set()
        columns: set[str] = set()
        for tables in self._finished():
            columns.update(tables["rows"].column_names)
            wanted = tables["lines"].select(["prompt", "split", "reason", "row_id", "labels"])
            for line in wanted.filter(pc.is_null(wanted["reason"])).to_pylist():
                if line["split"] == "test":
                    held_out.add(bytes.fromhex(line["prompt"]))
                name = bytes.fromhex(line["row_id"])
                if labels.setdefault(name, line["labels"]) != line["labels"]:
                    conflicting.add(name)
        return _Known(frozenset(held_out), frozenset(conflicting), frozenset(columns))

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
            "reference": self.reference,
        }


def _published(line: dict[str, Any], seen: _Seen, known: _Known) -> dict[str, Any]:
    """The line with a reason if its row is not published after all; `new` if it is published for this line."""
    if line["reason"] is not None:
        return {**line, "new": False}
    if line["split"] == "train" and bytes.fromhex(line["prompt"]) in known.held_out:
        detail = "the source has this prompt, token by token, in its test split"
        return {**line, "new": False, "stage": "split", "reason": "prompt_in_test", "detail": detail}
    name = bytes.fromhex(line["row_id"])
    if name in known.conflicting:
        detail = f"row {line['row_id']} stands in the source with other labels too; here they are {line['labels']}"
        return {**line, "new": False, "stage": "publish", "reason": "conflicting_labels", "detail": detail}
    group = _group(line)
    if name not in seen.ids:
        seen.ids.add(name)
        if group is not None:
            seen.groups[name] = group
        return {**line, "new": True}
    if group is not None and seen.groups.get(name) == group:
        return {**line, "new": False}  # several rows of a group state it: made once, from all of them
    detail = f"row {line['row_id']} was read before"
    return {**line, "new": False, "stage": "publish", "reason": "duplicate_row", "detail": detail}


def _group(line: dict[str, Any]) -> bytes | None:
    """Names the group of a row: two files that hold the same tree hold it twice."""
    if line["group"] is None:
        return None
    file, _, _ = line["origin"].rpartition(":")
    return sha256(f"{file}\0{line['group']}".encode()).digest()


def _ledger(lines: Iterable[dict[str, Any]], refused: dict[str, SetAside]) -> Iterator[dict[str, Any]]:
    """One line for every row read, from the lines of its parts, which follow each other."""
    for (origin, digest), parts in groupby(lines, key=lambda line: (line["origin"], line["digest"])):
        made: list[str] = []
        failures: list[tuple[str, SetAside]] = []
        for part in parts:
            if part["row_id"] in refused:  # also the second of two equal rows: none of them was published
                failures.append((scoring.NAME, refused[part["row_id"]]))
            elif part["reason"] is not None:
                failures.append((part["stage"], SetAside(part["reason"], part["detail"] or "")))
            elif part["row_id"] not in made:
                made.append(part["row_id"])
        yield {"origin": origin, **ledger.line(digest, made, failures, STAGES)}


def _decisive(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What of a tokenizer's fingerprint decides the tokens: not its name, nor the template's text beside its digest."""
    return {name: value for name, value in tokenizer.items() if name not in ("name", "template")}


def _with_columns(rows: pa.Table, optional: pa.Schema) -> pa.Table:
    """The rows with nulls in the columns that only other units have."""
    for column in optional:
        if column.name not in rows.column_names:
            rows = rows.append_column(column, pa.nulls(rows.num_rows, column.type))
    return rows


def _slices(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows in runs that are scored as one unit."""
    return (rows.slice(start, SCORED_ROWS) for start in range(0, rows.num_rows, SCORED_ROWS))


def _same(rows: pa.Table) -> pa.Table:
    return rows


def _nothing_known() -> None:
    return None
