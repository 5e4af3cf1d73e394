"""Jobs that make pairs: scored by the reference, banded by difficulty."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import logical
from prefdata.builds.making import MakingJob
from prefdata.builds.selecting import LOOKED_UP_ROWS, chunks
from prefdata.select.paired import Selected
from prefdata.select.pairing import joined
from schemas import pairs

Margins = dict[str, np.ndarray[Any, Any]]  # of score and of the reference, NaN where there is none


class PairsJob(MakingJob):
    """Makes pairs, banded by difficulty."""

    makes = pairs.KIND
    called = "pair"

    @property
    def schema(self) -> pa.Schema:
        """That of the new rows."""
        return logical.schema_of(pairs.KIND, pairs.SELECTED, pairs.REFERENCE)

    def scored_units(self) -> Iterator[tuple[str, pa.Table]]:
        """With the bands of every unit's rows."""
        for (split, rows), band in zip(super().scored_units(), self._bands(), strict=True):
            yield split, _banded(rows, band)

    def _bands(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Of every unit, its rows' bands of difficulty; the bounds are quantiles over all rows."""
        units = [*self.margins()]
        found = {name: _ranks([unit[name] for unit in units], self.options.bands) for name in ("score", "reference")}
        return ({name: bands[number] for name, bands in found.items()} for number in range(len(units)))

    def margins(self) -> Iterator[Margins]:
        """Of every unit; they are looked at before any row is published."""
        return (_margins(self.scored(rows)) for _, rows in self.units())


class PairsOfCompletions(PairsJob):
    """Pairs of which each side is a completion of the parent."""

    brings_logps = True
    method: str  # what rows call the way in which they came about

    def select(self, split: str) -> Selected:
        """The pairs of a split, by row ids, and why the other completions stand in none."""
        raise NotImplementedError

    @cached_property
    def selected(self) -> dict[str, Selected]:
        """By split."""
        return {split: self.select(split) for split in self.parent.splits}

    def units(self) -> Iterator[tuple[str, pa.Table]]:
        """Runs of pairs in the order of the parent's prompts."""
        for split in self.parent.splits:
            for chunk in chunks(self.selected[split].pairs, self.run_rows):
                both = self.by_id.take(pl.concat([chunk["chosen"], chunk["rejected"]]))  # each file is read once
                chosen, rejected = both.slice(0, chunk.height), both.slice(chunk.height)
                yield split, joined(chosen, rejected, chunk.to_arrow(), self.method, referenced=self.carried)

    def margins(self) -> Iterator[Margins]:
        """Without the rows, where the log-probs are the parent's."""
        if not self.carried:
            yield from super().margins()
            return
        for split in self.parent.splits:
            sums = self.answers(split).select("row_id", "reference")
            for chunk in chunks(self.selected[split].pairs, self.run_rows):
                chosen, rejected = (
                    chunk.select(row_id=side).join(sums, on="row_id", how="left", maintain_order="left")["reference"]
                    for side in ("chosen", "rejected")
                )
                yield {"score": chunk["margin"].to_numpy(), "reference": (chosen - rejected).to_numpy()}

    def known(self, rows: pa.Table) -> pa.Table | None:
        """The completions, if their log-probs are stored."""
        if "ref_completion_token_logps" not in self.parent.columns():
            return None
        ids = [*rows["chosen_row_id"].to_pylist(), *rows["rejected_row_id"].to_pylist()]
        return self.by_id.take(list(dict.fromkeys(ids)))

    def parents_rows(self, split: str) -> Iterator[pa.Table]:
        """Their ids, which are known by now."""
        return (chunk.to_arrow() for chunk in chunks(self.answers(split).select("row_id"), LOOKED_UP_ROWS))

    def parents_of(self, rows: pa.Table) -> pl.DataFrame:
        """Both sides."""
        made, numbers = pl.Series("made", rows["row_id"]), np.arange(rows.num_rows)
        sides = [pl.Series(rows[f"{side}_row_id"]) for side in ("chosen", "rejected")]
        return pl.concat([pl.DataFrame({"row_id": side, "made": made, "number": numbers}) for side in sides])

    def aside(self, split: str, rows: pa.Table) -> pl.DataFrame:
        """What the selection says."""
        return self.selected[split].aside


def _banded(rows: pa.Table, bands: dict[str, np.ndarray[Any, Any]]) -> pa.Table:
    for name, values in bands.items():
        field = pairs.SELECTED.field(f"{name}_band")
        column = pa.array(values, field.type, mask=values < 0)
        rows = rows.set_column(rows.schema.get_field_index(field.name), field, column)
    return rows


def _margins(rows: pa.Table) -> Margins:
    """Of every row its margin of score and of the reference; NaN where it has none."""
    score = rows["margin"].to_numpy(zero_copy_only=False) if rows["margin"].null_count < len(rows) else None
    chosen, rejected = (rows[f"ref_{side}_logps"].to_numpy().astype(np.float64) for side in ("chosen", "rejected"))
    return {
        "score": np.full(len(rows), np.nan) if score is None else np.asarray(score, np.float64),
        "reference": chosen - rejected,
    }


def _ranks(units: list[np.ndarray[Any, Any]], bands: int) -> list[np.ndarray[Any, Any]]:
    """Bands of equal size by falling margin; -1 where there is no margin. Equal margins share the lower band."""
    every = np.concatenate(units) if units else np.zeros(0)
    known = every[np.isfinite(every)]
    if not len(known):
        return [np.full(len(unit), -1) for unit in units]
    bounds = np.quantile(known, np.linspace(1, 0, bands + 1)[1:-1])
    return [
        np.where(np.isfinite(unit), (np.nan_to_num(unit)[:, None] < bounds[None, :]).sum(axis=1), -1) for unit in units
    ]
