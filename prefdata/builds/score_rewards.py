"""score-rewards: a version's completions with what scorers give them, side by side, one of them as `score`.

Every scorer is a stage of its own, whose units are keyed by what it is and what it reads: another scorer beside it, another
weight, another choice of `score` runs none of them again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import scorers, versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.inputs import ParentReader, reference_model, same_reference
from prefdata.builds.job import Stage, Unit, build_key
from prefdata.builds.options import as_config, check, option
from prefdata.errors import UserError
from prefdata.identity import digest, spelled
from prefdata.models import DTYPES
from prefdata.records import SetAside
from prefdata.scorers import Called, Scorer, Settings
from prefdata.select.weighing import weighted_mean
from prefdata.versions import Version
from prefdata.work import Tables, Work, unit_key
from schemas import completions

NAME = "score-rewards"
STAGE = "score"
STAGES = (STAGE, scoring.NAME, "publish")
MEAN = "mean"
_VERDICTS = pa.schema([("score", pa.float64()), ("reason", pa.string()), ("detail", pa.string())])
_ASIDE: dict[str, Any] = {"row_id": pl.String, "stage": pl.String, "reason": pl.String, "detail": pl.String}


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option("latest", "version whose completions are scored: vN, a tag, latest, a path or a URL")
    scorer: tuple[str, ...] = option(
        (),
        "what scores, as [NAME=]KIND[:WHAT]; several stand side by side: reward_model:FOLDER (or a hub name),"
        " verifier:MODULE:FUNCTION (or an entry point), lexicon (VADER sentiment), given (the scores that are there),"
        " given:NAME (one of them). NAME is what its scores are called (default: the last part)",
    )
    weights: tuple[float, ...] = option(
        (), "a weight for each scorer: `score` is their weighted mean, called mean (default: no mean)"
    )
    score: str | None = option(
        None, "name of the scorer whose scores selections read (default: the mean, else the first scorer)"
    )
    reference: str | None = option(
        None, "model whose log-probs are stored (default: those that are there stay; else the source's own model)"
    )
    with_reference: bool = option(True, "add the reference's log-probs where there are none")
    dtype: str = option("float32", "precision of the models' weights", choices=DTYPES)
    unit_rows: int = option(1024, "completions per unit of work", least=1)
    trust_remote_code: bool = option(False, "run Python code that comes with a model")


class ScoreRewards:
    """The job: a stage for each scorer, then the reference's log-probs where they are wanted, then publish."""

    name = NAME
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        called = scorers.parse_all(options.scorer)
        self.score = _chosen(options, [each.name for each in called])
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=(completions.KIND,))
        versions.writable(self.root)
        self.work = Work(self.root)
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        settings = Settings(self.parent.manifest["tokenizer"], options.dtype, options.trust_remote_code)
        self._reader = ParentReader(self.parent)
        self._stages = [ScorerStage(each, scorers.load(each, settings), self._chunks) for each in called]
        self.reference, self._scoring = self._referenced()
        self.notices = [f"reading {self.parent.name} at {self.parent.url}", *self._said()]
        self.config = as_config(options, "unit_rows", source=self.parent.name, score=self.score)
        fingerprints = {"scorers": [stage.entry for stage in self._stages], "reference": self.reference}
        self.build_key = build_key(NAME, self.config, [self.parent], fingerprints)

    def stages(self) -> Iterator[Stage]:
        """Scorer by scorer."""
        yield from self._stages
        if self._scoring is not None:
            yield self._scoring

    def publish(self) -> Version:
        """The parent's rows with their scores; a row that a scorer gave none is set aside with the reason."""
        added = [completions.OPTIONAL.field("scores"), *(completions.REFERENCE if self._scoring else [])]
        schema = pa.unify_schemas([self.parent.schema, pa.schema(added)])
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for split, rows in self._split_chunks():
                scored = self._scored(rows)
                aside, kept = scored.aside, rows.filter(pa.array(scored.kept))
                kept = _with_scores(kept, scored.scores.filter(scored.kept), self.score)
                if self._scoring is not None and kept.num_rows:
                    kept = scoring.attached(self._scoring, kept, self.work)
                    finite = pl.Series(scoring.finite(completions.KIND, kept))
                    aside = pl.concat([aside, _not_finite(kept, finite)])
                    kept = kept.filter(pa.array(finite))
                staging.add(split, kept.select(schema.names))
                own = pl.DataFrame({"row_id": rows["row_id"]})
                made = pl.DataFrame({"row_id": kept["row_id"], "made": kept["row_id"]})
                staging.ledger(ledger.lines(own, made, aside, STAGES))
            return finish.publish(staging, STAGES, self._fields())

    # -- rows ------------------------------------------------------------------------------------------------------

    def _split_chunks(self) -> Iterator[tuple[str, pa.Table]]:
        for split in self.parent.splits:
            for entry in self.parent.files(split):
                for start in range(0, entry["rows"], self.options.unit_rows):
                    yield split, self._reader.slice(entry["path"], start, self.options.unit_rows)

    def _chunks(self) -> Iterator[pa.Table]:
        return (rows for _, rows in self._split_chunks())

    def _scored(self, rows: pa.Table) -> "_Scored":
        """From the finished units."""
        found = {stage.called.name: stage.verdicts(rows, self.work) for stage in self._stages}
        scores = pl.DataFrame({name: verdicts["score"] for name, verdicts in found.items()})
        own = pl.Series("row_id", rows["row_id"])
        aside = [pl.DataFrame(schema=_ASIDE)]
        for name, verdicts in found.items():
            told = verdicts.select(
                row_id=own,
                stage=pl.lit(STAGE),
                reason="reason",
                detail=pl.concat_str([pl.lit(f"scorer {name}"), "detail"], separator=": ", ignore_nulls=True),
            )
            aside.append(told.filter(pl.col("reason").is_not_null()))
        kept = scores.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
        if self.options.weights:
            scores = scores.with_columns(weighted_mean(scores.get_columns(), self.options.weights).alias(MEAN))
        return _Scored(scores, kept, pl.concat(aside))

    def _scoring_batches(self) -> Iterator[scoring.Batch]:
        same = same_reference(self.parent.manifest["reference"], self.reference)
        for rows in self._chunks():
            kept = rows.filter(pa.array(self._scored(rows).kept))
            known: Callable[[], pa.Table | None] = partial(_same, kept) if same else _nothing
            yield scoring.Batch(rows=partial(_same, kept), known=known)

    # -- what is said ----------------------------------------------------------------------------------------------

    def _referenced(self) -> tuple[dict[str, Any] | None, scoring.ReferenceStage | None]:
        options, stored = self.options, self.parent.manifest["reference"]
        if options.reference is None and (stored is not None or not options.with_reference):
            return stored, None
        entry, loading = reference_model(
            self.parent, options.reference, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
        return entry, scoring.ReferenceStage(self._scoring_batches, entry, loading)

    def _said(self) -> Iterator[str]:
        for stage in self._stages:
            if getattr(stage.scorer, "retokenises", False):
                yield (
                    f"{stage.called.name} has another tokenizer or template than {self.parent.name}: it reads the texts, in"
                    " its own"
                )

    def _fields(self) -> dict[str, Any]:
        manifest = self.parent.manifest
        return {
            "kind": completions.KIND,
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "seeds": manifest["seeds"],
            "round": manifest["round"],
            "parents": [versions.parent_entry(self.parent, self.root)],
            "sources": manifest["sources"],
            "tokenizer": manifest["tokenizer"],
            "generator": manifest["generator"],
            "reference": self.reference,
            "scorers": [stage.entry for stage in self._stages],
        }


@dataclass(frozen=True)
class _Scored:
    """scores: a column for each scorer, and the mean; kept: the rows that have them all; aside: why the others have not."""

    scores: pl.DataFrame
    kept: pl.Series
    aside: pl.DataFrame


class ScorerStage:
    """What one scorer gives, unit by unit."""

    name = STAGE

    def __init__(self, called: Called, scorer: Scorer, chunks: Callable[[], Iterator[pa.Table]]) -> None:
        self.called, self.scorer, self._chunks = called, scorer, chunks
        self._fingerprint = digest(spelled(scorer.fingerprint))
        self.entry = {"name": called.name, **scorer.about, **scorer.fingerprint, "fingerprint": self._fingerprint}
        self.runs = scorer.runs

    def units(self) -> Iterator[Unit]:
        """Runs of rows."""
        for rows in self._chunks():
            yield Unit(self._key(rows), rows.num_rows, rows)

    def compute(self, unit: Unit) -> Tables:
        """A line for each row: a score, or the reason why there is none."""
        found = self.scorer.score(unit.inputs, unit.tell, unit.spend)
        return {STAGE: pa.Table.from_pylist([_line(verdict) for verdict in found], schema=_VERDICTS)}

    def verdicts(self, rows: pa.Table, work: Work) -> pl.DataFrame:
        """What a finished unit holds of its rows, in their order."""
        return pl.DataFrame(work.result(self._key(rows))[STAGE])

    def close(self) -> None:
        """Let go of the scorer's model."""
        self.scorer.close()

    def _key(self, rows: pa.Table) -> str:
        return unit_key(NAME, {"scorer": self._fingerprint}, self.scorer.members(rows))


def _line(verdict: scorers.Verdict) -> dict[str, Any]:
    if isinstance(verdict, SetAside):
        return {"score": None, "reason": verdict.reason, "detail": verdict.detail or None}
    if not math.isfinite(verdict):
        return {"score": None, "reason": "score_not_finite", "detail": f"it gave {verdict}"}
    return {"score": verdict, "reason": None, "detail": None}


def _chosen(options: Options, names: Sequence[str]) -> str:
    """The name of the scores that become `score`."""
    if options.weights:
        if len(options.weights) != len(names):
            raise UserError(
                f"{len(options.weights)} weights for {len(names)} scorers: give one for each, in their order."
            )
        if MEAN in names:
            raise UserError(f"a scorer is called {MEAN}, and so is the mean of all: give it another name.")
        weighted_mean([], options.weights)
    known = [*names, *([MEAN] if options.weights else [])]
    if options.score is not None and options.score not in known:
        raise UserError(f"score is {options.score!r}; it can be: {', '.join(known)}")
    return options.score or (MEAN if options.weights else names[0])


def _with_scores(rows: pa.Table, scores: pl.DataFrame, score: str) -> pa.Table:
    """Rows with what scorers gave them beside what they had; of equal names the new one stays."""
    new = scores.columns
    before = rows["scores"].to_pylist() if "scores" in rows.column_names else [None] * rows.num_rows
    told = [
        [each for each in old or () if each["scorer"] not in new]
        + [{"scorer": name, "score": value} for name, value in zip(new, values, strict=True)]
        for old, values in zip(before, scores.rows(), strict=True)
    ]
    rows = _set(rows, completions.OPTIONAL.field("scores"), told)
    return _set(rows, completions.BASE.field("score"), scores[score].to_list())


def _set(rows: pa.Table, field: pa.Field, values: list[Any]) -> pa.Table:
    column = pa.array(values, field.type)
    place = rows.schema.get_field_index(field.name)
    return rows.append_column(field, column) if place < 0 else rows.set_column(place, field, column)


def _not_finite(rows: pa.Table, finite: pl.Series) -> pl.DataFrame:
    told = pl.DataFrame({"row_id": rows["row_id"]}).filter(~finite)
    return told.select(
        "row_id", stage=pl.lit(scoring.NAME), reason=pl.lit("not_finite"), detail=pl.lit(None, pl.String)
    )


def _same(rows: pa.Table) -> pa.Table:
    return rows


def _nothing() -> None:
    return None
