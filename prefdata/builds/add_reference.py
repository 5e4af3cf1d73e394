"""add-reference: a version plus the log-probs of a reference model, its prompts' embeddings, or both."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import embedding, finish, scoring
from prefdata.builds.inputs import ParentReader, reference_model, same_reference
from prefdata.builds.job import Stage, build_key
from prefdata.builds.options import as_config, check, option
from prefdata.models import DTYPES
from prefdata.versions import Version, ledger_lines
from prefdata.work import Work
from schemas.embeddings import EMBEDDED
from schemas.ledger import KEPT, SET_ASIDE

NAME = "add-reference"
UNIT_ROWS = 1024


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option("latest", "version to add to: vN, a tag, latest, a path or a URL")
    model: str | None = option(None, "reference model: a folder or a hub name (default: the version's own model)")
    embeddings: str | None = option(
        None, "model whose embeddings of the prompts are stored, for --loss relative_po; log-probs that are there stay"
    )
    dtype: str = option("float32", "precision of the model's weights", choices=DTYPES)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


class AddReference:
    """The job: a stage for what is asked for and not there yet, and the same rows published again with its columns."""

    name = NAME

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=tuple(logical.REFERENCE))
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        self._reader = ParentReader(self.parent)
        self._scoring = self._reference_stage(options)
        self._embedding = self._embedding_stage(options)
        self.already = None if self._scoring or self._embedding else self.parent
        unsaid = () if options.embeddings else ("embeddings",)
        self._config = as_config(options, *unsaid, source=self.parent.name, model=self.reference["name"])
        models = {"reference": self.reference, **({"embeddings": self.embeddings} if options.embeddings else {})}
        self.build_key = build_key(NAME, self._config, [self.parent], models)

    def _reference_stage(self, options: Options) -> scoring.ReferenceStage | None:
        stored = self.parent.manifest["reference"]
        if stored and options.embeddings and options.model is None:
            self.reference = stored
            return None
        self.reference, loading = reference_model(
            self.parent, options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
        if same_reference(stored, self.reference):
            return None
        return scoring.ReferenceStage(self._batches, self.reference, loading)

    def _embedding_stage(self, options: Options) -> embedding.EmbeddingStage | None:
        stored = self.parent.manifest.get("embeddings")
        self.embeddings = stored
        if options.embeddings is None:
            return None
        from prefdata.reference import embeddings

        loading: dict[str, Any] = {"name": options.embeddings, "trust_remote_code": options.trust_remote_code}
        self.embeddings = embeddings.describe(**loading)
        if stored and stored["fingerprint"] == self.embeddings["fingerprint"]:
            return None
        return embedding.EmbeddingStage(lambda: (batch.rows() for batch in self._batches()), self.embeddings, loading)

    def stages(self) -> Iterator[Stage]:
        """What is not there yet."""
        if self._scoring:
            yield self._scoring
        if self._embedding:
            yield self._embedding

    def publish(self) -> Version:
        """The parent's rows with their new columns; rows whose log-probs or embeddings are not finite are set aside."""
        added = [
            *([logical.reference_of(self.parent.kind, self.parent.columns())] if self._scoring else []),
            *([EMBEDDED] if self._embedding else []),
        ]
        stages = [*([scoring.NAME] if self._scoring else []), *([embedding.NAME] if self._embedding else []), "publish"]
        schema = pa.unify_schemas([self.parent.schema, *added])
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for split, batch in self._split_batches():
                rows, failed = self._completed(batch.rows())
                staging.add(split, rows.filter(pa.array([stage is None for stage in failed])).select(schema.names))
                staging.ledger(_ledger(rows["row_id"].to_pylist(), failed))
            return finish.publish(staging, stages, self._fields())

    def _completed(self, rows: pa.Table) -> tuple[pa.Table, list[str | None]]:
        """Rows with their new columns, and at which stage each failed, if it did."""
        failed: list[str | None] = [None] * rows.num_rows
        if self._embedding:
            rows = self._embedding.attached(rows, self.work)
            failed = [None if good else embedding.NAME for good in embedding.sound(rows).tolist()]
        if self._scoring:
            rows = scoring.attached(self._scoring, rows, self.work)
            good = scoring.finite(self.parent.kind, rows).to_pylist()
            failed = [was if ok else scoring.NAME for was, ok in zip(failed, good, strict=True)]
        return rows, failed

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
            **({"embeddings": self.embeddings} if self.embeddings else {}),
        }

    def _batches(self) -> Iterator[scoring.Batch]:
        return (batch for _, batch in self._split_batches())

    def _split_batches(self) -> Iterator[tuple[str, scoring.Batch]]:
        for split in self.parent.splits:
            for entry in self.parent.files(split):
                for start in range(0, entry["rows"], UNIT_ROWS):
                    rows: Callable[[], pa.Table] = partial(self._reader.slice, entry["path"], start, UNIT_ROWS)
                    yield split, scoring.Batch(rows=rows, known=lambda: None)


def _ledger(row_ids: list[str], failed: list[str | None]) -> pa.Table:
    return ledger_lines(
        {"row_id": row_id, "status": KEPT, "stage": "publish", "made": [row_id]}
        if stage is None
        else {"row_id": row_id, "status": SET_ASIDE, "stage": stage, "reason": "not_finite"}
        for row_id, stage in zip(row_ids, failed, strict=True)
    )
