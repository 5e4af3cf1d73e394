"""At most so many rows of a prompt, and of a source, in each split. Which ones is drawn by row_id, not by order."""

from typing import Any

import polars as pl

from prefdata import draws
from prefdata.steps.batch import Batch
from prefdata.steps.chain import Verdict


class Cap:
    """`of`: the column whose values are capped, prompt_id or source."""

    reads: Any = ()

    def __init__(self, of: str, most: int, *, seed: int = 0) -> None:
        self.name = f"{of.removesuffix('_id')}_cap"
        self._of, self._most, self._seed = of, most, seed

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """Nothing beyond what every step is given."""
        return {}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """The rows with the largest draws."""
        draw = pl.Series("draw", draws.uniform(self._seed, rows["row_id"].to_list(), self.name))
        place = pl.col("draw").rank("ordinal").over("split", self._of)
        over = rows.select("row_id", "split", self._of).with_columns(draw).filter(place > self._most)
        detail = pl.format(f"{self._most} other rows of {self._of} {{}} were drawn", self._of)
        return Verdict(over.select("row_id", reason=pl.lit(f"over_{self.name}"), detail=detail))
