"""Jobs that publish a version's own rows again, with what scorers said of them; a row of which one said nothing is set aside."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.inputs import ParentReader, reference_model, same_reference
from prefdata.builds.job import Stage
from prefdata.logical import reference_of
from prefdata.versions import Version
from prefdata.work import Work

NAME = "score-rewards"
STAGE = "score"
STAGES = (STAGE, scoring.NAME, "publish")
ASIDE: dict[str, Any] = {"row_id": pl.String, "stage": pl.String, "reason": pl.String, "detail": pl.String}


class ScoredRows:
    """The rows and their reference: its log-probs stay where they are, and are added where they are wanted.

    What is said of rows, and by whom, the subclass knows: `scorers` are its stages, `added` its columns.
    """

    name = NAME
    already: Version | None = None
    kinds: tuple[str, ...]
    added: pa.Schema
    config: dict[str, Any]
    build_key: str

    def __init__(self, options: Any, root: str | None) -> None:
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=self.kinds)
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        self._reader = ParentReader(self.parent)
        self.reference, self._scoring = self._referenced()

    def scorers(self) -> Iterator[Stage]:
        """A stage for each."""
        raise NotImplementedError

    def scored(self, rows: pa.Table) -> tuple[pa.Table, pl.DataFrame]:
        """Rows with what was said of them, once all stages are done; and row_id, stage, reason, detail of the others."""
        raise NotImplementedError

    def entries(self) -> list[dict[str, Any]]:
        """Who scored, for the manifest."""
        raise NotImplementedError

    def stages(self) -> Iterator[Stage]:
        """Scorer by scorer, then the reference."""
        yield from self.scorers()
        if self._scoring is not None:
            yield self._scoring

    def chunks(self) -> Iterator[tuple[str, pa.Table]]:
        """Runs of the parent's rows, by split."""
        for split in self.parent.splits:
            for entry in self.parent.files(split):
                for start in range(0, entry["rows"], self.options.unit_rows):
                    yield split, self._reader.slice(entry["path"], start, self.options.unit_rows)

    def publish(self) -> Version:
        """The rows that are kept, in the parent's order, and a ledger line for every row of the parent."""
        referenced = reference_of(self.parent.kind, self.parent.columns()) if self._scoring else pa.schema([])
        schema = pa.unify_schemas([self.parent.schema, self.added, referenced])
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for split, rows in self.chunks():
                kept, aside = self.scored(rows)
                if self._scoring is not None and kept.num_rows:
                    kept = scoring.attached(self._scoring, kept, self.work)
                    finite = pl.Series(scoring.finite(self.parent.kind, kept))
                    aside = pl.concat([aside, _not_finite(kept, finite)])
                    kept = kept.filter(pa.array(finite))
                if kept.num_rows:
                    staging.add(split, kept.select(schema.names))
                made = pl.DataFrame({"row_id": kept["row_id"], "made": kept["row_id"]})
                staging.ledger(ledger.lines(pl.DataFrame({"row_id": rows["row_id"]}), made, aside, STAGES))
            return finish.publish(staging, STAGES, self._fields())

    def _scoring_batches(self) -> Iterator[scoring.Batch]:
        same = same_reference(self.parent.manifest["reference"], self.reference)
        for _, rows in self.chunks():
            kept, _ = self.scored(rows)
            known: Callable[[], pa.Table | None] = partial(_same, kept) if same else _nothing
            yield scoring.Batch(rows=partial(_same, kept), known=known)

    def _referenced(self) -> tuple[dict[str, Any] | None, scoring.ReferenceStage | None]:
        options, stored = self.options, self.parent.manifest["reference"]
        if options.reference is None and (stored is not None or not options.with_reference):
            return stored, None
        entry, loading = reference_model(
            self.parent, options.reference, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
        return entry, scoring.ReferenceStage(self._scoring_batches, entry, loading)

    def _fields(self) -> dict[str, Any]:
        same = ("kind", "seeds", "round", "sources", "tokenizer", "generator")
        manifest: dict[str, Any] = dict(self.parent.manifest)
        return {
            **{name: manifest[name] for name in same},
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "parents": [versions.parent_entry(self.parent, self.root)],
            "reference": self.reference,
            "scorers": self.entries(),
        }


def with_column(rows: pa.Table, field: pa.Field, values: list[Any]) -> pa.Table:
    """The rows with a column, set anew where they have it."""
    column = pa.array(values, field.type)
    place = rows.schema.get_field_index(field.name)
    return rows.append_column(field, column) if place < 0 else rows.set_column(place, field, column)


def _not_finite(rows: pa.Table, finite: pl.Series) -> pl.DataFrame:
    told = pl.DataFrame({"row_id": rows["row_id"]}).filter(~finite)
    return told.select(
        "row_id", stage=pl.lit(scoring.NAME), reason=pl.lit("not_finite"), detail=pl.lit(None, pl.String)
    )


def _same(rows: pa.Table) -> pa.Table:
    return rows


def _nothing() -> None:
    return None
