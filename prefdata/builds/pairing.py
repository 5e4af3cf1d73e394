"""Jobs whose rows are pairs: scored by the reference, banded by difficulty, each row of the parent with its ledger line."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.selecting import STAGE, Selecting, chunks, finite
from prefdata.select.paired import Selected
from prefdata.select.pairing import joined
from prefdata.versions import Version
from schemas import pairs

STAGES = (STAGE, scoring.NAME, "publish")
_FAILED: dict[str, Any] = {"row_id": pl.String, "stage": pl.String, "reason": pl.String, "detail": pl.String}
_MADE: dict[str, Any] = {"row_id": pl.String, "made": pl.String}


class PairsJob(Selecting):
    """Publishes units of pairs. Which they are, and which rows of the parent each is made from, its subclass says."""

    def parents_of(self, rows: pa.Table) -> pl.DataFrame:
        """row_id of a row of the parent, `made`: a row made from it, `number`: that row's place."""
        raise NotImplementedError

    def aside(self, split: str, rows: pa.Table) -> pl.DataFrame:
        """row_id, reason, detail of those of the parent's rows that were not selected."""
        raise NotImplementedError

    # columns of the parent's rows that `aside` looks at
    judged_by: tuple[str, ...] = ("row_id",)

    @property
    def schema(self) -> pa.Schema:
        """That of the new rows."""
        return logical.schema_of(pairs.KIND, pairs.SELECTED, pairs.REFERENCE)

    def publish(self) -> Version:
        """Pairs with their reference columns and bands, and a ledger line for every row of the parent."""
        schema = self.schema
        seen: set[bytes] = set()
        made, failed = [pl.DataFrame(schema=_MADE)], [pl.DataFrame(schema=_FAILED)]
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for (split, rows), band in zip(self.units(), self._bands(), strict=True):
                scored = self.scored(rows)
                fine, new = finite(scored, pairs.KIND), _new(scored["row_id"].to_pylist(), seen)
                told = self.parents_of(scored)
                made.append(_of(told, fine & new).select("row_id", "made"))
                failed.append(_failures(told, ~fine, scoring.NAME, "not_finite"))
                failed.append(_failures(told, fine & ~new, "publish", "duplicate_row"))
                kept = pa.array(fine & new)
                staging.add(split, _banded(scored, band).filter(kept).select(schema.names))
            for lines in self._ledger(pl.concat(made), pl.concat(failed)):
                staging.ledger(lines)
            return finish.publish(staging, STAGES, self.fields(pairs.KIND), self.told())

    def told(self) -> dict[str, pa.Table]:
        """Tables of statistics that only this build has."""
        return {}

    def _bands(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Of every unit, its rows' bands of difficulty; the bounds are quantiles over all rows."""
        units = [_margins(self.scored(rows)) for _, rows in self.units()]
        found = {name: _ranks([unit[name] for unit in units], self.options.bands) for name in ("score", "reference")}
        return ({name: bands[number] for name, bands in found.items()} for number in range(len(units)))

    def _ledger(self, made: pl.DataFrame, failed: pl.DataFrame) -> Iterator[pa.Table]:
        for split in self.parent.splits:
            for entry in self.parent.files(split):
                rows = self.parent.read(entry, self.judged_by)
                own = pl.DataFrame({"row_id": rows["row_id"]})
                told = self.aside(split, rows).select("row_id", pl.lit(STAGE).alias("stage"), "reason", "detail")
                why = pl.concat([failed, told]).join(own, on="row_id", how="semi", maintain_order="left")
                yield ledger.lines(own, made.join(own, on="row_id", how="semi", maintain_order="left"), why, STAGES)


class PairsOfCompletions(PairsJob):
    """Pairs of which each side is a completion of the parent."""

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
            for chunk in chunks(self.selected[split].pairs, self.options.unit_rows):
                chosen, rejected = (self.by_id.take(chunk[side]) for side in ("chosen", "rejected"))
                yield split, joined(chosen, rejected, chunk.to_arrow(), self.method)

    def known(self, rows: pa.Table) -> pa.Table | None:
        """The completions, if their log-probs are stored."""
        if "ref_completion_token_logps" not in self.parent.columns():
            return None
        ids = [*rows["chosen_row_id"].to_pylist(), *rows["rejected_row_id"].to_pylist()]
        return self.by_id.take(list(dict.fromkeys(ids)))

    def parents_of(self, rows: pa.Table) -> pl.DataFrame:
        """Both sides."""
        made, numbers = pl.Series("made", rows["row_id"]), np.arange(rows.num_rows)
        sides = [pl.Series(rows[f"{side}_row_id"]) for side in ("chosen", "rejected")]
        return pl.concat([pl.DataFrame({"row_id": side, "made": made, "number": numbers}) for side in sides])

    def aside(self, split: str, rows: pa.Table) -> pl.DataFrame:
        """What the selection says."""
        return self.selected[split].aside


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


def _failures(told: pl.DataFrame, bad: pl.Series, stage: str, reason: str) -> pl.DataFrame:
    detail = pl.format("pair {}", "made")
    return _of(told, bad).select("row_id", stage=pl.lit(stage), reason=pl.lit(reason), detail=detail)


def _banded(rows: pa.Table, bands: dict[str, np.ndarray[Any, Any]]) -> pa.Table:
    for name, values in bands.items():
        field = pairs.SELECTED.field(f"{name}_band")
        column = pa.array(values, field.type, mask=values < 0)
        rows = rows.set_column(rows.schema.get_field_index(field.name), field, column)
    return rows


def _margins(rows: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
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
