"""Reward models: sequence classifiers with one label, read at the last token of an answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from prefdata import models
from prefdata.errors import UserError
from prefdata.identity import tokens_id
from prefdata.logprobs import Tree, score_rewards
from prefdata.logprobs.scalar import check_head
from prefdata.records import Message, SetAside
from prefdata.scorers import Settings, Verdict
from prefdata.tokens import Conversation, Renderer, Tokenised, differences

Ids = tuple[tuple[int, ...], tuple[int, ...]]  # a prompt's and an answer's


def load(
    name: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    fresh_head_seed: int | None = None,
) -> Any:
    """A model with a head that gives one score.

    fresh_head_seed: draws the head's weights where the folder has none, as a language model has not, which becomes a
    reward model by being trained as one. None: a folder without a head is refused.
    """
    with torch.random.fork_rng():  # nothing else that is drawn depends on it
        torch.manual_seed(fresh_head_seed or 0)
        return models.load_classifier(
            name,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            without_head=fresh_head_seed is not None,
        )


class RewardModel:
    """`reward_model:FOLDER`, or a hub name.

    A model that reads conversations as the version was tokenised (tokenizer, template, end tokens) scores the stored tokens;
    any other the texts, in its own template. Each answer is read at its end token. One that was cut has none, is given
    none, and is read at its last token. All answers to a prompt hang on it, and it runs once for them.
    """

    def __init__(self, what: str | None, settings: Settings) -> None:
        if not what:
            raise UserError("scorer reward_model: say which model, as in --scorer reward_model:FOLDER.")
        self._name, self._settings = what, settings
        description = models.describe(what, settings.dtype)
        self.renderer = Renderer.load(what, trust_remote_code=settings.trust_remote_code)
        self.retokenises = bool(differences(settings.tokenizer, self.renderer.fingerprint))
        self._positions = models.max_positions(what, trust_remote_code=settings.trust_remote_code)
        read = self.renderer.fingerprint if self.retokenises else settings.tokenizer
        self.about: dict[str, Any] = {
            "model": description["name"],
            **{name: description[name] for name in ("commit", "architecture", "parameters")},
        }
        self.fingerprint: dict[str, Any] = {
            "scorer": "reward_model",
            **{name: description[name] for name in ("digest", "config_digest", "dtype")},
            "tokens": "its own" if self.retokenises else "as stored",
            "tokenizer_digest": read["digest"],
            "template_digest": read["template_digest"],
            "template_args": read["template_args"],
            "end_ids": read["end_ids"],
        }
        self.runs: str | None = str(description["name"])
        self._model: Any = None

    def members(self, rows: pa.Table) -> list[str]:
        """Stored tokens by their names; where texts are read, the rows, whose ids cover them, and how each ends."""
        if not self.retokenises:
            return [tokens_id(*ids) for ids in _stored(rows)]
        ends = zip(*(rows[name].to_pylist() for name in ("row_id", "completion_finish")), strict=True)
        return [f"{row_id} {finish}" for row_id, finish in ends]

    def score(self, rows: pa.Table, tell: Callable[[float], None], spend: Callable[[int], None]) -> Sequence[Verdict]:
        """The head's number at each answer's last token."""
        read = [self._fitting(each) for each in (self._rendered(rows) if self.retokenises else _stored(rows))]
        branches: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
        for each in read:
            if not isinstance(each, SetAside):
                branches.setdefault(each[0], {})[each[1]] = 0.0
        if not branches:
            return [each for each in read if isinstance(each, SetAside)]
        trees = [Tree(trunk, list(answers)) for trunk, answers in branches.items()]
        for (trunk, answers), scores in zip(
            branches.items(), score_rewards(self._load(), trees, tell=tell), strict=True
        ):
            branches[trunk] = dict(zip(answers, scores.astype(float).tolist(), strict=True))
        spend(sum(len(tree.trunk) + sum(map(len, tree.branches)) for tree in trees))
        return [each if isinstance(each, SetAside) else branches[each[0]][each[1]] for each in read]

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _load(self) -> Any:
        if self._model is None:
            settings = self._settings
            self._model = load(self._name, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)
            check_head(self._model)
        return self._model

    def _rendered(self, rows: pa.Table) -> list[Ids | SetAside]:
        """In the model's own tokens. Answers to one prompt are rendered one by one: there may be several equal ones."""
        columns = (rows[name].to_pylist() for name in ("prompt", "completion", "tools", "completion_finish"))
        told = list(zip(*columns, strict=True))
        asked = [Conversation(_turns(prompt), (_turns(said),), tools) for prompt, said, tools, _ in told]
        finished = [finish == "stop" for *_, finish in told]
        return [_ids(each, done) for each, done in zip(self.renderer.render(asked), finished, strict=True)]

    def _fitting(self, read: Ids | SetAside) -> Ids | SetAside:
        most = self._positions
        if isinstance(read, SetAside) or most is None or len(read[0]) + len(read[1]) <= most:
            return read
        total = len(read[0]) + len(read[1])
        return SetAside("answer_too_long", f"{total} tokens with the prompt, and {self._name} reads {most}")


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message.from_mapping(turn) for turn in messages)


def _ids(rendered: Tokenised | SetAside, finished: bool) -> Ids | SetAside:
    if isinstance(rendered, SetAside):
        return rendered
    (found,) = rendered.answers
    if isinstance(found, SetAside):
        return found
    ids = found.ids if finished else found.ids[:-1]  # the end token of an answer that did not end
    if not ids:
        return SetAside("completion_empty")
    return tuple(rendered.prompt_ids), tuple(ids)


def _stored(rows: pa.Table) -> list[Ids]:
    prompts, answers = (map(tuple, rows[f"{part}_ids"].to_pylist()) for part in ("prompt", "completion"))
    return list(zip(prompts, answers, strict=True))
