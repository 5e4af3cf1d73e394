"""Splits by prompt: near-duplicates of a prompt stay together, and what was held out stays held out.

What the version holds out for testing is not added to: rows nearly like it are set aside. So it is with what an earlier
version held out, if one is named; what that version trained on is not drawn for testing now. Every other group of prompts
is drawn as a whole, by its smallest prompt_id, so that adding data moves a group only where new prompts are nearly the same.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from prefdata import draws
from prefdata.steps.batch import Batch
from prefdata.steps.chain import Verdict
from prefdata.steps.duplicates import sketch_of
from prefdata.steps.similar import groups

_TEST, _TRAIN = "test", "train"


class Split:
    """Draws about `test_fraction` of the groups; earlier: split by prompt_id of a version that splits should agree with."""

    name = "split"
    reads: Any = ("sketches",)

    def __init__(
        self, test_fraction: float, threshold: float, *, seed: int = 0, earlier: Mapping[str, str] | None = None
    ) -> None:
        self._test_fraction, self._threshold, self._seed = test_fraction, threshold, seed
        self._earlier = pl.DataFrame(
            {"prompt_id": list(earlier or {}), "earlier": list((earlier or {}).values())},
            schema={"prompt_id": pl.String, "earlier": pl.String},
        )

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """Sketches."""
        return {"prompt_sketch": batch.prompt_sketches}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """The split of every row, but for those too near to what is held out."""
        prompts = self._drawn(rows)
        told = rows.select("row_id", "prompt_id").join(prompts, on="prompt_id", how="left", maintain_order="left")
        leaks = pl.col("near").is_not_null()
        detail = pl.format("prompt {} is held out", "near")
        aside = told.filter(leaks).select("row_id", reason=pl.lit("near_test_prompt"), detail=detail)
        return Verdict(aside, told.filter(~leaks).select("row_id", "split"))

    def _drawn(self, rows: pl.DataFrame) -> pl.DataFrame:
        """prompt_id, its split, and `near`: a prompt of the same group that is held out, if it is not itself."""
        held = rows.sort(pl.col("split") != _TEST, "row_id").unique("prompt_id", keep="first").sort("prompt_id")
        ids = held["prompt_id"]
        labels = groups([sketch_of(held, "prompt")], self._threshold)
        known = held.select("prompt_id", "split", group=ids.gather(labels)).join(
            self._earlier, on="prompt_id", how="left", maintain_order="left"
        )
        fixed = pl.when(pl.col("split") == _TEST).then(pl.lit(_TEST)).otherwise("earlier")
        known = known.with_columns(fixed=fixed)
        test = pl.col("fixed").eq_missing(_TEST)
        known = known.with_columns(
            holds=pl.col("prompt_id").filter(test).min().over("group"),
            trains=pl.col("fixed").eq_missing(_TRAIN).any().over("group"),
            draw=pl.Series(draws.uniform(self._seed, known["group"].to_list(), "split")),
        )
        drawn = (pl.col("draw") < self._test_fraction) & ~pl.col("trains")
        return known.select(
            "prompt_id",
            split=pl.when(test | drawn).then(pl.lit(_TEST)).otherwise(pl.lit(_TRAIN)),
            near=pl.when(~test).then("holds"),
        )
