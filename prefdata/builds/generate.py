"""generate: n samples of every prompt from one or several models, as completions with the reference's log-probs.

A sample is keyed by its prompt, who drew it, how, and which draw it is. Asking for more samples of the same prompts later
computes only those that are not there: what is done is found in the work store, whatever build asked for it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import engines, logical, versions
from prefdata.builds import finish, ledger, scoring
from prefdata.builds.engine_options import LAYOUT, EngineOptions
from prefdata.builds.inputs import ParentReader, next_round, parent_model, reference_model
from prefdata.builds.job import Stage, build_key
from prefdata.builds.options import as_config, check, option
from prefdata.builds.prompts import Prompt, Prompts
from prefdata.builds.sampling import Draws, SampleStage
from prefdata.errors import UserError
from prefdata.identity import sample_row_id
from prefdata.records import Message
from prefdata.versions import Version
from prefdata.work import Work
from schemas import completions

NAME = "generate"
STAGES = ("select", NAME, "gate", scoring.NAME, "publish")
GREEDY, SAMPLED = "greedy", "sampled"


@dataclass(frozen=True)
class Options(EngineOptions):
    """What can be chosen."""

    source: str = option("latest", "version whose prompts are answered: vN, a tag, latest, a path or a URL")
    model: tuple[str, ...] = option((), "models that write (default: the one the source's manifest names)")
    samples: int = option(4, "samples per prompt and model", least=0)
    greedy: bool = option(False, "also the greedy completion of each prompt, which greedy baselines need")
    temperature: float = option(1.0, "sampling temperature", least=0)
    top_k: int = option(0, "sample among this many likeliest tokens; 0 is all", least=0)
    top_p: float = option(1.0, "sample among the likeliest tokens that hold this probability", least=0)
    max_new_tokens: int | None = option(
        None, "most tokens of an answer (default: what the version's length limit leaves)", least=1
    )
    seed: int = option(0, "seed of all draws")
    round: int | None = option(None, "sampling round (default: the source's plus one)", least=1)
    with_reference: bool = option(True, "add the reference's log-probs")
    reference: str | None = option(None, "model whose log-probs are stored (default: the first that writes)")
    unit_rows: int = option(256, "prompts per unit of work: a killed build repeats at most one", least=1)


class Generate:
    """The job: a stage for each model, then reference log-probs, then publish."""

    name = NAME
    already: Version | None = None

    def __init__(self, options: Options, root: str | None = None) -> None:
        check(options)
        engines.require(options.engine)
        if not (options.samples or options.greedy):
            raise UserError("samples is 0 and greedy is off: nothing would be drawn. Ask for one of them.")
        self.options = options
        self.root = versions.root(root)
        self.parent = versions.find(options.source, root=root, kinds=tuple(logical.BASE))
        versions.writable(self.root)
        self.work = Work(self.root)
        self.notices = [f"reading {self.parent.name} at {self.parent.url}"]
        self.round = options.round or next_round(self.parent, self.root, options.source)
        described = [self._model(name) for name in options.model or (None,)]
        self.models = [name for name, _ in described]
        self.descriptions = [description for _, description in described]
        self.config = as_config(
            options,
            "unit_rows",
            *LAYOUT,
            source=self.parent.name,
            model=[description["name"] for description in self.descriptions],
            round=self.round,
        )
        self.reference, self._scoring = self._referenced()
        self.build_key = build_key(
            NAME, self.config, [self.parent], {"generators": self.descriptions, "reference": self.reference}
        )
        self.prompts = Prompts(self.parent, ParentReader(self.parent), options.unit_rows, self._room())
        self.rows: int | None = len(self.prompts.table)
        self._stages = [
            SampleStage(self, name, description)
            for name, description in zip(self.models, self.descriptions, strict=True)
        ]

    def stages(self) -> Iterator[Stage]:
        """Model by model; reference units are known only once all have written."""
        yield from self._stages
        if self._scoring is not None:
            yield self._scoring

    def publish(self) -> Version:
        """Every sample with its key, in the order of the parent's prompts, and a ledger line for every row of the parent."""
        extras = [completions.OPTIONAL, completions.SAMPLED, *([completions.REFERENCE] if self._scoring else [])]
        schema = logical.schema_of(completions.KIND, *extras)
        made: list[pl.DataFrame] = []
        failed: list[pl.DataFrame] = [self.prompts.aside]
        with versions.Staging(self.root, schema, self.build_key) as staging:
            for split, rows, empty in self._assembled():
                good = np.ones(rows.num_rows, bool)
                if self._scoring is not None and rows.num_rows:
                    rows = scoring.attached(self._scoring, rows, self.work)
                    good = np.asarray(scoring.finite(completions.KIND, rows))
                lines = pl.DataFrame({"prompt_id": rows["prompt_id"], "made": rows["row_id"]})
                made.append(lines.filter(pl.Series(good)))
                failed.append(_failures(lines.filter(pl.Series(~good)), scoring.NAME, "not_finite"))
                failed.append(_failures(empty, "gate", "not_drawn"))
                staging.add(split, rows.filter(pa.array(good)).select(schema.names))
            for table in self._ledger(pl.concat(made), pl.concat(failed)):
                staging.ledger(table)
            return finish.publish(staging, STAGES, self._fields())

    # -- what is made of the draws ---------------------------------------------------------------------------------

    def _assembled(self) -> Iterator[tuple[str, pa.Table, pl.DataFrame]]:
        """Of every chunk of prompts its rows, and prompt_id, made of draws that gave no answer."""
        for chunk in self.prompts.chunks():
            rows: list[dict[str, Any]] = []
            empty: list[str] = []
            drawn = [stage.draws(chunk) for stage in self._stages]
            for place, prompt in enumerate(chunk.prompts):
                for stage, draws in zip(self._stages, drawn, strict=True):
                    for row in self._rows_of(prompt, stage, draws, place):
                        if row is None:
                            empty.append(prompt.prompt_id)
                        else:
                            rows.append(row)
            schema = logical.schema_of(completions.KIND, completions.OPTIONAL, completions.SAMPLED)
            table = pa.Table.from_pylist(rows, schema=schema)
            yield chunk.split, table, pl.DataFrame({"prompt_id": empty, "made": empty}, schema=_LINES)

    def _rows_of(self, prompt: Prompt, stage: SampleStage, draws: Draws, place: int) -> Iterator[dict[str, Any] | None]:
        """A row for each draw of a prompt, the greedy one first; None for one that gave no answer."""
        for draw in draws.of(place):
            if frozenset(stage.end_ids).issuperset(draw.token_ids):
                yield None
                continue
            sampling = stage.greedy_sampling if draw.greedy else stage.sampling
            round_ = None if draw.greedy else self.round  # nothing is drawn anew
            key = {
                "generator": stage.digest,  # not its name, which is a path where the model is a folder
                "sampling": sampling,
                "index": draw.index,
                "round": round_,
                "seed": draw.seed,
            }
            messages = tuple(Message.from_mapping(turn) for turn in prompt.messages)
            text = stage.decode(draw.token_ids)
            yield {
                "row_id": sample_row_id(messages, draw.token_ids, key, prompt.tools),
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.messages,
                "completion": [{"role": "assistant", "content": text}],
                "tools": prompt.tools,
                "prompt_ids": prompt.ids,
                "completion_ids": draw.token_ids,
                "prompt_tokens": len(prompt.ids),
                "completion_tokens": len(draw.token_ids),
                "completion_content_start": 0,
                "completion_finish": draw.finish,
                "method": GREEDY if draw.greedy else SAMPLED,
                "source": prompt.source,
                "license": prompt.license,
                "generator": stage.label,
                "sampling": sampling,
                "sample_index": draw.index,
                "round": round_,
                "seed": draw.seed,
                "sampler_token_logps": draw.token_logps,
            }

    def _ledger(self, made: pl.DataFrame, failed: pl.DataFrame) -> Iterator[pa.Table]:
        """Rows of the parent stand for their prompt: what was made of it was made from each of them."""
        for split in self.parent.splits:
            for entry in self.parent.files(split):
                rows = pl.DataFrame(self.parent.read(entry, ["row_id", "prompt_id"]))
                own = rows.join(made, on="prompt_id", how="inner", maintain_order="left_right").select("row_id", "made")
                why = rows.join(failed, on="prompt_id", how="inner", maintain_order="left_right").drop("prompt_id")
                yield ledger.lines(rows, own, why, STAGES)

    def _scoring_batches(self) -> Iterator[scoring.Batch]:
        for _, rows, _ in self._assembled():
            yield scoring.Batch(rows=partial(_same, rows), known=_nothing_known)

    # -- models ----------------------------------------------------------------------------------------------------

    def _model(self, name: str | None) -> tuple[str, dict[str, Any]]:
        return parent_model(
            self.parent,
            name,
            roles=("generator", "reference"),
            dtype=self.options.dtype,
            trust_remote_code=self.options.trust_remote_code,
        )

    def _referenced(self) -> tuple[dict[str, Any] | None, scoring.ReferenceStage | None]:
        options = self.options
        if not options.with_reference:
            return None, None
        entry, loading = reference_model(
            self.parent,
            options.reference or self.models[0],
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        return entry, scoring.ReferenceStage(self._scoring_batches, entry, loading)

    def _room(self) -> tuple[int, int]:
        """The most tokens of a row, and the most of an answer."""
        longest = int(self.parent.manifest["tokenizer"]["max_length"])
        return longest, min(self.options.max_new_tokens or longest, longest)

    def _fields(self) -> dict[str, Any]:
        first = self._stages[0]
        return {
            "kind": completions.KIND,
            "build": NAME,
            "build_key": self.build_key,
            "config": self.config,
            "seeds": {"seed": self.options.seed},
            "round": self.round,
            "parents": [versions.parent_entry(self.parent, self.root)],
            "sources": self.parent.manifest["sources"],
            "tokenizer": self.parent.manifest["tokenizer"],
            "generator": {
                **self.descriptions[0],
                "engine": self.options.engine,
                "batch_invariant": all(stage.invariant() for stage in self._stages),
                "sampling": json.loads(first.sampling),
                "others": self.descriptions[1:],
            },
            "reference": self.reference,
        }


_LINES: dict[str, Any] = {"prompt_id": pl.String, "made": pl.String}


def _failures(lines: pl.DataFrame, stage: str, reason: str) -> pl.DataFrame:
    return lines.select("prompt_id", stage=pl.lit(stage), reason=pl.lit(reason), detail=pl.lit(None, pl.String))


def _same(rows: pa.Table) -> pa.Table:
    return rows


def _nothing_known() -> None:
    return None
