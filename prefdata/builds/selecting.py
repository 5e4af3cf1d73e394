"""What builds that select among completions share: the parent's answers, the reference, units of what was selected."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import scoring
from prefdata.builds.by_id import RowsById
from prefdata.builds.inputs import reference_model, same_reference
from prefdata.builds.job import build_key
from prefdata.builds.options import as_config, check
from prefdata.errors import UserError
from prefdata.select.answers import COLUMNS, REFERENCE, answers
from prefdata.versions import Version
from prefdata.work import Work

STAGE = "select"
# options that change no result
LAYOUT = ("unit_rows",)
SHORT_DIGEST = 12
CARRIED_ROWS = 32768
LOOKED_UP_ROWS = 1 << 19


class Selecting:
    """A job over a version whose rows are chosen by a rule; what the rule is, its subclass says."""

    name: str
    kinds: tuple[str, ...]
    keeps_columns = False  # whether the new rows have all that the parent's have
    brings_logps = False  # whether its units bring along the log-probs that the parent's rows have

    def __init__(self, options: Any, root: str | None = None) -> None:
        check(options)
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=self.kinds)
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.rows: int | None = sum(self.parent.manifest["counts"]["rows"].values())
        self.already: Version | None = None
        self._lines_by_split: dict[str, pl.DataFrame] = {}
        self.reference, loading = reference_model(
            self.parent, options.reference, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
        self._same_reference = same_reference(self.parent.manifest["reference"], self.reference)
        self.config = as_config(options, *LAYOUT, source=self.parent.name, reference=self.reference["name"])
        self.build_key = build_key(self.name, self.config, [self.parent], {"reference": self.reference})
        self.scoring = scoring.ReferenceStage(self._scoring_batches, self.reference, loading)

    def stages(self) -> Iterator[Any]:
        """Scoring by the reference, unless all log-probs come with the rows."""
        if not self.carried:
            yield self.scoring

    @cached_property
    def carried(self) -> bool:
        """Whether every row of the parent has its log-probs by this reference, so that rows bring them along."""
        stored = logical.REFERENCE[self.parent.kind].names
        return self.brings_logps and self._same_reference and not set(stored) - set(self.parent.columns())

    @property
    def run_rows(self) -> int:
        """Rows of a unit; where no model is run they are large, since nothing is lost with one."""
        return CARRIED_ROWS if self.carried else int(self.options.unit_rows)

    @cached_property
    def by_id(self) -> RowsById:
        """The parent's rows."""
        return RowsById(self.parent)

    def answers(self, split: str) -> pl.DataFrame:
        """The lines of a split's completions, in the parent's order. UserError if none has a score."""
        if "score" not in self.parent.columns():
            raise unscored(self.parent)
        if split not in self._lines_by_split:
            wanted = [*COLUMNS, *({"generator", REFERENCE} & set(self.parent.columns()))]
            self._lines_by_split[split] = answers(self.parent.read(entry, wanted) for entry in self.parent.files(split))
        return self._lines_by_split[split]

    def units(self) -> Iterator[tuple[str, pa.Table]]:
        """Runs of new rows by split, without reference columns; the same whenever it is asked."""
        raise NotImplementedError

    def scored(self, rows: pa.Table) -> pa.Table:
        """A unit's rows with their reference columns, once it is scored."""
        return rows if self.carried else scoring.attached(self.scoring, rows, self.work)

    def known(self, rows: pa.Table) -> pa.Table | None:
        """Rows of the parent whose stored log-probs may serve for these."""
        return None

    def _scoring_batches(self) -> Iterator[scoring.Batch]:
        for _, rows in self.units():
            known: Callable[[], pa.Table | None] = partial(self.known, rows) if self._same_reference else _nothing
            yield scoring.Batch(rows=partial(_same, rows), known=known)

    def fields(self, kind: str, **more: Any) -> dict[str, Any]:
        """The manifest's."""
        manifest = self.parent.manifest
        return {
            "kind": kind,
            "build": self.name,
            "build_key": self.build_key,
            "config": self.config,
            "seeds": {**manifest["seeds"], **({"seed": self.options.seed} if hasattr(self.options, "seed") else {})},
            "round": manifest["round"],
            "parents": [versions.parent_entry(self.parent, self.root)],
            "sources": manifest["sources"],
            "tokenizer": manifest["tokenizer"],
            "generator": manifest["generator"],
            "reference": self.reference,
            **({"embeddings": manifest.get("embeddings")} if self.keeps_columns else {}),
            **more,
        }


def model_label(entry: dict[str, Any]) -> str:
    """How rows name a model: name@first digits of its digest."""
    return f"{entry['name']}@{entry['digest'][:SHORT_DIGEST]}"


def chunks(table: pl.DataFrame, rows: int) -> Iterator[pl.DataFrame]:
    """Runs of at most so many rows."""
    return (table.slice(start, rows) for start in range(0, table.height, rows))


def merged(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables joined to larger ones, since each is looked up among all that was made."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(each.num_rows for each in held) >= LOOKED_UP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def finite(rows: pa.Table, kind: str) -> pl.Series:
    """Which rows have only finite log-probs."""
    return pl.Series(scoring.finite(kind, rows))


def unscored(parent: Version) -> UserError:
    """What a selection by scores says of a version that has none."""
    return UserError(
        f"{parent.name} holds {parent.kind} without scores; score them first:  python -m flows.score_rewards {parent.name}"
    )


def _same(rows: pa.Table) -> pa.Table:
    return rows


def _nothing() -> None:
    return None
