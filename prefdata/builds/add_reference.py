"""add-reference: a version plus the log-probs of a reference model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import finish, scoring
from prefdata.builds.inputs import ParentReader, reference_model, same_reference
from prefdata.builds.job import Stage, build_key
from prefdata.builds.options import as_config, check, option
from prefdata.models import DTYPES
from prefdata.versions import Version, ledger_lines
from prefdata.work import Work
from schemas.ledger import KEPT, SET_ASIDE

NAME = "add-reference"
STAGES = (scoring.NAME, "publish")
UNIT_ROWS = 1024


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option("latest", "version to add to: vN, a tag, latest, a path or a URL")
    model: str | None = option(None, "reference model: a folder or a hub name (default: the version's own model)")
    dtype: str = option("float32", "precision of the model's weights", choices=DTYPES)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


class AddReference:
    """The job: one stage, the same rows published again with reference columns."""

    name = NAME

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=tuple(logical.REFERENCE))
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        self.reference, loading = reference_model(
            self.parent, options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
        self.already = self.parent if same_reference(self.parent.manifest["reference"], self.reference) else None
        self._config = as_config(options, source=self.parent.name, model=self.reference["name"])
        self.build_key = build_key(NAME, self._config, [self.parent], {"reference": self.reference})
        self._reader = ParentReader(self.parent)
        self._scoring = scoring.ReferenceStage(self._batches, self.reference, loading)

    def stages(self) -> Iterator[Stage]:
        """Scoring is all there is to do."""
        yield self._scoring

    def publish(self) -> Version:
        """The parent's rows with their reference columns; rows whose log-probs are not finite are set aside."""
        schema = pa.unify_schemas([self.parent.schema, logical.reference_of(self.parent.kind, self.parent.columns())])
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for split, batch in self._split_batches():
                rows = scoring.attached(self._scoring, batch.rows(), self.work)
                good = scoring.finite(self.parent.kind, rows)
                staging.add(split, rows.filter(good))
                staging.ledger(_ledger(rows["row_id"].to_pylist(), good.to_pylist()))
            return finish.publish(staging, STAGES, self._fields())

    def _fields(self) -> dict[str, Any]:
        manifest = self.parent.manifest
        return {
            "kind": self.parent.kind,
            "build": NAME,
            "build_key": self.build_key,
            "config": self._config,
            "seeds": manifest["seeds"],
            "round": manifest["round"],
            "parents": [versions.parent_entry(self.parent, self.root)],
            "sources": manifest["sources"],
            "tokenizer": manifest["tokenizer"],
            "generator": manifest["generator"],
            "reference": self.reference,
        }

    def _batches(self) -> Iterator[scoring.Batch]:
        return (batch for _, batch in self._split_batches())

    def _split_batches(self) -> Iterator[tuple[str, scoring.Batch]]:
        for split in self.parent.splits:
            for entry in self.parent.files(split):
                for start in range(0, entry["rows"], UNIT_ROWS):
                    rows: Callable[[], pa.Table] = partial(self._reader.slice, entry["path"], start, UNIT_ROWS)
                    yield split, scoring.Batch(rows=rows, known=lambda: None)


def _ledger(row_ids: list[str], good: list[bool]) -> pa.Table:
    return ledger_lines(
        {"row_id": row_id, "status": KEPT, "stage": "publish", "made": [row_id]}
        if ok
        else {"row_id": row_id, "status": SET_ASIDE, "stage": scoring.NAME, "reason": "not_finite"}
        for row_id, ok in zip(row_ids, good, strict=True)
    )
