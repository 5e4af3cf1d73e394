"""What is minimised: one objective, or a weighted sum of several that read the same rows.

--loss dpo                          one
--loss dpo+sft --weights 1,0.2      a sum; each term is divided by its own count of rows or tokens
--set beta=0.2, --set dpo.beta=0.2  a knob of the one term that has it, or of the term that is named
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Literal

from prefdata.errors import UserError
from trainers.objectives import Batch, Objective, find
from trainers.objectives.batch import Rule, Value
from trainers.objectives.knobs import resolve
from trainers.objectives.shared_knobs import Weighting
from trainers.objectives.weighting import WEIGHTING


@dataclass(frozen=True)
class Term:
    """One objective of a loss, with its knobs set."""

    objective: Objective
    knobs: Mapping[str, Any]
    weight: float = 1.0
    weighting: Weighting = "none"  # of its rows

    @property
    def settings(self) -> dict[str, Any]:
        """As a run's configuration holds them: its knobs, and the weighting of its rows if there is one."""
        return {**self.knobs, **({WEIGHTING.name: self.weighting} if self.weighting != WEIGHTING.default else {})}


@dataclass(frozen=True)
class Reading:
    """What is read of each row, for all terms of a loss together."""

    sides: tuple[str, ...]
    values: Mapping[str, Value]  # by column
    referenced: bool = False
    partial: bool = False
    grouped: bool = False
    rules: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, kind: str, *batches: type[Batch]) -> "Reading":
        """Of rows of a kind, what these contracts read."""
        return cls(
            sides=tuple(dict.fromkeys(side for batch in batches for side in batch.sides[kind].values())),
            values={value.column: value for batch in batches for value in batch.values.values()},
            referenced=any(batch.referenced for batch in batches),
            partial=any(batch.partial for batch in batches),
            grouped=any(batch.grouped for batch in batches),
            rules=tuple(dict.fromkeys(rule for batch in batches for rule in batch.rules)),
        )


@dataclass(frozen=True)
class Loss:
    """The terms, in the order they were named in."""

    terms: tuple[Term, ...]

    @cached_property
    def name(self) -> str:
        """dpo, or dpo+sft."""
        return "+".join(term.objective.name for term in self.terms)

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """Those of the terms."""
        return tuple(term.objective for term in self.terms)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of version that every term reads."""
        first, *others = (objective.batch.sides for objective in self.objectives)
        return tuple(kind for kind in first if all(kind in other for other in others))

    @property
    def referenced(self) -> bool:
        """Whether any term reads the reference."""
        return any(objective.batch.referenced for objective in self.objectives)

    @property
    def head(self) -> Literal["logits", "score"]:
        """What the model gives for a side."""
        return self.objectives[0].batch.head

    @property
    def lr(self) -> float:
        """The learning rate of the first term, unless one is given."""
        return self.objectives[0].lr

    def reading(self, kind: str) -> Reading:
        """What is read of rows of a kind."""
        read = Reading.of(kind, *(objective.batch for objective in self.objectives))
        own = (term.objective.rules(**term.knobs) for term in self.terms if term.objective.rules)
        return replace(read, rules=(*read.rules, *chain.from_iterable(own)))

    @property
    def per_step(self) -> bool:
        """Whether any term needs to know how many tokens the rows of a step have."""
        return any(objective.batch.per_step for objective in self.objectives)

    @property
    def weighted(self) -> bool:
        """Whether any term weighs its rows by the policy's probabilities."""
        return any(term.weighting != "none" for term in self.terms)

    def knobs(self) -> dict[str, Any]:
        """As a run's configuration holds them: by name, and by term where there are several."""
        if len(self.terms) == 1:
            return self.terms[0].settings
        return {term.objective.name: term.settings for term in self.terms}

    def weights(self) -> list[float]:
        """Of the terms."""
        return [term.weight for term in self.terms]


def parse(named: str, weights: str | None, settings: Sequence[str]) -> Loss:
    """The loss of --loss, --weights and --set. UserError if they make none."""
    objectives = [find(name.strip()) for name in named.split("+")]
    _check_compatible(named, objectives)
    knobs = _knobs(objectives, settings)
    given = _weights(named, weights, len(objectives))
    return Loss(
        tuple(
            _term(objective, knobs[objective.name], weight) for objective, weight in zip(objectives, given, strict=True)
        )
    )


def _term(objective: Objective, options: Mapping[str, Any], weight: float) -> Term:
    knobs = {name: value for name, value in options.items() if name in objective.knobs}
    return Term(objective, knobs, weight, options.get(WEIGHTING.name, WEIGHTING.default))


def _check_compatible(named: str, objectives: Sequence[Objective]) -> None:
    names = [objective.name for objective in objectives]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise UserError(f"--loss {named} names {repeated} twice: name each term once, and weigh it with --weights.")
    if (
        len({(objective.batch.grouped, objective.batch.head) for objective in objectives}) > 1
        or not Loss(tuple(Term(objective, {}) for objective in objectives)).kinds
    ):
        told = "; ".join(f"{objective.name} reads {objective.batch.reads}" for objective in objectives)
        raise UserError(f"--loss {named}: no row serves all of its terms ({told}). Name terms that read the same rows.")


def _weights(named: str, given: str | None, terms: int) -> list[float]:
    if given is None:
        return [1.0] * terms
    try:
        weights = [float(each) for each in given.split(",")]
    except ValueError:
        raise UserError(f"--weights {given}: give numbers with commas between them, one for each term.") from None
    if len(weights) != terms:
        raise UserError(f"--weights {given} are {len(weights)} numbers, and --loss {named} has {terms} terms.")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(
            f"--weights {given}: each must be above 0; leave a term out of --loss instead of weighing it 0."
        )
    return weights


def _knobs(objectives: Sequence[Objective], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By objective, every option's value."""
    if len(objectives) == 1:
        (only,) = objectives
        prefix = f"{only.name}."
        return {only.name: resolve(only.name, only.options, [setting.removeprefix(prefix) for setting in settings])}
    own: dict[str, list[str]] = {objective.name: [] for objective in objectives}
    for setting in settings:
        name, text = _owner(objectives, setting)
        own[name].append(text)
    return {objective.name: resolve(objective.name, objective.options, own[objective.name]) for objective in objectives}


def _owner(objectives: Sequence[Objective], setting: str) -> tuple[str, str]:
    """Which term a setting is for, and the setting without the term's name."""
    term, dot, _ = setting.partition("=")[0].partition(".")
    names = [objective.name for objective in objectives]
    if dot:
        if term not in names:
            raise UserError(f"--set {setting}: there is no term {term!r}; the terms are {' and '.join(names)}.")
        return term, setting.removeprefix(f"{term}.")
    having = [objective.name for objective in objectives if term in objective.options]
    if len(having) > 1:
        told = " or ".join(f"--set {name}.{setting}" for name in having)
        raise UserError(f"--set {setting}: {' and '.join(having)} both have a knob {term!r}; say {told}.")
    if not having:
        has = "; ".join(
            f"{objective.name} has {', '.join(map(str, objective.options.values())) or 'none'}"
            for objective in objectives
        )
        raise UserError(f"--set {setting}: no term has a knob called {term!r}: {has}.")
    return having[0], setting
