"""build-sapo-negatives: for every good answer of a version, negatives with a segment written anew by a model.

Works from pairs (their chosen side), completions (demonstrations, the best scored) and judged answers (the desirable). See `prefdata.select.segments` for the rule.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import engines, logical, versions
from prefdata.builds import finish, ledger, scoring, speeds
from prefdata.builds.engine_options import LAYOUT, EngineOptions, loading
from prefdata.builds.inputs import (
    ParentReader,
    next_round,
    parent_model,
    reference_model,
    same_reference,
)
from prefdata.builds.job import Stage, Unit, build_key
from prefdata.builds.options import as_config, check, option
from prefdata.builds.winners import SIDE, Assembled, Draw, assemble, winners
from prefdata.draws import generator, row_seed
from prefdata.errors import UserError
from prefdata.identity import spelled
from prefdata.records import SetAside
from prefdata.select import hard, segments
from prefdata.select.good_answers import GoodAnswers
from prefdata.versions import Version, ledger_lines
from prefdata.work import Tables, Work, unit_key
from schemas import completions, pairs
from schemas.ledger import SET_ASIDE

NAME = "build-sapo-negatives"
STAGES = ("select", "generate", "gate", scoring.NAME, "publish")


@dataclass(frozen=True)
class Options(EngineOptions):
    """What can be chosen."""

    source: str = option("latest", "version with the good answers: vN, a tag, latest, a path or a URL")
    model: str | None = option(None, "model that writes the segments (default: the one the source's manifest names)")
    reference: str | None = option(None, "model whose log-probs are stored (default: the one that writes)")
    mode: str = option(
        "segment", "what is written anew; paper is the published algorithm", choices=tuple(segments.RULES)
    )
    segment_tokens: int | None = option(
        None, "tokens of a segment (default: a third of the answer, at most 256)", least=1
    )
    negatives: int = option(1, "negatives per good answer", least=1)
    segments_per_answer: int | None = option(
        None,
        "segments drawn per good answer, of which --keep chooses the negatives (default: no more than those)",
        least=1,
    )
    keep: str = option(
        hard.LIKELIEST,
        "which of the segments drawn become negatives: by the reference's mean log-prob per token, or at random",
        choices=hard.KEEPS,
    )
    max_redraws: int = option(3, "further draws when the segment comes back unchanged", least=0)
    temperature: float = option(0.7, "sampling temperature; 0 is greedy", least=0)
    top_k: int = option(50, "sample among this many likeliest tokens; 0 is all", least=0)
    top_p: float = option(0.95, "sample among the likeliest tokens that hold this probability", least=0)
    seed: int = option(0, "seed of all draws")
    round: int | None = option(None, "regeneration round (default: the source's plus one)", least=1)
    unit_rows: int = option(
        1024,
        "answers per unit of work: a killed build repeats at most one; smaller ones fill batches less well",
        least=1,
    )


@dataclass(frozen=True)
class _Place:
    """Where a unit's rows lie in the parent."""

    split: str
    path: str
    positions: tuple[int, ...]


