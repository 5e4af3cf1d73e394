"""Completions with what scorers give them, side by side, one of them as `score`.

Every scorer is a stage of its own, whose units are keyed by what it is and what it reads: another scorer beside it, another
weight, another choice of `score` runs none of them again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import scorers
from prefdata.builds.earlier_scores import EarlierScores
from prefdata.builds.job import Stage, Unit, build_key
from prefdata.builds.options import as_config
from prefdata.builds.score_options import LAYOUT, Options
from prefdata.builds.scored_rows import ASIDE, NAME, STAGE, ScoredRows, with_column
from prefdata.errors import UserError
from prefdata.identity import digest, spelled
from prefdata.records import SetAside
from prefdata.scorers import Called, Scorer, Settings
from prefdata.select.weighing import weighted_mean
from prefdata.work import Tables, Work, unit_key
from schemas import completions

MEAN = "mean"
_VERDICTS = pa.schema([("score", pa.float64()), ("reason", pa.string()), ("detail", pa.string())])


class ScoredCompletions(ScoredRows):
    """The job on completions: a stage for each scorer."""

    kinds = (completions.KIND,)
    added = pa.schema([completions.OPTIONAL.field("scores")])

    def __init__(self, options: Options, called: Sequence[Called], root: str | None = None) -> None:
        self.score = _chosen(options, [each.name for each in called])
        super().__init__(options, root)
        settings = Settings(self.parent.manifest["tokenizer"], options.dtype, options.trust_remote_code)
        self._stages = [ScorerStage(each, scorers.load(each, settings), self.root, self.chunks) for each in called]
        self.notices += [
            f"{stage.called.name} has another tokenizer or template than {self.parent.name}: it reads the texts, in its own"
            for stage in self._stages
            if getattr(stage.scorer, "retokenises", False)
        ]
        self.config = as_config(options, *LAYOUT, source=self.parent.name, score=self.score)
        fingerprints = {"scorers": self.entries(), "reference": self.reference}
        self.build_key = build_key(NAME, self.config, [self.parent], fingerprints)

    def scorers(self) -> Iterator[Stage]:
        """In the order they were named."""
        yield from self._stages

    def entries(self) -> list[dict[str, Any]]:
        """Names and fingerprints."""
        return [stage.entry for stage in self._stages]

    def scored(self, rows: pa.Table) -> tuple[pa.Table, pl.DataFrame]:
        """Rows that every scorer gave a number."""
        found = {stage.called.name: stage.verdicts(rows, self.work) for stage in self._stages}
        scores = pl.DataFrame({name: verdicts["score"] for name, verdicts in found.items()})
        own = pl.Series("row_id", rows["row_id"])
        aside = [pl.DataFrame(schema=ASIDE)]
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
        return _with_scores(rows.filter(pa.array(kept)), scores.filter(kept), self.score), pl.concat(aside)


class ScorerStage:
    """What one scorer gives, unit by unit."""

    name = STAGE

    def __init__(
        self, called: Called, scorer: Scorer, root: str, chunks: Callable[[], Iterator[tuple[str, pa.Table]]]
    ) -> None:
        self.called, self.scorer, self._chunks = called, scorer, chunks
        self._fingerprint = digest(spelled(scorer.fingerprint))
        self._earlier = EarlierScores(root, self._fingerprint, scorer)
        self.entry = {"name": called.name, **scorer.about, **scorer.fingerprint, "fingerprint": self._fingerprint}
        self.runs = scorer.runs

    def units(self) -> Iterator[Unit]:
        """Runs of rows."""
        for _, rows in self._chunks():
            yield Unit(self._key(rows), rows.num_rows, rows)

    def compute(self, unit: Unit) -> Tables:
        """A line for each row: a score, or the reason why there is none."""
        rows = unit.inputs
        known = self._earlier.of(self.scorer.members(rows))
        new = rows.filter(pa.array([score is None for score in known]))
        scored = iter(self.scorer.score(new, unit.tell, unit.spend) if new.num_rows else ())
        found = [next(scored) if score is None else score for score in known]
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
    rows = with_column(rows, completions.OPTIONAL.field("scores"), told)
    return with_column(rows, completions.BASE.field("score"), scores[score].to_list())
