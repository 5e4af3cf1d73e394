"""The last stage of every build: reference log-probs of each row's completions.

A unit is keyed by the tokens it scores and the reference's fingerprint. A completion that the parent version already
carries under the same reference is not scored again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.builds.job import Unit
from prefdata.identity import spelled, tokens_id
from prefdata.logical import REFERENCE, SIDES
from prefdata.work import Tables, Work, unit_key

NAME = "reference"


@dataclass(frozen=True)
class Batch:
    """Rows to score, and rows of the parent whose stored log-probs may serve."""

    rows: Callable[[], pa.Table]
    known: Callable[[], pa.Table | None]


class ReferenceStage:
    """Scores the rows of each batch with one model, loaded at the first unit that needs it."""

    name = NAME

    def __init__(
        self, kind: str, batches: Callable[[], Iterable[Batch]], model: dict[str, Any], loading: dict[str, Any]
    ) -> None:
        self._kind = kind
        self._batches = batches
        self._fingerprint = model
        self._loading = loading
        self._model: Any = None

    def units(self) -> Iterator[Unit]:
        """One unit per batch that holds rows."""
        for batch in self._batches():
            rows = batch.rows()
            if rows.num_rows:
                yield Unit(self.key(rows), rows.num_rows, batch)

    def key(self, rows: pa.Table) -> str:
        """The unit that scores exactly these rows."""
        columns = ["prompt_ids", *(f"{side}_ids" for side in SIDES[self._kind])]
        lists = [rows[name].to_pylist() for name in columns]
        members = ["+".join(tokens_id(prompt, side) for side in sides) for prompt, *sides in zip(*lists, strict=True)]
        return unit_key(NAME, {"kind": self._kind, "reference": spelled(self._fingerprint)}, members)

    def compute(self, unit: Unit) -> Tables:
        """Per-token and summed log-probs by row_id."""
        from prefdata import reference

        rows = unit.inputs.rows()
        parent = unit.inputs.known()
        known = {} if parent is None else reference.known(parent)
        scored = reference.attach(rows, self._logps(rows, known))
        return {"reference": scored.select(["row_id", *REFERENCE[self._kind].names])}

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _logps(self, rows: pa.Table, known: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
        from prefdata import logprobs, reference

        trees = reference.trees(rows)
        missing = []
        for tree in trees:
            branches = [branch for branch in tree.branches if tokens_id(tree.trunk, branch) not in known]
            if branches:
                missing.append(logprobs.Tree(tree.trunk, branches))
        fresh = dict(known)
        if missing:
            for tree, logps in zip(missing, logprobs.score(self._load(), missing), strict=True):
                for branch, values in zip(tree.branches, logps, strict=True):
                    fresh[tokens_id(tree.trunk, branch)] = values
        return [[fresh[tokens_id(tree.trunk, branch)] for branch in tree.branches] for tree in trees]

    def _load(self) -> Any:
        if self._model is None:
            from prefdata.models import load_model

            self._model = load_model(**self._loading)
        return self._model


def attached(stage: ReferenceStage, rows: pa.Table, work: Work) -> pa.Table:
    """Rows with their reference columns, from the finished unit. KeyError if the unit is not there."""
    if rows.num_rows == 0:
        return rows
    tables = work.load(stage.key(rows))
    if tables is None:
        raise KeyError(f"the reference unit of {rows.num_rows} rows is not done")
    scored = tables["reference"]
    place = pc.index_in(rows["row_id"], value_set=scored["row_id"].combine_chunks())
    ordered = scored.take(place)
    for name in scored.column_names:
        if name != "row_id":
            rows = _set(rows, name, ordered[name])
    return rows


def finite(kind: str, rows: pa.Table) -> pa.Array:
    """Which rows have only finite log-probs."""
    kept = pa.array(np.ones(rows.num_rows, dtype=bool))
    for side in SIDES[kind]:
        sums = rows[f"ref_{side}_logps"].combine_chunks()
        kept = pc.and_(kept, pc.fill_null(pc.is_finite(sums), False))
    return kept


def _set(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    index = table.column_names.index(name) if name in table.column_names else -1
    return table.set_column(index, name, values) if index >= 0 else table.append_column(name, values)
