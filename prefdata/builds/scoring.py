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
from prefdata.identity import tokens_id
from prefdata.logical import sides_of
from prefdata.work import Tables, Work, unit_key
from schemas.columns import TOKEN_LOGPS

NAME = "reference"


@dataclass(frozen=True)
class Batch:
    """Rows to score, and rows of the parent whose stored log-probs may serve."""

    rows: Callable[[], pa.Table]
    known: Callable[[], pa.Table | None]


class ReferenceStage:
    """Scores the rows of each batch with one model, loaded at the first unit that needs it."""

    name = NAME

    def __init__(self, batches: Callable[[], Iterable[Batch]], model: dict[str, Any], loading: dict[str, Any]) -> None:
        self._batches = batches
        self._fingerprint = model
        self._loading = loading
        self._model: Any = None

    @property
    def runs(self) -> str:
        """The model, as plans know it."""
        return str(self._fingerprint["name"])

    def units(self) -> Iterator[Unit]:
        """One unit per batch that holds rows."""
        for batch in self._batches():
            rows = batch.rows()
            if rows.num_rows:
                yield Unit(self.key(rows), rows.num_rows, batch)

    def key(self, rows: pa.Table) -> str:
        """The unit that scores exactly these tokens, whatever rows they belong to."""
        from prefdata import reference

        members = [token_id for tree in reference.trees(rows) for token_id in _token_ids(tree)]
        return unit_key(NAME, {"reference": self._fingerprint["fingerprint"]}, members)

    def compute(self, unit: Unit) -> Tables:
        """Per-token log-probs by `tokens_id`."""
        from prefdata import reference

        parent = unit.inputs.known()
        found = {} if parent is None else reference.known(parent)
        named = [(tree, _token_ids(tree)) for tree in reference.trees(unit.inputs.rows())]
        found |= self._score(named, found, unit)
        wanted = list(dict.fromkeys(token_id for _, token_ids in named for token_id in token_ids))
        logps = [found[token_id] for token_id in wanted]
        return {NAME: pa.table({"tokens_id": wanted, "logps": pa.array(logps, TOKEN_LOGPS)})}

    def close(self) -> None:
        """Let go of the model, or of the processes that hold it."""
        if hasattr(self._model, "close"):
            self._model.close()
        self._model = None

    def _score(
        self, named: list[tuple[Any, list[str]]], found: dict[str, np.ndarray], unit: Unit
    ) -> dict[str, np.ndarray]:
        """Log-probs of the branches that are not found yet."""
        from prefdata import logprobs

        # rows of one prompt hang on one trunk, which then runs once for all of them
        together: dict[bytes, tuple[Any, dict[str, Any]]] = {}
        for tree, token_ids in named:
            trunk = np.asarray(tree.trunk, np.int64).tobytes()
            _, branches = together.setdefault(trunk, (tree.trunk, {}))
            for branch, name in zip(tree.branches, token_ids, strict=True):
                if name not in found:
                    branches[name] = branch
        wanted = [(trunk, branches) for trunk, branches in together.values() if branches]
        if not wanted:
            return {}
        missing = [logprobs.Tree(trunk, list(branches.values())) for trunk, branches in wanted]
        names = [list(branches) for _, branches in wanted]
        model = self._load()
        if isinstance(model, logprobs.Pool):
            scored = model.score(missing, tell=unit.tell)
        else:
            scored = logprobs.score(model, missing, tell=unit.tell)
        unit.spend(sum(len(tree.trunk) + sum(map(len, tree.branches)) for tree in missing))
        return {
            name: logps
            for token_ids, branches in zip(names, scored, strict=True)
            for name, logps in zip(token_ids, branches, strict=True)
        }

    def _load(self) -> Any:
        if self._model is None:
            from prefdata import logprobs
            from prefdata.models import load_model

            devices = logprobs.gpus()
            several = len(devices) > 1
            self._model = logprobs.Pool(self._loading, devices) if several else load_model(**self._loading)
        return self._model


def attached(stage: ReferenceStage, rows: pa.Table, work: Work) -> pa.Table:
    """Rows with their reference columns, from the finished unit."""
    from prefdata import reference

    if rows.num_rows == 0:
        return rows
    stored = work.result(stage.key(rows))[NAME]
    logps = dict(zip(stored["tokens_id"].to_pylist(), stored["logps"].to_pylist(), strict=True))
    return reference.attach(
        rows, [[logps[token_id] for token_id in _token_ids(tree)] for tree in reference.trees(rows)]
    )


def finite(kind: str, rows: pa.Table) -> pa.Array:
    """Which rows have only finite log-probs."""
    kept = pa.array(np.ones(rows.num_rows, dtype=bool))
    for side in sides_of(kind, rows.column_names):
        sums = rows[f"ref_{side}_logps"].combine_chunks()
        kept = pc.and_(kept, pc.fill_null(pc.is_finite(sums), False))
    return kept


def _token_ids(tree: Any) -> list[str]:
    """What each branch is called, by its exact tokens."""
    return [tokens_id(tree.trunk, branch) for branch in tree.branches]
