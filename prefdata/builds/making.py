"""Jobs that make new rows from the parent's: scored by the reference, each row of the parent with its ledger line."""

from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.selecting import STAGE, Selecting, finite, merged
from prefdata.versions import Version

STAGES = (STAGE, scoring.NAME, "publish")
_FAILED: dict[str, Any] = {"row_id": pl.String, "stage": pl.String, "reason": pl.String, "detail": pl.String}
_MADE: dict[str, Any] = {"row_id": pl.String, "made": pl.String}


class MakingJob(Selecting):
    """Publishes units of rows. Which they are, and which rows of the parent each is made from, its subclass says."""

    # the kind of the new rows, and what the ledger calls one
    makes: str
    called: str

    # columns of the parent's rows that `aside` looks at
    judged_by: tuple[str, ...] = ("row_id",)

    @property
    def schema(self) -> pa.Schema:
        """That of the new rows."""
        raise NotImplementedError

    def parents_of(self, rows: pa.Table) -> pl.DataFrame:
        """row_id of a row of the parent, `made`: a row made from it, `number`: that row's place."""
        raise NotImplementedError

    def aside(self, split: str, rows: pa.Table) -> pl.DataFrame:
        """row_id, reason, detail of those of the parent's rows that were not selected."""
        raise NotImplementedError

    def scored_units(self) -> Iterator[tuple[str, pa.Table]]:
        """Every unit with its reference columns, and what else is known once all are scored."""
        return ((split, self.scored(rows)) for split, rows in self.units())

    def told(self) -> dict[str, pa.Table]:
        """Tables of statistics that only this build has."""
        return {}

    def publish(self) -> Version:
        """New rows with their reference columns, and a ledger line for every row of the parent."""
        schema = self.schema
        seen: set[bytes] = set()
        made, failed = [pl.DataFrame(schema=_MADE)], [pl.DataFrame(schema=_FAILED)]
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for split, rows in self.scored_units():
                fine, new = finite(rows, self.makes), _new(rows["row_id"].to_pylist(), seen)
                told = self.parents_of(rows)
                made.append(_of(told, fine & new).select("row_id", "made"))
                failed.append(self._failures(told, ~fine, scoring.NAME, "not_finite"))
                failed.append(self._failures(told, fine & ~new, "publish", "duplicate_row"))
                staging.add(split, rows.filter(pa.array(fine & new)).select(schema.names))
            for lines in self._ledger(pl.concat(made), pl.concat(failed)):
                staging.ledger(lines)
            return finish.publish(staging, STAGES, self.fields(self.makes), self.told())

    def parents_rows(self, split: str) -> Iterator[pa.Table]:
        """Of the parent's rows, in order, the columns that `aside` looks at."""
        return merged(self.parent.read(entry, self.judged_by) for entry in self.parent.files(split))

    def _ledger(self, made: pl.DataFrame, failed: pl.DataFrame) -> Iterator[pa.Table]:
        for split in self.parent.splits:
            for rows in self.parents_rows(split):
                own = pl.DataFrame({"row_id": rows["row_id"]})
                told = self.aside(split, rows).select("row_id", pl.lit(STAGE).alias("stage"), "reason", "detail")
                why = pl.concat([failed, told]).join(own, on="row_id", how="semi", maintain_order="left")
                yield ledger.lines(own, made.join(own, on="row_id", how="semi", maintain_order="left"), why, STAGES)

    def _failures(self, told: pl.DataFrame, bad: pl.Series, stage: str, reason: str) -> pl.DataFrame:
        detail = pl.format(f"{self.called} {{}}", "made")
        return _of(told, bad).select("row_id", stage=pl.lit(stage), reason=pl.lit(reason), detail=detail)


def _new(row_ids: list[str], seen: set[bytes]) -> pl.Series:
    """Which ids come for the first time."""
    new = []
    for row_id in row_ids:
        name = bytes.fromhex(row_id) if len(row_id) == 64 else row_id.encode()
        new.append(name not in seen)
        seen.add(name)
    return pl.Series(new, dtype=pl.Boolean)


def _of(told: pl.DataFrame, which: pl.Series) -> pl.DataFrame:
    """What is told of the rows at these places."""
    return told.filter(pl.Series(which.to_numpy()[told["number"].to_numpy()], dtype=pl.Boolean))
