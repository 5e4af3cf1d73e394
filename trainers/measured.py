"""What a trained model comes to, measured in one way whatever it was trained with: on held-out pairs and on its own answers."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import draws, logprobs, models
from prefdata.engines import Engine, Request, Sample, Sampling
from prefdata.engines.transformers import TransformersEngine
from prefdata.errors import UserError
from prefdata.logprobs import Tree
from prefdata.tokens import Renderer
from prefdata.versions import Version
from trainers import data, loop
from trainers.loss import parse
from trainers.precision import autocast
from trainers.task import Task

MEASURED = "measured.json"
Check = Callable[[str, str], float]


@dataclass(frozen=True)
class Asked:
    """How models are measured."""

    answers: int = 100  # held-out prompts that are answered
    most_tokens: int = 128  # of an answer
    check: str | None = None  # MODULE:FUNCTION of a prompt's text and an answer's
    batch_size: int = 8


def load_check(named: str) -> Check:
    """The function of MODULE:FUNCTION. UserError if there is none."""
    module, colon, name = named.partition(":")
    if not (module and colon and name):
        raise UserError(f"--check {named}: write it as MODULE:FUNCTION, for example examples.demo.world:check.")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise UserError(f"--check {named} cannot be loaded: {problem}.") from problem
    if not callable(found):
        raise UserError(f"--check {named} is no function.")
    check: Check = found
    return check


class Measuring:
    """The held-out rows of a version and held-out prompts, for one model after another."""

    def __init__(
        self,
        version: Version,
        renderer: Renderer,
        start: str,
        asked: Asked,
        folder: Path,
        *,
        prompts: Version | None = None,
    ) -> None:
        """`start`: the model that training starts from, which drift and KL are measured against. `folder`: for spooled rows.

        `prompts`: the version whose held-out prompts are answered, in the place of the version's own.
        """
        referenced = {"ref_chosen_logps", "ref_rejected_logps"} <= set(version.columns())
        self._task = Task(parse("dpo" if referenced else "orpo", None, ()), version.kind)
        self._rows = data.load(version, "test", self._task.loss.reading(version.kind), folder)
        self._version, self._renderer, self._start, self._asked = version, renderer, start, asked
        self._check = load_check(asked.check) if asked.check else None
        self._prompts = _prompts(prompts or version, asked.answers)
        self.referenced = referenced

    def measure(self, model: str) -> dict[str, float]:
        """Named numbers of a model folder or hub name."""
        loaded = models.load_model(model)
        found = self._on_pairs(loaded)
        engine = TransformersEngine(loaded, models.describe(model))
        room = models.config_positions(loaded.config)
        greedy = self._answers(engine, room, Sampling(temperature=0, end_ids=self._end_ids))
        found["answer_tokens"] = float(np.mean([len(sample.token_ids) for sample in greedy]))
        found["answers_cut"] = float(np.mean([sample.finish == "length" for sample in greedy]))
        if self._check:
            found["checked"] = float(np.mean([self._checked(sample) for sample in greedy]))
        if model == self._start:
            return found | {"kl": 0.0, "kl_per_token": 0.0}
        drawn = self._answers(engine, room, Sampling(end_ids=self._end_ids))
        return found | self._divergence(loaded, drawn)

    @property
    def digest(self) -> str:
        """Of everything but the model that decides the numbers, the checker's code included."""
        source = inspect.getsource(self._check) if self._check and inspect.isfunction(self._check) else ""
        prompts = self._prompts["row_id"].to_pylist()
        decides = [
            self._version.logical_hash, models.describe(self._start)["digest"], vars(self._asked), source, prompts
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @property
    def _end_ids(self) -> tuple[int, ...]:
        return tuple(self._renderer.end_ids)

    def _on_pairs(self, model: Any) -> dict[str, float]:
        """Of all held-out pairs; log-probs are nats per scored token."""
        context = autocast(model.device, bfloat16=False)
        means = loop.evaluate(model, self._rows, self._task, self._asked.batch_size, context).means()
        names = {
            "pair_accuracy": "logps/accuracies",
            "chosen_per_token": "logps/chosen_per_token",
            "rejected_per_token": "logps/rejected_per_token",
            "entropy": "entropy",
        }
        if self.referenced:
            names["reward_accuracy"] = "rewards/accuracies"
        return {name: means[logged] for name, logged in names.items()}

    def _answers(self, engine: Engine, room: int | None, sampling: Sampling) -> list[Sample]:
        """One to each prompt, in their order. What is drawn depends on the prompt, not on which model draws first."""
        requests = []
        for row_id, prompt_ids in zip(
            *(self._prompts[name].to_pylist() for name in ("row_id", "prompt_ids")), strict=True
        ):
            most = self._asked.most_tokens if room is None else min(self._asked.most_tokens, room - len(prompt_ids))
            seed = draws.row_seed(0, row_id, "comparison")
            requests.append(Request(row_id, tuple(prompt_ids), max(most, 1), seed))
        found = {sample.key: sample for sample in engine.generate(requests, sampling)}
        return [found[request.key] for request in requests]

    def _checked(self, sample: Sample) -> float:
        place = self._prompts["row_id"].to_pylist().index(sample.key)
        ids = [each for each in sample.token_ids if each not in self._end_ids]
        assert self._check is not None
        return float(self._check(_text(self._prompts["prompt"][place].as_py()), self._renderer.decode(ids)))

    def _divergence(self, model: Any, drawn: Sequence[Sample]) -> dict[str, float]:
        """KL(policy || start) from answers drawn from the policy: mean of log policy - log start over answers."""
        prompts = dict(zip(*(self._prompts[name].to_pylist() for name in ("row_id", "prompt_ids")), strict=True))
        trees = [Tree(prompts[sample.key], [sample.token_ids]) for sample in drawn]
        own, theirs = logprobs.score(model, trees), logprobs.score(models.load_model(self._start), trees)
        gaps = [float((one[0].astype(np.float64) - other[0]).sum()) for one, other in zip(own, theirs, strict=True)]
        tokens = sum(len(sample.token_ids) for sample in drawn)
        return {"kl": float(np.mean(gaps)), "kl_per_token": sum(gaps) / tokens}


def _prompts(version: Version, most: int) -> pa.Table:
    """Different held-out prompts, drawn by their ids: a split may be in any order."""
    rows = version.table("test", columns=["row_id", "prompt_id", "prompt", "prompt_ids"])
    names = pl.Series(rows["prompt_id"])
    first = rows.filter(names.is_first_distinct().to_arrow())
    order = np.argsort(draws.uniform(0, first["prompt_id"].to_pylist(), "comparison"))
    return first.take(order[:most])


def _text(prompt: Sequence[Mapping[str, Any]]) -> str:
    """What a checker is told of a prompt: its last user turn."""
    return str(next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), prompt[-1]["content"]))


def kept(folder: Path, digest: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was measured before in the same way, or is measured now and written down."""
    place = folder / MEASURED
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        if content["asked"] == digest:
            found: dict[str, float] = content["found"]
            return found
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # nothing, or something else: measured now
    found = measure()
    staged = folder / f".{MEASURED}"
    staged.write_text(json.dumps({"asked": digest, "found": found}, indent=2) + "\n", encoding="utf-8")
    os.replace(staged, place)
    return found
