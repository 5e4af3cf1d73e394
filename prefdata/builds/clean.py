"""clean: a version of any kind without the rows that the named steps set aside; rows that stay are as they were.

Each file of the parent is read once, as a unit of work; judging all rows together takes little beside it.
"""

from collections.abc import Iterator, Sequence
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
from prefdata.sources import evaluations
from prefdata.sources.evaluations import Evaluation
from prefdata.steps import chain, duplicates
from prefdata.steps.batch import Batch
from prefdata.steps.caps import Cap
from prefdata.steps.chain import Cleaned, Step
from prefdata.steps.decontaminate import RUN, SHARE, Decontaminate
from prefdata.steps.language import LANGUAGES, Language
from prefdata.steps.lengths import Bounds, Lengths
from prefdata.steps.noise_hints import NoiseHints
from prefdata.steps.private_data import FLAG, PrivateData
from prefdata.steps.split import Split
from prefdata.versions import Version
from prefdata.work import Tables, Work, unit_key
from schemas.cleaned import CLEANED
from schemas.manifest import FileEntry

NAME = "clean"
READ = "read"


@dataclass(frozen=True)
class Options:
    """What can be chosen. Steps are off unless asked for, and run in this order."""

    source: str = option("latest", "version to clean: vN, a tag, latest, a path or a URL")
    min_prompt_tokens: int | None = option(None, "fewest tokens of a prompt", least=1)
    max_prompt_tokens: int | None = option(None, "most tokens of a prompt", least=1)
    min_answer_tokens: int | None = option(None, "fewest scored tokens of every answer", least=1)
    max_answer_tokens: int | None = option(None, "most scored tokens of every answer", least=1)
    languages: tuple[str, ...] = option(
        (), f"set aside rows that are in another language than these: {', '.join(LANGUAGES)}; what can't be told stays"
    )
    decontaminate: tuple[str, ...] = option((), "set aside prompts of these evaluations: files, globs or hub data sets")
    decontaminate_run: int = option(RUN, "words in a run that prompt and evaluation share", least=2)
    decontaminate_share: float = option(
        SHARE, "least share of an evaluation prompt's runs that a contaminated prompt holds", least=0
    )
    exact: str | None = option(
        None, "of prompts or whole rows that are equal when normal, keep one", choices=duplicates.COMPARED
    )
    near: str | None = option(
        None, "of prompts or whole rows that are nearly equal, keep one (MinHash)", choices=duplicates.COMPARED
    )
    near_threshold: float = option(
        0.8, "least similarity of near-duplicates, from 0 to 1: Jaccard index of runs of 3 words", least=0.1
    )
    max_per_prompt: int | None = option(None, "most rows of a prompt in a split, drawn", least=1)
    max_per_source: int | None = option(None, "most rows of a source in a split, drawn", least=1)
    test_fraction: float | None = option(
        None, "hold out this share of the groups of near-duplicate prompts, beside what is held out already", least=0
    )
    split_like: str | None = option(None, "version whose prompts stay in the split that they have there")
    private_data: str | None = option(
        None, "name the kinds of private data that a row holds (e-mail, phone, key) in a column", choices=(FLAG,)
    )
    noise_hints: bool = option(False, "say in a column why a label may be wrong: both orders, scores that disagree ...")
    seed: int = option(0, "seed of all draws")


class Clean:
    """The job: one stage that reads what is judged by, then publish."""

    name = NAME
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        _check_languages(options.languages)
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=tuple(logical.BASE))
        exams = evaluations.read(options.decontaminate) if options.decontaminate else []
        earlier = versions.find(options.split_like, root=root) if options.split_like else None
        self.steps = steps(options, self.parent.kind, exams, earlier)
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
        self._reading = ReadStage(self.parent, self.steps)

    def stages(self) -> Iterator[Stage]:
        """Reading is all that takes long."""
        yield self._reading

    def publish(self) -> Version:
        """The rows that are kept, in the parent's order, and a ledger line for every row of the parent."""
        stages = [*(step.name for step in self.steps), "publish"]
        added = pa.schema([field for field in CLEANED if field.name in self.cleaned.kept.columns])
        schema = pa.unify_schemas([self.parent.schema, added])
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for _, entry in _files(self.parent):
                rows = self.parent.read(entry)
                own = pl.DataFrame({"row_id": rows["row_id"]})
                kept = own.join(self.cleaned.kept, on="row_id", how="left", maintain_order="left")
                stays = kept["split"].is_not_null()
                for name in versions.SPLITS:
                    here = kept["split"].eq_missing(name)
                    staging.add(name, _with(rows.filter(pa.array(here)), kept.filter(here), added))
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
        same = ("kind", "round", "sources", "tokenizer", "generator", "reference")
        manifest: dict[str, Any] = dict(self.parent.manifest)
        return {
            **{name: manifest[name] for name in same},
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "seeds": {**manifest["seeds"], "seed": self.options.seed},
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


def steps(options: Options, kind: str, exams: Sequence[Evaluation] = (), earlier: Version | None = None) -> list[Step]:
    """The steps that are asked for, in order. exams: what to decontaminate against; earlier: what to split like."""
    sides, seed = logical.SIDES[kind], options.seed
    prompt = Bounds(options.min_prompt_tokens, options.max_prompt_tokens)
    answer = Bounds(options.min_answer_tokens, options.max_answer_tokens)
    found: list[Step] = []
    if prompt or answer:
        found.append(Lengths(prompt, answer, sides))
    if options.languages:
        found.append(Language(options.languages))
    if exams:
        share = options.decontaminate_share
        found.append(Decontaminate(exams, run=options.decontaminate_run, share=share))
    if options.exact is not None:
        found.append(duplicates.Exact(options.exact))
    if options.near is not None:
        found.append(duplicates.Near(options.near, options.near_threshold, sides))
    for of, most in (("prompt_id", options.max_per_prompt), ("source", options.max_per_source)):
        if most is not None:
            found.append(Cap(of, most, seed=seed))
    if options.test_fraction is not None or earlier is not None:
        known = _splits(earlier) if earlier is not None else None
        found.append(Split(options.test_fraction or 0.0, options.near_threshold, seed=seed, earlier=known))
    if options.private_data is not None:
        found.append(PrivateData())
    if options.noise_hints:
        found.append(NoiseHints(kind))
    return found


def _splits(version: Version) -> dict[str, str]:
    """The split of each prompt."""
    return {
        prompt_id: split
        for split, entry in _files(version)  # test comes last: a prompt in both is held out
        for prompt_id in version.read(entry, ["prompt_id"])["prompt_id"].to_pylist()
    }


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


def _check_languages(languages: Sequence[str]) -> None:
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown:
        raise UserError(f"languages: {', '.join(unknown)} can't be told; these can: {', '.join(LANGUAGES)}")


def _files(version: Version) -> Iterator[tuple[str, FileEntry]]:
    return ((split, entry) for split in version.splits for entry in version.files(split))
