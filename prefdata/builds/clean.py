"""clean: a version of any kind without the rows that the named steps set aside; rows that stay are as they were.

Each file of the parent is read once, as a unit of work; judging all rows together takes little beside it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import finish, ledger
from prefdata.builds.cleaning import Options, check_values, steps
from prefdata.builds.job import Stage, Unit, build_key
from prefdata.builds.masking import MaskStage
from prefdata.builds.options import as_config, check
from prefdata.errors import UserError
from prefdata.identity import spelled
from prefdata.sources import evaluations
from prefdata.steps import chain
from prefdata.steps.batch import Batch
from prefdata.steps.chain import Cleaned, Step
from prefdata.steps.private_data import MASK
from prefdata.versions import Version
from prefdata.work import Tables, Work, unit_key
from schemas.cleaned import CLEANED
from schemas.embeddings import COLUMN
from schemas.manifest import FileEntry
from schemas.stats import TABLES

__all__ = ["NAME", "Clean", "Options", "job"]

NAME = "clean"
READ = "read"


class Clean:
    """The job: one stage that reads what is judged by, then publish."""

    name = NAME
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        check_values(options)
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=tuple(logical.BASE))
        exams = evaluations.read(options.decontaminate) if options.decontaminate else []
        earlier = versions.find(options.split_like, root=root) if options.split_like else None
        self.steps = steps(options, self.parent.kind, exams, None if earlier is None else _splits(earlier))
        if not self.steps:
            raise UserError("no step was asked for: name at least one, such as --near prompts (see --help)")
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        self.config = as_config(
            options,
            source=self.parent.name,
            decontaminate=[{"name": exam.name, "sha256": exam.sha256} for exam in exams],
            split_like=None if earlier is None else {"version": earlier.name, "logical_hash": earlier.logical_hash},
        )
        self.build_key = build_key(NAME, self.config, [self.parent], {})
        self._masking = MaskStage(self.parent, self.work) if options.private_data == MASK else None
        self._reading = ReadStage(self.parent, self.steps, self._masking)
        if self._masking is not None and self.parent.manifest["reference"] is not None:
            self.notices.append(
                "rows that are masked get other tokens: if there are any, the new version is without log-probs; add them "
                "with python -m flows.add_reference"
            )

    def stages(self) -> Iterator[Stage]:
        """Reading is all that takes long; masked rows are made before."""
        if self._masking is not None:
            yield self._masking
        yield self._reading

    def publish(self) -> Version:
        """The rows that are kept, in the parent's order, and a ledger line for every row of the parent."""
        stages = [*(step.name for step in self.steps), "publish"]
        added = pa.schema([field for field in CLEANED if field.name in self.cleaned.kept.columns])
        schema = pa.unify_schemas([_without(self.parent.schema, self._lost), added])
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for _, entry in _files(self.parent):
                rows, row_ids = self._rows(entry)
                own = pl.DataFrame({"row_id": row_ids})
                kept = own.join(self.cleaned.kept, on="row_id", how="left", maintain_order="left")
                for name in versions.SPLITS:
                    here = kept["split"].eq_missing(name)
                    staging.add(name, _with(rows.filter(pa.array(here)), kept.filter(here), added))
                made = own.with_columns(made=pl.Series(rows["row_id"])).filter(kept["split"].is_not_null())
                aside = self.cleaned.aside.join(own, on="row_id", how="semi")
                staging.ledger(ledger.lines(own, made, aside, stages))
            return finish.publish(
                staging, stages, self._fields(), {"marks": marks(self.cleaned.kept)} if added else None
            )

    def _rows(self, entry: FileEntry) -> tuple[pa.Table, pl.Series]:
        """The rows of a file as they are published, and what the parent calls them."""
        if self._masking is None:
            rows = self.parent.read(entry)
            return rows, pl.Series(rows["row_id"])
        found = self._masking.of(entry)
        return found.rows, found.before["row_id"]

    @property
    def _lost(self) -> list[str]:
        """Columns that models made of the tokens or the text, once there are rows without any."""
        if self._masking is None or not self._masking.masked_any:
            return []
        kind, columns = self.parent.kind, self.parent.columns()
        referenced = logical.reference_of(kind, columns).names if kind in logical.REFERENCE else []
        return [*referenced, COLUMN]

    @cached_property
    def cleaned(self) -> Cleaned:
        """What becomes of every row."""
        read = (self.work.result(unit.key)[READ] for unit in self._reading.units())
        return chain.clean(self.steps, pl.concat([pl.DataFrame(table) for table in read]))

    def _fields(self) -> dict[str, Any]:
        same = ("kind", "round", "sources", "tokenizer", "generator", "reference")
        manifest: dict[str, Any] = dict(self.parent.manifest)
        lost = {"reference": None} if self._lost else {"embeddings": manifest.get("embeddings")}
        return {
            **{name: manifest[name] for name in same},
            **lost,
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "seeds": {**manifest["seeds"], "seed": self.options.seed},
            "parents": [versions.parent_entry(self.parent, self.root)],
        }


class ReadStage:
    """What the steps judge by, file by file."""

    name = READ

    def __init__(self, parent: Version, steps: list[Step], masking: MaskStage | None) -> None:
        self._parent, self._steps, self._masking = parent, steps, masking

    def units(self) -> Iterator[Unit]:
        """One a file, keyed by its bytes and by what is read."""
        reads: dict[str, Any] = {"kind": self._parent.kind, "reads": [step.reads for step in self._steps]}
        for split, entry in _files(self._parent):
            of = None if self._masking is None else self._masking.key(entry)
            yield Unit(unit_key(READ, spelled(reads), [split, of or entry["sha256"]]), entry["rows"], (split, entry))

    def compute(self, unit: Unit) -> Tables:
        """A line for each row."""
        split, entry = unit.inputs
        if self._masking is None:
            batch = Batch(self._parent.kind, split, self._parent.read(entry))
        else:
            found = self._masking.of(entry)
            batch = Batch(self._parent.kind, split, found.rows, found.before)
        return {READ: chain.read(self._steps, batch).to_arrow()}

    def close(self) -> None:
        """Nothing is held."""


def _without(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in names])


def _with(rows: pa.Table, said: pl.DataFrame, columns: pa.Schema) -> pa.Table:
    """The rows with these columns, set anew where they have them."""
    for field in columns:
        values = said[field.name].to_arrow().cast(field.type)
        place = rows.schema.get_field_index(field.name)
        rows = rows.append_column(field, values) if place < 0 else rows.set_column(place, field, values)
    return rows


def job(options: Options, root: str | None = None) -> Clean:
    """The job of these options."""
    return Clean(options, root)


def marks(kept: pl.DataFrame) -> pa.Table:
    """The table of statistics: how many rows each column that cleaning added says what of."""
    columns = [field.name for field in CLEANED if field.name in kept.columns]
    told = [kept.select("split", column=pl.lit(name), mark=name).explode("mark").drop_nulls("mark") for name in columns]
    counted = pl.concat(told).group_by("split", "column", "mark").agg(rows=pl.len()).sort("split", "column", "mark")
    schema = TABLES["marks"]
    return counted.select(schema.names).to_arrow().cast(schema)


def _splits(version: Version) -> dict[str, str]:
    """The split of each prompt."""
    return {
        prompt_id: split
        for split, entry in _files(version)  # test comes last: a prompt in both is held out
        for prompt_id in version.read(entry, ["prompt_id"])["prompt_id"].to_pylist()
    }


def _files(version: Version) -> Iterator[tuple[str, FileEntry]]:
    return ((split, entry) for split in version.splits for entry in version.files(split))
