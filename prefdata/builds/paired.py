"""build-paired: pairs from scored completions by a rule; pairs that are pairs already pass through, if they are clear enough.

Changing the rule runs no scorer again, and no model for pairs that were scored before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.options import option
from prefdata.builds.selecting import STAGE, Selecting, chunks, finite, model_label
from prefdata.models import DTYPES
from prefdata.select import paired
from prefdata.select.paired import Selected
from prefdata.select.pairing import joined
from prefdata.versions import Version
from schemas import completions, pairs

NAME = "build-paired"
STAGES = (STAGE, scoring.NAME, "publish")
_FAILED: dict[str, Any] = {"row_id": pl.String, "stage": pl.String, "reason": pl.String, "detail": pl.String}
_MADE: dict[str, Any] = {"row_id": pl.String, "made": pl.String}


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option("latest", "version with scored completions, or pairs: vN, a tag, latest, a path or a URL")
    rule: str = option("max_min", "which of a prompt's completions make a pair", choices=tuple(paired.RULES))
    pairs_per_prompt: int = option(1, "most pairs of a prompt", least=1)
    min_margin: float = option(0.0, "least difference of the scores; ties never make a pair", least=0)
    min_preference: float = option(0.5, "least probability that chosen is better, of pairs that state one", least=0)
    on_policy: bool = option(False, "only completions that the reference itself wrote")
    bands: int = option(4, "bands of difficulty, by margins of score and of the reference", least=1)
    reference: str | None = option(
        None, "model whose log-probs are stored (default: the one the source's manifest names)"
    )
    seed: int = option(0, "seed of all draws")
    dtype: str = option("float32", "precision of the reference's weights", choices=DTYPES)
    unit_rows: int = option(1024, "pairs per unit of work", least=1)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


class BuildPaired(Selecting):
    """The job: select, score with the reference, publish."""

    name = NAME
    kinds = (completions.KIND, pairs.KIND)

    def units(self) -> Iterator[tuple[str, pa.Table]]:
        """Runs of pairs in the order of the parent's prompts."""
        for split in self.parent.splits:
            if self._passes_through:
                for rows in self.parent.batches(split, rows=self.options.unit_rows):
                    kept = self._clear(rows)
                    if kept.any():
                        yield split, _with_selected(rows.filter(pa.array(kept)))
                continue
            for chunk in chunks(self._selected[split].pairs, self.options.unit_rows):
                chosen, rejected = (self.by_id.take(chunk[side]) for side in ("chosen", "rejected"))
                yield split, joined(chosen, rejected, chunk.to_arrow(), self.options.rule)

    def publish(self) -> Version:
        """Pairs with their reference columns and bands, and a ledger line for every row of the parent."""
        schema = logical.schema_of(pairs.KIND, pairs.SELECTED, pairs.REFERENCE)
        if self._passes_through:
            schema = pa.unify_schemas([self.parent.schema, schema])
        bands = self._bands()
        seen: set[bytes] = set()
        made, failed = [pl.DataFrame(schema=_MADE)], [pl.DataFrame(schema=_FAILED)]
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for (split, rows), band in zip(self.units(), bands, strict=True):
                scored = self.scored(rows)
                fine, new = finite(scored, pairs.KIND), _new(scored["row_id"].to_pylist(), seen)
                told = self._parents_of(scored)
                made.append(_of(told, fine & new).select("row_id", "made"))
                failed.append(_failures(told, ~fine, scoring.NAME, "not_finite"))
                failed.append(_failures(told, fine & ~new, "publish", "duplicate_row"))
                kept = pa.array(fine & new)
                staging.add(split, _banded(scored, band).filter(kept).select(schema.names))
            for lines in self._ledger(pl.concat(made), pl.concat(failed)):
                staging.ledger(lines)
            return finish.publish(staging, STAGES, self.fields(pairs.KIND))

    # -- what is selected ------------------------------------------------------------------------------------------

    @property
    def _passes_through(self) -> bool:
        return self.parent.kind == pairs.KIND

    @cached_property
    def _selected(self) -> dict[str, Selected]:
        options = self.options
        found = {}
        for split in self.parent.splits:
            answers = self.answers(split)
            own = answers
            if options.on_policy:
                own = answers.filter(pl.col("generator") == model_label(self.reference))
            selected = paired.select(
                own,
                options.rule,
                pairs_per_prompt=options.pairs_per_prompt,
                min_margin=options.min_margin,
                seed=options.seed,
            )
            others = answers.join(own.select("row_id"), on="row_id", how="anti", maintain_order="left").select(
                "row_id",
                reason=pl.lit("off_policy"),
                detail=pl.format("{} wrote it", pl.col("generator").fill_null("another")),
            )
            found[split] = Selected(selected.pairs, pl.concat([selected.aside, others]))
        return found

    def _clear(self, rows: pa.Table) -> np.ndarray[Any, Any]:
        """Which pairs are clear enough: what states neither margin nor preference is."""
        reasons = self._unclear(rows)
        return np.asarray(reasons["reason"].is_null())

    def _unclear(self, rows: pa.Table) -> pl.DataFrame:
        """row_id, reason, detail of every row; null where it is clear."""
        stated = pl.DataFrame({name: rows[name] for name in ("row_id", "margin", "preference")})
        narrow = pl.col("margin").is_not_null() & (pl.col("margin") < self.options.min_margin)
        unsure = pl.col("preference").is_not_null() & (pl.col("preference") < self.options.min_preference)
        return stated.select(
            "row_id",
            reason=pl.when(narrow).then(pl.lit("margin_too_small")).when(unsure).then(pl.lit("preference_too_low")),
            detail=pl.when(narrow)
            .then(pl.format("the margin is {}", "margin"))
            .when(unsure)
            .then(pl.format("chosen is better with probability {}", "preference")),
        )

    def known(self, rows: pa.Table) -> pa.Table | None:
        """Pairs that pass through have their log-probs with them, and completions theirs."""
        if self._passes_through:
            return rows
        if "ref_completion_token_logps" not in self.parent.columns():
            return None
        ids = [*rows["chosen_row_id"].to_pylist(), *rows["rejected_row_id"].to_pylist()]
        return self.by_id.take(list(dict.fromkeys(ids)))

    # -- what becomes of it ----------------------------------------------------------------------------------------

    def _bands(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Of every unit, its rows' bands of difficulty; the bounds are quantiles over all rows."""
        units = [_margins(self.scored(rows)) for _, rows in self.units()]
        found = {name: _ranks([unit[name] for unit in units], self.options.bands) for name in ("score", "reference")}
        return ({name: bands[number] for name, bands in found.items()} for number in range(len(units)))

    def _parents_of(self, rows: pa.Table) -> pl.DataFrame:
        """row_id of a row of the parent, and the row made from it; a pair of completions is made from both."""
        made = pl.Series("made", rows["row_id"])
        if self._passes_through:
            return pl.DataFrame({"row_id": made, "made": made, "number": np.arange(len(made))})
        sides = [pl.Series(rows[f"{side}_row_id"]) for side in ("chosen", "rejected")]
        numbers = np.arange(len(made))
        return pl.concat([pl.DataFrame({"row_id": side, "made": made, "number": numbers}) for side in sides])

    def _ledger(self, made: pl.DataFrame, failed: pl.DataFrame) -> Iterator[pa.Table]:
        for split in self.parent.splits:
            for entry in self.parent.files(split):
                if self._passes_through:
                    rows = self.parent.read(entry, ["row_id", "margin", "preference"])
                    aside = self._unclear(rows).filter(pl.col("reason").is_not_null())
                else:
                    rows, aside = self.parent.read(entry, ["row_id"]), self._selected[split].aside
                own = pl.DataFrame({"row_id": rows["row_id"]})
                told = aside.select("row_id", pl.lit(STAGE).alias("stage"), "reason", "detail")
                why = pl.concat([failed, told]).join(own, on="row_id", how="semi", maintain_order="left")
                yield ledger.lines(own, made.join(own, on="row_id", how="semi", maintain_order="left"), why, STAGES)


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


def _with_selected(rows: pa.Table) -> pa.Table:
    """Rows with the columns that a selection adds, those they lack as nulls."""
    for field in pairs.SELECTED:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


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
