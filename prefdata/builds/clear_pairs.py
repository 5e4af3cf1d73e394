"""Pairs that are pairs already: those that are clear enough, as they stand."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata.builds.pairing import PairsJob
from schemas import pairs


class ClearPairs(PairsJob):
    """Passes pairs through whose margin and preference, as far as they state any, are large enough."""

    name = "build-paired"
    kinds = (pairs.KIND,)
    keeps_columns = True
    brings_logps = True
    judged_by = ("row_id", "margin", "preference")

    @property
    def schema(self) -> pa.Schema:
        """The parent's own columns too."""
        return pa.unify_schemas([self.parent.schema, super().schema])

    def units(self) -> Iterator[tuple[str, pa.Table]]:
        """Runs of the parent's rows."""
        for split in self.parent.splits:
            for rows in self.parent.batches(split, rows=self.run_rows):
                kept = self._judged(rows)["reason"].is_null()
                if kept.any():
                    yield split, _with_selected(rows.filter(pa.array(kept)))

    def known(self, rows: pa.Table) -> pa.Table | None:
        """They have their log-probs with them, if any."""
        return rows

    def parents_of(self, rows: pa.Table) -> pl.DataFrame:
        """Themselves."""
        made = pl.Series("made", rows["row_id"])
        return pl.DataFrame({"row_id": made, "made": made, "number": np.arange(len(made))})

    def aside(self, split: str, rows: pa.Table) -> pl.DataFrame:
        """Those that are not clear."""
        return self._judged(rows).filter(pl.col("reason").is_not_null())

    def _judged(self, rows: pa.Table) -> pl.DataFrame:
        """row_id, reason, detail of every row; null where it is clear."""
        stated = pl.DataFrame({name: rows[name] for name in self.judged_by})
        narrow = pl.col("margin").is_not_null() & (pl.col("margin") < self.options.min_margin)
        unsure = pl.col("preference").is_not_null() & (pl.col("preference") < self.options.min_preference)
        margin = pl.format("the margin is {}", "margin")
        preference = pl.format("chosen is better with probability {}", "preference")
        return stated.select(
            "row_id",
            reason=pl.when(narrow).then(pl.lit("margin_too_small")).when(unsure).then(pl.lit("preference_too_low")),
            detail=pl.when(narrow).then(margin).when(unsure).then(preference),
        )


def _with_selected(rows: pa.Table) -> pa.Table:
    """Rows with the columns that a selection adds, those they lack as nulls."""
    for field in pairs.SELECTED:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows
