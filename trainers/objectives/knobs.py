"""Knobs: a loss's keyword-only arguments, read from its signature, so that a loss has no config class.

`beta: Annotated[float, Range(above=0, why="...")] = 0.1` is a knob called beta, a number, 0.1 unless set.
"""

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefdata.errors import UserError


@dataclass(frozen=True)
class Range:
    """What a number may be, and why."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    why: str = ""

    def holds(self, value: float) -> bool:
        """Whether the value lies in the range."""
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        bounds = [
            ("above", self.above),
            ("at least", self.at_least),
            ("below", self.below),
            ("at most", self.at_most),
        ]
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


_KINDS: Mapping[type, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}


@dataclass(frozen=True)
class Only:
    """A knob that is read only where another one has a certain value."""

    knob: str
    value: Any


@dataclass(frozen=True)
class Knob:
    """One keyword of a loss."""

    name: str
    type: type
    default: Any
    range: Range | None = None
    choices: tuple[str, ...] = ()
    only: Only | None = None

    def read(self, text: str, loss: str) -> Any:
        """The value that the text of `--set name=text` stands for, checked."""
        value = self._parse(text, loss)
        if self.choices and value not in self.choices:
            raise UserError(f"--set {self.name}={text}: {loss} takes one of {', '.join(self.choices)} for {self.name}.")
        if self.range is not None and not self.range.holds(value):
            why = f": {self.range.why}" if self.range.why else ""
            raise UserError(f"--set {self.name}={text}: {self.name} of {loss} must be {self.range}{why}.")
        return value

    def _parse(self, text: str, loss: str) -> Any:
        if self.type is bool:
            if text.lower() not in ("true", "false"):
                raise UserError(f"--set {self.name}={text}: {self.name} of {loss} is true or false.")
            return text.lower() == "true"
        if self.type is str:
            return text
        try:
            value = self.type(text)
        except ValueError:
            raise UserError(f"--set {self.name}={text}: {self.name} of {loss} must be {self.kind}.") from None
        if not math.isfinite(value):
            raise UserError(f"--set {self.name}={text}: {self.name} of {loss} must be finite.")
        return value

    @property
    def kind(self) -> str:
        """Its type in words."""
        return "one of several words" if self.choices else _KINDS[self.type]

    @property
    def allowed(self) -> str:
        """Which values it takes; empty where any of its type does."""
        return str(self.range or "|".join(self.choices))

    def __str__(self) -> str:
        return f"{self.name}={self.default}" + (f" ({self.allowed})" if self.allowed else "")


def knobs_of(loss: Callable[..., Any]) -> dict[str, Knob]:
    """The keyword-only arguments of a loss. One without a type or default is a mistake in the loss."""
    hints = typing.get_type_hints(loss, include_extras=True)
    keywords = [p for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: _knob(p, hints[p.name]) for p in keywords}


def resolve(loss: str, knobs: Mapping[str, Knob], settings: Sequence[str]) -> dict[str, Any]:
    """Every knob's value: its default, or what `--set` gave. A knob that the loss does not have is an error."""
    values = {name: knob.default for name, knob in knobs.items()}
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write it as NAME=VALUE, for example --set beta=0.2.")
        if name not in knobs:
            has = f"its knobs are {', '.join(map(str, knobs.values()))}" if knobs else "it has none"
            raise UserError(f"--set {setting}: {loss} has no knob called {name!r}; {has}.")
        values[name] = knobs[name].read(text, loss)
        given[name] = setting
    for name, setting in given.items():
        only = knobs[name].only
        if only is not None and values[only.knob] != only.value:
            raise UserError(
                f"--set {setting}: {loss} reads {name} only with {only.knob}={only.value}, and {only.knob} is"
                f" {values[only.knob]}."
            )
    return values


def _knob(parameter: inspect.Parameter, hint: Any) -> Knob:
    range_: Range | None = None
    only: Only | None = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        range_ = next((extra for extra in extras if isinstance(extra, Range)), None)
        only = next((extra for extra in extras if isinstance(extra, Only)), None)
    if parameter.default is parameter.empty:
        raise TypeError(f"knob {parameter.name!r} needs a default")
    if typing.get_origin(hint) is typing.Literal:
        return Knob(parameter.name, str, parameter.default, range_, tuple(typing.get_args(hint)), only)
    if hint not in (float, int, bool, str):
        raise TypeError(f"knob {parameter.name!r} must be float, int, bool, str or Literal, not {hint!r}")
    return Knob(parameter.name, hint, parameter.default, range_, only=only)
