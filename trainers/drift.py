"""How far the policy has gone from where it started, seen on answers: drawn before the first step, and drawn anew later.

The answers of the start and their log-probs are kept in the run folder, so no second model is needed and a run that goes
on compares with its own start. A run usually starts from the reference of its data; where it doesn't, the start is meant.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefdata import draws, logprobs
from prefdata.engines import Request, Sample, Sampling
from prefdata.engines.transformers import TransformersEngine
from prefdata.logprobs import Tree
from prefdata.logprobs.wrappers import unwrapped
from prefdata.models import config_positions
from trainers.data import Row

FILE = "start_answers.json"
ANSWERS = 8
LONGEST = 64  # tokens of an answer: every evaluation draws them anew


@dataclass(frozen=True)
class Drawn:
    """An answer to a prompt, with its log-probs (nats per token) under the model that drew it."""

    key: str
    prompt_ids: list[int]
    ids: list[int]
    logps: list[float]


@dataclass(frozen=True)
class Start:
    """Answers drawn from the model that a run starts from, at temperature 1."""

    answers: tuple[Drawn, ...]
    most: int  # tokens of an answer

    @classmethod
    def of(cls, model: Any, rows: Sequence[Row]) -> "Start":
        """One to each prompt of the rows, as far as there is room, and up to the length of the rows' longest answer."""
        prompts = {row.row_id: row.prompt_ids.tolist() for row in rows}
        most = min(LONGEST, max((len(side.ids) for row in rows for side in row.sides), default=1))
        samples = answers(model, prompts, most, Sampling())
        scored = _scored(model, [Tree(prompts[sample.key], [sample.token_ids]) for sample in samples])
        drawn = (
            Drawn(sample.key, prompts[sample.key], list(sample.token_ids), logps)
            for sample, logps in zip(samples, scored, strict=True)
        )
        return cls(tuple(drawn), most)

    @classmethod
    def read(cls, folder: Path) -> "Start | None":
        """What a run folder keeps; None where there is nothing that can be read."""
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(tuple(Drawn(**each) for each in content["answers"]), content["most"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it in a run folder."""
        staged = folder / f".{FILE}"
        content = {"most": self.most, "answers": [asdict(each) for each in self.answers]}
        staged.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(staged, folder / FILE)

    def measure(self, model: Any, *, now: Sequence[Sequence[int]] | None = None) -> dict[str, float]:
        """Named numbers of the policy. `now`: the answers that it draws, where they are known already.

        start_kl and kl_to_start: `divergences`, on the answers of the start. answer_tokens is the mean length of answers
        drawn from the policy now, with the seeds that the start drew with, and length_drift how much more that is than the
        start's.
        """
        if not self.answers:
            return {}
        trees = [Tree(each.prompt_ids, [each.ids]) for each in self.answers]
        start = np.concatenate([each.logps for each in self.answers])
        policy = np.concatenate(_scored(model, trees))
        forward, reverse = divergences(start, policy)
        if now is None:
            prompts = {each.key: each.prompt_ids for each in self.answers}
            now = [sample.token_ids for sample in answers(model, prompts, self.most, Sampling())]
        length, before = (
            float(np.mean([len(ids) for ids in those])) for those in (now, [each.ids for each in self.answers])
        )
        return {
            "probe/start_kl": float(forward.mean()),
            "probe/kl_to_start": float(reverse.mean()),
            "probe/answer_tokens": length,
            "probe/length_drift": length - before,
        }


def divergences(start: np.ndarray, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of tokens drawn from the start, with their log-probs under both: what KL(start || policy) and the reverse are means of.

    Per next token, in nats. The reverse weighs each token by w = policy / start: w log w - w + 1, whose mean is
    KL(policy || start) and which is never below 0. No second model is needed. Once the policy prefers what the start hardly ever
    draws, such tokens are not among these, and the estimate reads low, about 1 at most: then the first one tells.
    """
    log_weight = policy - start
    weight = np.exp(log_weight)
    product = np.where(weight > 0, weight * np.where(weight > 0, log_weight, 0.0), 0.0)
    return -log_weight, product - weight + 1


def _scored(model: Any, trees: Sequence[Tree]) -> list[list[float]]:
    """Log-probs of each tree's branch, packed in the same way every time: the start against itself is 0."""
    return [branches[0].tolist() for branches in logprobs.score(model, trees)]


def answers(
    model: Any, prompts: Mapping[str, Sequence[int]], most: int, sampling: Sampling, *, least: int = 1
) -> list[Sample]:
    """What a model that is being trained answers to prompts, by key, in their order, up to the ends that it generates to.

    At most `most` tokens each; no answer from a model that cannot generate, nor to a prompt behind which the model has no room for `least`.
    """
    inner = unwrapped(model)
    if not getattr(inner, "can_generate", bool)():
        return []
    before, room = inner.generation_config, config_positions(inner.config)
    end_ids = before.eos_token_id
    ends = (end_ids,) if isinstance(end_ids, int) else tuple(end_ids or ())
    limits = {key: most if room is None else min(most, room - len(ids)) for key, ids in prompts.items()}
    requests = [
        Request(key, tuple(ids), limits[key], draws.row_seed(0, key, "drift"))
        for key, ids in prompts.items()
        if limits[key] >= least
    ]
    try:
        engine = TransformersEngine(inner, {"name": "in training"})
        found = {sample.key: sample for sample in engine.generate(requests, replace(sampling, end_ids=ends))}
    finally:
        inner.generation_config = before  # the engine leaves one without ends, and it is saved with the model
    return [found[request.key] for request in requests]