class BuildSapoNegatives:
    """The job: generate, then reference log-probs, then publish."""

    name = NAME
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        engines.require(options.engine)
        self.segments = options.negatives if options.segments_per_answer is None else options.segments_per_answer
        if self.segments < options.negatives:
            raise UserError(
                f"segments_per_answer is {self.segments} and negatives {options.negatives}: no more can be kept than are "
                "drawn. Draw more, or ask for fewer negatives."
            )
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=tuple(SIDE))
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        self.round = options.round or next_round(self.parent, self.root, options.source)
        self.model, self.description = parent_model(
            self.parent,
            options.model,
            roles=("generator", "reference"),
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        self.reference, referee = reference_model(
            self.parent,
            options.reference or self.model,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        self.config = as_config(
            options,
            "unit_rows",
            *LAYOUT,
            source=self.parent.name,
            model=self.description["name"],
            round=self.round,
            segments_per_answer=self.segments,
            keep=options.keep if self.segments > options.negatives else None,  # where all are kept there is no choice
        )
        fingerprints = {"generator": self.description, "reference": self.reference}
        self.build_key = build_key(NAME, self.config, [self.parent], fingerprints)
        self.reader = ParentReader(self.parent)
        self._generating = GenerateStage(self)
        self._scoring = scoring.ReferenceStage(self._scoring_batches, self.reference, referee)

    def stages(self) -> Iterator[Stage]:
        """Reference units are known only once generation is done."""
        yield self._generating
        yield self._scoring

    def publish(self) -> Version:
        """Assembled rows with their reference columns, and a ledger line for every row of the parent."""
        schema = logical.schema_of(pairs.KIND, pairs.SEGMENT, pairs.REFERENCE)
        seen: set[bytes] = set()
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for unit, built in self._assembled():
                rows = scoring.attached(self._scoring, built.rows, self.work)
                kept = _judge(rows, built, seen, self._keep)
                if rows.num_rows:
                    staging.add(unit.inputs.split, rows.filter(pa.array(kept)))
                staging.ledger(_ledger(built, rows, kept))
            for lines in self._generating.set_aside_ledger():
                staging.ledger(lines)
            return finish.publish(staging, STAGES, self._fields())

    def _keep(self, rows: pl.DataFrame) -> pl.Series:
        options = self.options
        return hard.kept(rows, options.keep, options.negatives, seed=options.seed, round_=self.round)

    def _fields(self) -> dict[str, Any]:
        return {
            "kind": pairs.KIND,
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "seeds": {"seed": self.options.seed},
            "round": self.round,
            "parents": [versions.parent_entry(self.parent, self.root)],
            "sources": self.parent.manifest["sources"],
            "tokenizer": self.parent.manifest["tokenizer"],
            "generator": self._generating.provenance(),
            "reference": self.reference,
        }

    def _assembled(self) -> Iterator[tuple[Unit, Assembled]]:
        for unit in self._generating.units():
            draws = self.work.result(unit.key)["draws"]
            yield unit, assemble(self._generating.answers(unit), draws, self._generating.assembly)

    def _scoring_batches(self) -> Iterator[scoring.Batch]:
        same = same_reference(self.parent.manifest["reference"], self.reference)
        for unit, built in self._assembled():
            known = partial(self._parent_rows, unit) if same else _nothing_known
            yield scoring.Batch(rows=partial(_identity, built.rows), known=known)

    def _parent_rows(self, unit: Unit) -> pa.Table:
        return self.reader.take(unit.inputs.path, unit.inputs.positions)


class GenerateStage:
    """Draws B' for every good answer. Equal good answers of one prompt are drawn for once."""

    name = "generate"

    def __init__(self, job: BuildSapoNegatives) -> None:
        from prefdata.tokens import Renderer

        options, manifest = job.options, job.parent.manifest
        self._job = job
        self._engine: Any = None
        self._last: tuple[str, pa.Table] | None = None
        self.runs = speeds.named(job.description["name"], options.engine)
        self._end_ids = tuple(manifest["tokenizer"]["end_ids"])
        self._max_length = int(manifest["tokenizer"]["max_length"])
        self._sampling = engines.Sampling(options.temperature, options.top_k, options.top_p, self._end_ids)
        self.sampling_config = {
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "end_ids": list(self._end_ids),
        }
        self.assembly = _assembly(job, Renderer, self.sampling_config, self._end_ids)
        self._loading = loading(options)

    def units(self) -> Iterator[Unit]:
        """Runs of good answers in the parent's order, each answer once."""
        size = self._job.options.unit_rows
        for split, path, table in self._files():
            rows, answers = table["row_id"].to_pylist(), table["answer_id"].to_pylist()
            refused = self._good.refused(table)
            positions = [number for number, row in enumerate(rows) if row not in refused]
            for start in range(0, len(positions), size):
                chosen = positions[start : start + size]
                key = self._key([answers[number] for number in chosen])
                yield Unit(key, len(chosen), _Place(split, path, tuple(chosen)))

    def set_aside_ledger(self) -> Iterator[pa.Table]:
        """Lines of the rows that no negative was asked for, file by file."""
        for _, _, table in self._files():
            yield ledger_lines(
                {
                    "row_id": row,
                    "status": SET_ASIDE,
                    "stage": "select",
                    "reason": aside.reason,
                    "detail": aside.detail,
                }
                for row, aside in self._good.refused(table).items()
            )

    @cached_property
    def _good(self) -> GoodAnswers:
        return GoodAnswers(
            lambda: (table for _, _, table in self._files()), by_score=self._job.parent.kind == completions.KIND
        )

    def provenance(self) -> dict[str, Any]:
        """The manifest's generator: model, engine, sampling, and whether every unit would come out bit for bit again."""
        units = (self._job.work.load(unit.key) for unit in self.units())
        invariant = all(tables["engine"]["batch_invariant"][0].as_py() for tables in units if tables is not None)
        options = self._job.options
        return {
            **self._job.description,
            "engine": options.engine,
            "batch_invariant": invariant,
            "sampling": self.sampling_config,
        }

    def answers(self, unit: Unit) -> pa.Table:
        """The unit's good answers with their prompts."""
        return self._winners(unit.inputs.path).take(list(unit.inputs.positions))

    def compute(self, unit: Unit) -> Tables:
        """Draw, and redraw where B' equals B, a bounded number of times."""
        answers = self.answers(unit).to_pylist()
        draws = {
            (row["answer_id"], index): self._plan(row, index) for row in answers for index in range(self._job.segments)
        }
        by_id = {row["answer_id"]: row for row in answers}
        for attempt in range(self._job.options.max_redraws + 1):
            pending = [draw for draw in draws.values() if draw.pending]
            if not pending:
                break
            self._draw(pending, by_id, attempt, unit)
        drawn = pa.Table.from_pylist([draw.as_row() for draw in draws.values()], schema=Draw.SCHEMA)
        return {"draws": drawn, "engine": pa.table({"batch_invariant": [self._load().batch_invariant]})}

    def close(self) -> None:
        """Let go of the engine."""
        if self._engine is not None and hasattr(self._engine, "close"):
            self._engine.close()
        self._engine = None

    def _files(self) -> Iterator[tuple[str, str, pa.Table]]:
        for split in self._job.parent.splits:
            for entry in self._job.parent.files(split):
                yield split, entry["path"], self._winners(entry["path"])

    def _winners(self, path: str) -> pa.Table:
        """Those of a file. Naming them by their tokens takes a while, so the last file's are kept, as its rows are."""
        last = self._last  # units are read in another thread than they are computed in
        if last is None or last[0] != path:
            last = self._last = (path, winners(self._job.parent.kind, self._job.reader.file(path)))
        return last[1]

    def _key(self, members: list[str]) -> str:
        options = self._job.options
        config = {
            "mode": options.mode,
            "segment_tokens": options.segment_tokens,
            "negatives": self._job.segments,  # that are drawn; which are kept changes nothing here
            "max_redraws": options.max_redraws,
            "seed": options.seed,
            "round": self._job.round,
            "sampling": self.sampling_config,
            "max_length": self._max_length,
            "model": self._job.description["digest"],
            "config": self._job.description["config_digest"],
            "engine": options.engine,
            "dtype": options.dtype,
        }
        return unit_key("generate", spelled(config), members)

    def _plan(self, row: dict[str, Any], index: int) -> Draw:
        options = self._job.options
        answer = segments.Answer(
            prompt_tokens=len(row["prompt_ids"]),
            tokens=len(row["answer_ids"]),
            content_start=row["content_start"],
            max_length=self._max_length,
        )
        rng = generator(row_seed(options.seed, row["answer_id"], "cut", self._job.round, index))
        cut = segments.RULES[options.mode](answer, options.segment_tokens, rng)
        if isinstance(cut, SetAside):
            return Draw(row["answer_id"], index, cut=None, reason=cut.reason, detail=cut.detail)
        return Draw(row["answer_id"], index, cut=cut)

    def _draw(self, pending: list[Draw], by_id: dict[str, dict[str, Any]], attempt: int, unit: Unit) -> None:
        options = self._job.options
        requests = []
        for draw in pending:
            row = by_id[draw.answer_id]
            draw.seed = row_seed(options.seed, draw.answer_id, "segment", self._job.round, draw.index, attempt)
            draw.attempt = attempt
            prefix = (*row["prompt_ids"], *row["answer_ids"][: draw.required_cut.start])
            requests.append(engines.Request(draw.key, prefix, draw.required_cut.new_tokens, draw.seed))
        by_key = {draw.key: draw for draw in pending}
        written = 0
        for number, sample in enumerate(self._load().generate(requests, self._sampling), start=1):
            if attempt == 0:  # what is drawn again is little
                unit.tell(number / len(requests))
            written += len(sample.token_ids)
            draw = by_key[sample.key]
            draw.take(by_id[draw.answer_id]["answer_ids"], sample.token_ids, self._end_ids)
        unit.spend(written + sum(len(request.prompt_ids) for request in requests))

    def _load(self) -> Any:
        if self._engine is None:
            self._engine = engines.load(self._job.options.engine, self._job.model, **self._loading)
        return self._engine


def _assembly(
    job: BuildSapoNegatives, renderer: Any, sampling: dict[str, Any], end_ids: tuple[int, ...]
) -> dict[str, Any]:
    """What every row of the build says of its making."""
    loaded = renderer.like(job.parent.manifest["tokenizer"], job.model, trust_remote_code=job.options.trust_remote_code)
    return {
        "method": job.options.mode,
        "generator": f"{job.description['name']}@{job.description['digest'][:12]}",
        "sampling": json.dumps(sampling, sort_keys=True),
        "round": job.round,
        "end_ids": end_ids,
        "decode": loaded.decode,
    }


def _judge(rows: pa.Table, built: Assembled, seen: set[bytes], keep: Callable[[pl.DataFrame], pl.Series]) -> list[bool]:
    """Which rows are published: finite log-probs, no equal row before, and of those of an answer the ones that are kept.

    Why the others are not goes to `built`.
    """
    if rows.num_rows == 0:
        return []
    ids, parents = rows["row_id"].to_pylist(), rows["parent_row_id"].to_pylist()
    finite = scoring.finite(pairs.KIND, rows).to_pylist()
    places: dict[bytes, int] = {}  # of what could be published
    for place, (row_id, parent) in enumerate(zip(ids, parents, strict=True)):
        name = bytes.fromhex(row_id)
        if not finite[place]:
            built.failures.append((parent, scoring.NAME, SetAside("not_finite")))
        elif name in seen or name in places:
            built.failures.append((parent, "publish", SetAside("duplicate_row", f"row {row_id} was made before")))
        else:
            places[name] = place
    named = {
        "answer_id": "parent_row_id",
        "row_id": "row_id",
        "logps": "ref_rejected_logps",
        "tokens": "rejected_tokens",
    }
    columns = {name: rows[column].take(list(places.values())) for name, column in named.items()}
    kept = [False] * rows.num_rows
    for (name, place), ok in zip(places.items(), keep(pl.DataFrame(columns)), strict=True):
        kept[place] = ok
        if ok:
            seen.add(name)
        else:
            built.failures.append((parents[place], "publish", SetAside("not_kept")))
    return kept


def _ledger(built: Assembled, rows: pa.Table, kept: list[bool]) -> pa.Table:
    """A line per good answer: kept if any negative was made, with the reasons of those that were not."""
    made: dict[str, list[str]] = {row: [] for row in built.parents}
    if rows.num_rows:
        for parent, row_id, ok in zip(rows["parent_row_id"].to_pylist(), rows["row_id"].to_pylist(), kept, strict=True):
            if ok:
                made[parent].append(row_id)
    failures: dict[str, list[tuple[str, SetAside]]] = {}
    for parent, stage, aside in built.failures:
        failures.setdefault(parent, []).append((stage, aside))
    return ledger_lines(ledger.line(parent, made[parent], failures.get(parent, []), STAGES) for parent in built.parents)


def _identity(rows: pa.Table) -> pa.Table:
    return rows


def _nothing_known() -> None:
    return None
