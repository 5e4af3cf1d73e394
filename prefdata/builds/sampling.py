"""The stage that samples: every prompt of a chunk, as many draws as are asked for, of which those done before are kept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from prefdata import engines
from prefdata.builds import speeds
from prefdata.builds.engine_options import loading
from prefdata.builds.job import Unit
from prefdata.builds.prompts import Chunk, Prompt
from prefdata.builds.selecting import model_label
from prefdata.draws import row_seed
from prefdata.identity import digest, spelled
from prefdata.work import Tables, unit_key
from schemas.columns import TOKEN_IDS, TOKEN_LOGPS

if TYPE_CHECKING:
    from prefdata.builds.generate import Generate

_FURTHER = 16  # draws beyond those asked for, up to which a larger unit that is done is looked for
_SEEDS = 2**62  # seeds lie below, so that the seed of draw i, which is i more, still is one
DRAWS = pa.schema(
    [
        ("prompt", pa.int32()),  # its place in the chunk
        ("index", pa.int32()),
        ("token_ids", TOKEN_IDS),
        ("finish", pa.string()),
        ("token_logps", TOKEN_LOGPS),
    ]
)


@dataclass(frozen=True)
class Drawn:
    """One draw of a prompt."""

    index: int
    greedy: bool
    seed: int | None
    token_ids: list[int]
    finish: str
    token_logps: list[float] | None


class Draws:
    """The draws of a chunk, by the place of the prompt."""

    def __init__(self, drawn: dict[int, list[Drawn]]) -> None:
        self._drawn = drawn

    def of(self, place: int) -> list[Drawn]:
        """The greedy one first, then by index."""
        return sorted(self._drawn.get(place, []), key=lambda draw: (not draw.greedy, draw.index))


@dataclass(frozen=True)
class _Run:
    """Draws start to end - 1 of every prompt of a chunk."""

    chunk: Chunk
    greedy: bool
    start: int
    end: int


class SampleStage:
    """Draws from one model, with one engine that lives as long as the stage."""

    name = "generate"

    def __init__(self, job: "Generate", model: str, description: dict[str, Any]) -> None:
        from prefdata.tokens import Renderer

        options, tokenizer = job.options, job.parent.manifest["tokenizer"]
        self._job, self._model, self._description = job, model, description
        self.label, self.digest = model_label(description), description["digest"]
        self.runs = speeds.named(description["name"], options.engine)
        self.end_ids = tuple(tokenizer["end_ids"])
        self._sampling = engines.Sampling(options.temperature, options.top_k, options.top_p, self.end_ids)
        self._greedy = engines.Sampling(temperature=0, end_ids=self.end_ids)
        self.sampling, self.greedy_sampling = (
            json.dumps(self._told(each), sort_keys=True) for each in (self._sampling, self._greedy)
        )
        self._renderer = Renderer.like(tokenizer, model, trust_remote_code=options.trust_remote_code)
        self._loading = loading(options)
        self._engine: Any = None

    def units(self) -> Iterator[Unit]:
        """Chunk by chunk: the runs of draws that together are those asked for."""
        for chunk in self._job.prompts.chunks():
            for run in self._runs(chunk):
                yield Unit(self._key(run), len(chunk.prompts), run)

    def compute(self, unit: Unit) -> Tables:
        """What the engine draws."""
        run: _Run = unit.inputs
        places = {prompt.prompt_id: place for place, prompt in enumerate(run.chunk.prompts)}
        requests = [
            engines.Request(
                prompt.prompt_id, tuple(prompt.ids), prompt.room, self._seed(prompt) + run.start, run.end - run.start
            )
            for prompt in run.chunk.prompts
        ]
        rows = []
        written = 0
        for number, sample in enumerate(
            self._load().generate(requests, self._greedy if run.greedy else self._sampling), start=1
        ):
            unit.tell(number / (len(requests) * (run.end - run.start)))
            written += len(sample.token_ids)
            rows.append(
                {
                    "prompt": places[sample.key],
                    "index": run.start + sample.index,
                    "token_ids": list(sample.token_ids),
                    "finish": sample.finish,
                    "token_logps": None if sample.token_logps is None else list(sample.token_logps),
                }
            )
        unit.spend(written + sum(len(request.prompt_ids) for request in requests))
        rows.sort(key=lambda row: (row["prompt"], row["index"]))
        return {
            "draws": pa.Table.from_pylist(rows, schema=DRAWS),
            "engine": pa.table({"batch_invariant": [self._load().batch_invariant]}),
        }

    def close(self) -> None:
        """Let go of the engine."""
        if self._engine is not None and hasattr(self._engine, "close"):
            self._engine.close()
        self._engine = None

    def draws(self, chunk: Chunk) -> Draws:
        """Those of a chunk, once they are done."""
        drawn: dict[int, list[Drawn]] = {}
        for run in self._runs(chunk):
            for row in self._job.work.result(self._key(run))["draws"].to_pylist():
                if row["index"] < self._asked(run.greedy):
                    place = row.pop("prompt")
                    seed = None if run.greedy else self._seed(chunk.prompts[place]) + row["index"]
                    drawn.setdefault(place, []).append(Drawn(**row, greedy=run.greedy, seed=seed))
        return Draws(drawn)

    def decode(self, ids: list[int]) -> str:
        """Text for a person to read."""
        return self._renderer.decode(ids)

    def invariant(self) -> bool:
        """Whether every unit would come out bit for bit again."""
        units = (self._job.work.load(unit.key) for unit in self.units())
        return all(tables["engine"]["batch_invariant"][0].as_py() for tables in units if tables is not None)

    def _load(self) -> Any:
        if self._engine is None:
            self._engine = engines.load(self._job.options.engine, self._model, **self._loading)
        return self._engine

    def _asked(self, greedy: bool) -> int:
        return 1 if greedy else self._job.options.samples

    def _runs(self, chunk: Chunk) -> Iterator[_Run]:
        """The runs that give the draws asked for: done ones where they fit, and one for all that is left."""
        if self._job.options.greedy:
            yield _Run(chunk, True, 0, 1)
        start, asked = 0, self._job.options.samples
        while start < asked:
            # nearest ends first: draws that are done, and no more than asked for; else more of them
            ends = [*range(asked, start, -1), *range(asked + 1, asked + _FURTHER)]
            done = (end for end in ends if self._job.work.done(self._key(_Run(chunk, False, start, end))))
            end = next(done, asked)
            yield _Run(chunk, False, start, end)
            start = end

    def _seed(self, prompt: Prompt) -> int:
        return row_seed(self._job.options.seed, prompt.prompt_id, "sample", self._job.round) % _SEEDS

    def _key(self, run: _Run) -> str:
        options = self._job.options
        config = {
            "sampling": self._told(self._greedy if run.greedy else self._sampling),
            "draws": [run.start, run.end],
            # greedy completions are the same whatever the seed and the round
            **({} if run.greedy else {"seed": options.seed, "round": self._job.round}),
            "model": self._description["digest"],
            "config": self._description["config_digest"],
            "engine": options.engine,
            "dtype": options.dtype,
        }
        members = [f"{prompt.prompt_id}|{digest(prompt.ids)}|{prompt.room}" for prompt in run.chunk.prompts]
        return unit_key("sample", spelled(config), members)

    @staticmethod
    def _told(sampling: engines.Sampling) -> dict[str, Any]:
        return {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "end_ids": list(sampling.end_ids),
        }
