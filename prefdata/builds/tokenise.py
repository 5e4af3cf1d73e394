"""The stage of an ingest that makes rows: what the source says, tokenised, in batches of the source's order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from prefdata import logical, sources
from prefdata.builds.ingest_options import Settled
from prefdata.builds.job import Unit
from prefdata.draws import row_seed
from prefdata.identity import digest, spelled
from prefdata.records import Parsed, RawRow, Record, SetAside, Several
from prefdata.steps import gate
from prefdata.steps.tokenise import Fitted, Row, assembled, fit
from prefdata.tokens import Limits, Renderer
from prefdata.work import Tables, unit_key

NAME = "tokenise"
UNIT_ROWS = 2048
LABELS = ("chosen_score", "rejected_score", "preference", "score", "weight")
MASKS = ("chosen_loss_mask", "rejected_loss_mask", "completion_loss_mask")

_READING = ("unreadable_row", "not_an_object")
# one line for each part of each row read: the row it made, or the stage that set it aside and why
LINES = pa.schema(
    [
        ("digest", pa.string()),
        ("origin", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("row", pa.int32()),  # position in the unit's rows
        ("row_id", pa.string()),
        ("prompt", pa.string()),  # names the prompt by its tokens
        ("labels", pa.string()),  # what a score, weight or preference is; null: none
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class _Part(NamedTuple):
    raw: RawRow
    group: str | None
    record: Record | SetAside
    stage: str = "tokens"  # that sets it aside, if one does


class _Tokenised(NamedTuple):
    parts: list[_Part]
    records: list[Record]  # those of the parts, each once
    fits: list[Fitted | SetAside]


class _Batch(NamedTuple):
    read: Sequence[tuple[RawRow, Parsed]]
    tokenised: _Tokenised | None  # None: the unit was done when it was read


class TokeniseStage:
    """Parsed rows -> rows with tokens, and a line for every part of every row read."""

    name = NAME

    def __init__(
        self,
        reading: sources.Reading,
        renderer: Renderer,
        limits: Limits,
        options: Settled,
        tokenizer: dict[str, Any],
        done: Callable[[str], bool],
    ) -> None:
        self._done = done
        self._reading, self._renderer, self._limits, self._options = reading, renderer, limits, options
        self._config = {
            "format": reading.format,
            "tokenizer": tokenizer,
            "test_fraction": options.test_fraction,
            "split_by": "group or prompt_ids",
            "seed": options.seed,
        }
        self.keys: list[str] = []

    def units(self) -> Iterator[Unit]:
        """Runs of source rows, each keyed by what was read.

        Their texts are tokenised here, unless that is done, since whoever asks for units asks for the next one while the
        last is computed.
        """
        self.keys = []
        read = iter(self._reading)
        while batch := list(islice(read, UNIT_ROWS)):
            key = self._key(batch)
            self.keys.append(key)
            yield Unit(key, len(batch), _Batch(batch, None if self._done(key) else self._tokenised(batch)))

    def _tokenised(self, batch: Sequence[tuple[RawRow, Parsed]]) -> "_Tokenised":
        parts = [_judged(part) for raw, parsed in batch for part in _parts(raw, parsed)]
        records = list(dict.fromkeys(part.record for part in parts if not isinstance(part.record, SetAside)))
        return _Tokenised(parts, records, fit(records, self._renderer, self._limits))

    def compute(self, unit: Unit) -> Tables:
        """The rows, each record once, and the lines."""
        parts, records, fits = unit.inputs.tokenised or self._tokenised(unit.inputs.read)
        made = dict(zip(records, assembled(records, fits), strict=True))
        good = {record: row for record, row in made.items() if not isinstance(row, SetAside)}
        positions = {record: number for number, record in enumerate(good)}
        lines = []
        for part in parts:
            result = part.record if isinstance(part.record, SetAside) else made[part.record]
            line = self._line(part, result)
            if not isinstance(part.record, SetAside):
                line["row"] = positions.get(part.record)
            lines.append(line)
        table = pa.Table.from_pylist(list(good.values()), schema=self._schema(good.values()))
        return {"rows": table, "lines": pa.Table.from_pylist(lines, schema=LINES)}

    def close(self) -> None:
        """Nothing is held."""

    def _schema(self, rows: Iterable[Row]) -> pa.Schema:
        """The kind's columns, and those optional ones that any row has."""
        optional = logical.OPTIONAL.get(self._reading.kind, pa.schema([]))
        held = [field for field in optional if any(field.name in row for row in rows)]
        return logical.schema_of(self._reading.kind, pa.schema(held))

    def _line(self, part: _Part, result: dict[str, Any] | SetAside) -> dict[str, Any]:
        line: dict[str, Any] = {"digest": part.raw.digest, "origin": str(part.raw.origin), "group": part.group}
        if isinstance(result, SetAside):
            return {**line, "stage": part.stage, "reason": result.reason, "detail": result.detail or None}
        prompt = digest(result["prompt_ids"])  # what a model sees: texts that differ may be equal tokens
        split = part.raw.origin.split or self._drawn_split(part.group or prompt)
        return {**line, "split": split, "row_id": result["row_id"], "prompt": prompt, "labels": _labels(result)}

    def _drawn_split(self, together: str) -> str:
        """By group or prompt, so that what belongs together stays so and added rows move none."""
        draw = row_seed(self._options.seed, together, "split") / 2**63
        return "test" if draw < self._options.test_fraction else "train"

    def _key(self, batch: Sequence[tuple[RawRow, Parsed]]) -> str:
        members = [
            f"{raw.origin}|{raw.origin.split}|{raw.digest}|{_stated(parsed)}|{self._context(parsed)}"
            for raw, parsed in batch
        ]
        return unit_key(NAME, spelled(self._config), members)

    def _context(self, parsed: Parsed) -> str:
        """What a row says that depends on other rows, which its own digest does not cover."""
        if not self._reading.grouped:
            return ""
        return sha256(repr(parsed).encode("utf-8", "surrogatepass")).hexdigest()


def _parts(raw: RawRow, parsed: Parsed) -> list[_Part]:
    if isinstance(parsed, Several):
        return [_Part(raw, parsed.group, part) for part in parsed.parts]
    return [_Part(raw, None, parsed)]


def _judged(part: _Part) -> _Part:
    """The part as the gate leaves it, with the stage that sets it aside."""
    if isinstance(part.record, SetAside):
        return part._replace(stage="read" if part.record.reason in _READING else "format")
    refused = gate.check(part.record)
    return part if refused is None else part._replace(record=refused, stage="gate")


def _stated(parsed: Parsed) -> str:
    """The source and licence that the rows carry, which the source may state anew without any row changing."""
    for part in parsed.parts if isinstance(parsed, Several) else (parsed,):
        if not isinstance(part, SetAside):
            return repr((part.source, part.license))
    return ""


def _labels(row: dict[str, Any]) -> str | None:
    """Everything that is said of a row and is no part of its id, in one spelling."""
    found = {name: row[name] for name in LABELS if row.get(name) is not None}
    if row.get("scores") is not None:
        found["scores"] = sorted(tuple(each.values()) for each in row["scores"])
    if row.get("margin") is not None and row["chosen_score"] is None:
        found["margin"] = row["margin"]
    # long, and never read: which tokens are scored only has to differ where it does
    found |= {name: sha256(bytes(row[name])).hexdigest()[:16] for name in MASKS if row.get(name) is not None}
    return repr(found) if found else None
