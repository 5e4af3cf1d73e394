"""The stage of a clean that masks private data: of every file of the parent, the rows that stand in others' places."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import logical
from prefdata.builds.job import Unit
from prefdata.errors import UserError
from prefdata.identity import spelled
from prefdata.records import SetAside
from prefdata.steps.batch import Batch
from prefdata.steps.masking import masked
from prefdata.steps.private_data import COLUMN, kinds_of
from prefdata.tokens import Limits, Renderer
from prefdata.versions import Version
from prefdata.work import Tables, Work, unit_key
from schemas.manifest import FileEntry

NAME = "mask"
_LIMITS = ("max_length", "max_prompt_length", "min_answer_tokens", "overflow")
BEFORE: dict[str, Any] = {
    "row_id": pl.String,
    COLUMN: pl.List(pl.String),
    "row": pl.Int64,  # place of the row that stands for it; null: it stands for itself
    "reason": pl.String,
    "detail": pl.String,
}


@dataclass(frozen=True)
class Masked:
    """rows: those of a file, the masked ones in their places; before: BEFORE, of the parent's rows in their order."""

    rows: pa.Table
    before: pl.DataFrame


class MaskStage:
    """Masks and makes tokens again, with the parent's own tokenizer and limits."""

    name = NAME

    def __init__(self, parent: Version, work: Work) -> None:
        if logical.PARTNER in logical.sides_of(parent.kind, parent.columns()):
            raise UserError(
                f"rows of {parent.name} carry another row's completion as partner, which masking does not reach: clean the "
                "version that it was made from, and build it again"
            )
        self._parent, self._work = parent, work

    def units(self) -> Iterator[Unit]:
        """One a file."""
        for split in self._parent.splits:
            for entry in self._parent.files(split):
                yield Unit(self.key(entry), entry["rows"], (split, entry))

    def compute(self, unit: Unit) -> Tables:
        """The masked rows, and a line for every row of the file."""
        split, entry = unit.inputs
        rows = self._parent.read(entry)
        found = kinds_of(Batch(self._parent.kind, split, rows))
        places = found.is_not_null().arg_true().to_list()
        made = masked(self._parent.kind, rows.take(places), *self._rendering) if places else []
        new: list[dict[str, Any]] = []
        told: dict[int, tuple[int | None, str | None, str | None]] = {}
        for place, row in zip(places, made, strict=True):
            if isinstance(row, SetAside):
                told[place] = None, row.reason, row.detail
            else:
                told[place] = len(new), None, None
                new.append(row)
        lines = [told.get(place, (None, None, None)) for place in range(rows.num_rows)]
        columns = dict(zip(("row", "reason", "detail"), zip(*lines, strict=True), strict=True))
        before = pl.DataFrame({"row_id": pl.Series(rows["row_id"]), COLUMN: found, **columns}, schema=BEFORE)
        return {"rows": pa.Table.from_pylist(new, schema=rows.schema), "before": before.to_arrow()}

    def close(self) -> None:
        """Let go of the tokenizer."""
        self.__dict__.pop("_rendering", None)

    def of(self, entry: FileEntry) -> Masked:
        """A file, once its unit is done."""
        done = self._work.result(self.key(entry))
        rows, before = self._parent.read(entry), pl.DataFrame(done["before"])
        places = pl.int_range(pl.len(), dtype=pl.Int64)
        taken = before.select(pl.coalesce(pl.col("row") + rows.num_rows, places)).to_series()
        together = pa.concat_tables([rows, done["rows"].cast(rows.schema)]).combine_chunks()
        return Masked(together.take(taken.to_arrow()), before)

    @cached_property
    def masked_any(self) -> bool:
        """Whether any row was masked, so that not every row has log-probs any more."""
        return any(self._work.result(unit.key)["rows"].num_rows for unit in self.units())

    def key(self, entry: FileEntry) -> str:
        """Names a file's unit."""
        tokenizer = {name: value for name, value in self._parent.manifest["tokenizer"].items() if name != "name"}
        return unit_key(NAME, spelled({"kind": self._parent.kind, "tokenizer": tokenizer}), [entry["sha256"]])

    @cached_property
    def _rendering(self) -> tuple[Renderer, Limits]:
        tokenizer = self._parent.manifest["tokenizer"]
        renderer = Renderer.like(tokenizer)
        if renderer.fingerprint["digest"] != tokenizer["digest"]:
            raise UserError(
                f"the tokenizer {tokenizer['name']} is another one than when {self._parent.name} was made, so masked rows "
                "can't be given their tokens; put it back, or ingest the source again"
            )
        return renderer, Limits(**{name: tokenizer[name] for name in _LIMITS if name in tokenizer})
