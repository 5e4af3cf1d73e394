"""Pairs with a judge's verdicts in both orders, and the probability that chosen is better, fitted to what people said.

The judge also judges the pairs of `calibrate_on`, whose preferences are people's; how it does there goes into the manifest.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import versions
from prefdata.builds.job import Stage, Unit, build_key
from prefdata.builds.options import as_config
from prefdata.builds.score_options import LAYOUT, Options
from prefdata.builds.scored_rows import NAME, STAGE, ScoredRows, with_column
from prefdata.errors import UserError
from prefdata.identity import digest, spelled
from prefdata.scorers import Called, calibration
from prefdata.scorers.calibration import Calibration, Votes
from prefdata.scorers.judge import VERDICTS, Judge
from prefdata.work import Tables, Work, unit_key
from schemas import pairs

_VOTE = {"chosen": 1, "tie": 0, "rejected": -1}


class JudgedPairs(ScoredRows):
    """The job on pairs: one judge."""

    kinds = (pairs.KIND,)
    added = pairs.JUDGED

    def __init__(self, options: Options, called: Sequence[Called], root: str | None = None) -> None:
        if len(called) > 1 or options.weights or options.score is not None:
            raise UserError("one judge judges pairs: name one scorer, without --weights and --score.")
        super().__init__(options, root)
        (self._called,) = called
        self.judge = Judge.at(
            options.server,
            model=self._called.what,
            api_key_env=options.api_key_env,
            concurrency=options.concurrency,
            most_tokens=options.judge_tokens,
        )
        people = options.calibrate_on
        self.people = versions.find(people, root=root, kinds=(pairs.KIND,)) if people else None
        if self.people is None:
            self.notices.append(
                "preference will be the share of the judge's votes: name pairs that people judged with --calibrate-on to"
                " have it fitted to theirs"
            )
        self._stage = JudgeStage(self.judge, self.chunks)
        self._practice = JudgeStage(self.judge, self._people_chunks)
        self.config = as_config(
            options,
            *LAYOUT,
            source=self.parent.name,
            calibrate_on=None if self.people is None else self.people.name,
        )
        parents = [self.parent, *([self.people] if self.people else [])]
        fingerprints = {"judge": self.judge.fingerprint, "reference": self.reference}
        self.build_key = build_key(NAME, self.config, parents, fingerprints)

    def scorers(self) -> Iterator[Stage]:
        """What people judged first: a judge that can't be calibrated is refused before it judges more."""
        if self.people is not None:
            yield self._practice
            _ = self.calibration
        yield self._stage

    def entries(self) -> list[dict[str, Any]]:
        """The judge, and how it does beside people."""
        entry: dict[str, Any] = {"name": self._called.name, **self.judge.fingerprint}
        entry["fingerprint"] = self._stage.fingerprint
        if self.calibration is not None and self.people is not None:
            on = {"version": self.people.name, "logical_hash": self.people.logical_hash}
            entry["calibration"] = {"on": on, **self.calibration.as_dict()}
        return [entry]

    def scored(self, rows: pa.Table) -> tuple[pa.Table, pl.DataFrame]:
        """Pairs that the judge gave a verdict in both orders."""
        found = self._stage.verdicts(rows, self.work)
        kept = found["reason"].is_null()
        told = found.select(row_id=pl.Series(rows["row_id"]), stage=pl.lit(STAGE), reason="reason", detail="detail")
        return self._with_verdicts(rows.filter(pa.array(kept)), found.filter(kept)), told.filter(~kept)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Fitted on the pairs that people judged, in both splits."""
        if self.people is None:
            return None
        votes: list[Votes] = []
        human: list[float] = []
        groups: list[str] = []
        for _, rows in self._people_chunks():
            found = self._practice.verdicts(rows, self.work)
            kept = found["reason"].is_null()
            rows = rows.filter(pa.array(kept))
            votes.append(_votes(rows, found.filter(kept)))
            human += [1.0 if value is None else value for value in rows["preference"].to_pylist()]
            groups += rows["prompt_id"].to_pylist()
        return calibration.calibrate(Votes.joined(votes), np.array(human), groups)

    def _people_chunks(self) -> Iterator[tuple[str, pa.Table]]:
        assert self.people is not None
        for split in self.people.splits:
            for rows in self.people.batches(split, rows=self.options.unit_rows):
                yield split, rows

    def _with_verdicts(self, rows: pa.Table, found: pl.DataFrame) -> pa.Table:
        votes = _votes(rows, found)
        likely = votes.share() if self.calibration is None else self.calibration.probability(votes)
        rows = with_column(rows, pairs.BASE.field("preference"), likely.tolist())
        for field in pairs.JUDGED:
            rows = with_column(rows, field, found[field.name].to_list())
        return rows


class JudgeStage:
    """What the judge says, unit by unit."""

    name = STAGE

    def __init__(self, judge: Judge, chunks: Any) -> None:
        self._judge, self._chunks = judge, chunks
        self.fingerprint = digest(spelled(judge.fingerprint))
        self.runs = str(judge.fingerprint["model"])

    def units(self) -> Iterator[Unit]:
        """Runs of pairs."""
        for _, rows in self._chunks():
            yield Unit(self._key(rows), rows.num_rows, rows)

    def compute(self, unit: Unit) -> Tables:
        """A line for each pair: a verdict for each order, or the reason why there is none."""
        return {STAGE: self._judge.compare(unit.inputs, unit.tell, unit.spend)}

    def verdicts(self, rows: pa.Table, work: Work) -> pl.DataFrame:
        """What a finished unit holds of its rows, in their order."""
        return pl.DataFrame(work.result(self._key(rows))[STAGE].select(VERDICTS.names))

    def close(self) -> None:
        """Nothing is held between units."""

    def _key(self, rows: pa.Table) -> str:
        return unit_key(NAME, {"scorer": self.fingerprint}, rows["row_id"].to_pylist())


def _votes(rows: pa.Table, found: pl.DataFrame) -> Votes:
    first, second = (
        found[name].replace_strict(_VOTE, return_dtype=pl.Float64).to_numpy() for name in pairs.JUDGED.names
    )
    chosen, rejected = (rows[f"{side}_tokens"].to_numpy().astype(float) for side in ("chosen", "rejected"))
    return Votes(first, second, np.log(chosen / rejected))
