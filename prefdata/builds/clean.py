"""clean: a version of any kind without the rows that the named steps set aside; rows that stay are as they were.

Each file of the parent is read once, as a unit of work; judging all rows together takes little beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import finish, ledger
from prefdata.builds.job import Stage, Unit, build_key
from prefdata.builds.options import as_config, check, option
from prefdata.errors import UserError
from prefdata.identity import spelled
from prefdata.steps import chain, duplicates
from prefdata.steps.batch import Batch
from prefdata.steps.chain import Cleaned, Step
from prefdata.versions import Version
from prefdata.work import Tables, Work, unit_key
from schemas.manifest import FileEntry

NAME = "clean"
READ = "read"


@dataclass(frozen=True)
class Options:
    """What can be chosen. Steps are off unless asked for, and run in this order."""

    source: str = option("latest", "version to clean: vN, a tag, latest, a path or a URL")
    exact: str | None = option(
        None, "of prompts or whole rows that are equal when normal, keep one", choices=duplicates.COMPARED
    )
    near: str | None = option(
        None, "of prompts or whole rows that are nearly equal, keep one (MinHash)", choices=duplicates.COMPARED
    )
    near_threshold: float = option(
        0.8, "least similarity of near-duplicates: Jaccard index of runs of 3 words", least=0.1
    )


class Clean:
    """The job: one stage that reads what is judged by, then publish."""

    name = NAME
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=tuple(logical.BASE))
        self.steps = steps(options, self.parent)
        if not self.steps:
            raise UserError("no step was asked for: name at least one, such as --near prompts (see --help)")
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        self.config = as_config(options, source=self.parent.name)
        self.build_key = build_key(NAME, self.config, [self.parent], {})
        self._reading = ReadStage(self.parent, self.steps)

    def stages(self) -> Iterator[Stage]:
        """Reading is all that takes long."""
        yield self._reading

    def publish(self) -> Version:
        """The rows that are kept, in the parent's order, and a ledger line for every row of the parent."""
        stages = [*(step.name for step in self.steps), "publish"]
        with versions.Staging(self.root, self.parent.schema, self.build_key) as staging:
            for split, entry in _files(self.parent):
                rows = self.parent.read(entry)
                own = pl.DataFrame({"row_id": rows["row_id"]})
                kept = own.join(self.cleaned.kept, on="row_id", how="left", maintain_order="left")
                stays = kept["split"].is_not_null()
                staging.add(split, rows.filter(pa.array(stays)))
                made = own.filter(stays).with_columns(made="row_id")
                aside = self.cleaned.aside.join(own, on="row_id", how="semi")
                staging.ledger(ledger.lines(own, made, aside, stages))
            return finish.publish(staging, stages, self._fields())

    @cached_property
    def cleaned(self) -> Cleaned:
        """What becomes of every row."""
        read = (self.work.result(unit.key)[READ] for unit in self._reading.units())
        return chain.clean(self.steps, pl.concat([pl.DataFrame(table) for table in read]))

    def _fields(self) -> dict[str, Any]:
        same = ("kind", "seeds", "round", "sources", "tokenizer", "generator", "reference")
        manifest: dict[str, Any] = dict(self.parent.manifest)
        return {
            **{name: manifest[name] for name in same},
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "parents": [versions.parent_entry(self.parent, self.root)],
        }


class ReadStage:
    """What the steps judge by, file by file."""

    name = READ

    def __init__(self, parent: Version, steps: list[Step]) -> None:
        self._parent, self._steps = parent, steps

    def units(self) -> Iterator[Unit]:
        """One a file, keyed by its bytes and by what is read."""
        config = spelled({"kind": self._parent.kind, "reads": [step.reads for step in self._steps]})
        for split, entry in _files(self._parent):
            key = unit_key(READ, config, [split, entry["sha256"]])
            yield Unit(key, entry["rows"], (split, entry))

    def compute(self, unit: Unit) -> Tables:
        """A line for each row."""
        split, entry = unit.inputs
        batch = Batch(self._parent.kind, split, self._parent.read(entry))
        return {READ: chain.read(self._steps, batch).to_arrow()}

    def close(self) -> None:
        """Nothing is held."""


def steps(options: Options, parent: Version) -> list[Step]:
    """The steps that are asked for, in order."""
    found: list[Step] = []
    if options.exact is not None:
        found.append(duplicates.Exact(options.exact))
    if options.near is not None:
        found.append(duplicates.Near(options.near, options.near_threshold, logical.SIDES[parent.kind]))
    return found


def job(options: Options, root: str | None = None) -> Clean:
    """The job of these options."""
    return Clean(options, root)


def _files(version: Version) -> Iterator[tuple[str, FileEntry]]:
    return ((split, entry) for split in version.splits for entry in version.files(split))
