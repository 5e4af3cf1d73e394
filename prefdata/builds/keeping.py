"""Jobs that keep some of the parent's completions, each with what the selection says of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.selecting import STAGE, Selecting, chunks, finite, merged
from prefdata.versions import Version
from schemas import completions

STAGES = (STAGE, scoring.NAME, "publish")


@dataclass(frozen=True)
class Kept:
    """rows: row_id and columns of schemas.completions.SELECTED, in the order of the new rows; aside: row_id, reason, detail."""

    rows: pl.DataFrame
    aside: pl.DataFrame


class CompletionsJob(Selecting):
    """Publishes completions of the parent, unchanged but for columns that the selection adds."""

    kinds = (completions.KIND,)
    keeps_columns = True
    brings_logps = True

    def select(self, split: str) -> Kept:
        """What is kept of a split."""
        raise NotImplementedError

    def told(self) -> dict[str, pa.Table]:
        """Tables of statistics that only this build has."""
        return {}

    @cached_property
    def selected(self) -> dict[str, Kept]:
        """By split."""
        return {split: self.select(split) for split in self.parent.splits}

    def units(self) -> Iterator[tuple[str, pa.Table]]:
        """Runs of completions."""
        for split in self.parent.splits:
            for chunk in chunks(self.selected[split].rows, self.run_rows):
                yield split, _with_columns(self.by_id.take(chunk["row_id"]), chunk)

    def known(self, rows: pa.Table) -> pa.Table | None:
        """They have their log-probs with them, if any."""
        return rows

    def publish(self) -> Version:
        """Completions with their reference columns, and a ledger line for every row of the parent."""
        added = logical.schema_of(completions.KIND, completions.SELECTED, completions.REFERENCE)
        schema = pa.unify_schemas([self.parent.schema, added])
        failed: list[str] = []
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for split, rows in self.units():
                scored = self.scored(rows)
                fine = finite(scored, completions.KIND)
                failed += scored.filter(pa.array(~fine))["row_id"].to_pylist()
                staging.add(split, scored.filter(pa.array(fine)).select(schema.names))
            for split in self.parent.splits:
                read = (self.parent.read(entry, ["row_id"]) for entry in self.parent.files(split))
                for rows in merged(read):
                    staging.ledger(self._lines(split, rows, failed))
            return finish.publish(staging, STAGES, self.fields(completions.KIND), self.told())

    def _lines(self, split: str, rows: pa.Table, failed: list[str]) -> pa.Table:
        own, kept = pl.DataFrame({"row_id": rows["row_id"]}), self.selected[split]
        bad = pl.DataFrame({"row_id": failed}, schema={"row_id": pl.String})
        made = kept.rows.select("row_id", made="row_id").join(bad, on="row_id", how="anti", maintain_order="left")
        unscored = bad.with_columns(
            stage=pl.lit(scoring.NAME), reason=pl.lit("not_finite"), detail=pl.lit(None, pl.String)
        )
        aside = kept.aside.select("row_id", pl.lit(STAGE).alias("stage"), "reason", "detail")
        within: dict[str, Any] = {"on": "row_id", "how": "semi", "maintain_order": "left"}
        return ledger.lines(own, made.join(own, **within), pl.concat([unscored, aside]).join(own, **within), STAGES)


def _with_columns(rows: pa.Table, chunk: pl.DataFrame) -> pa.Table:
    """The rows with all columns of the selection, set where the chunk has them."""
    found = chunk.to_arrow()
    for field in completions.SELECTED:
        present = field.name in found.column_names
        column = found[field.name].cast(field.type) if present else pa.nulls(rows.num_rows, field.type)
        index = rows.schema.get_field_index(field.name)
        rows = rows.append_column(field, column) if index < 0 else rows.set_column(index, field, column)
    return rows
