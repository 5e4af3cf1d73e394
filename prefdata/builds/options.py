"""Options of builds: a frozen dataclass whose fields say what they are for.

Flow parameters and command lines are both made from these fields, so a knob, its default and its help stand once.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any

from prefdata.errors import UserError


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None, least: float | None = None) -> Any:
    """A field of an options dataclass. `least` is the smallest value allowed."""
    return field(default=default, metadata={"help": help, "choices": choices, "least": least})


def check(options: Any) -> None:
    """UserError for the first field whose value is outside what it allows."""
    for knob in fields(options):
        value = getattr(options, knob.name)
        if value is None:
            continue
        choices, least = knob.metadata.get("choices"), knob.metadata.get("least")
        if choices and value not in choices:
            raise UserError(f"{knob.name} is {value!r}; it can be: {', '.join(choices)}")
        if least is not None and not value >= least:
            raise UserError(f"{knob.name} is {value}, and must be at least {least:g}")


def kind_of(knob: "Field[Any]", owner: type) -> tuple[type, bool]:
    """The plain type of a field (str, int, float, bool), and whether it takes several values."""
    hint = typing.get_type_hints(owner)[knob.name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def default_of(knob: "Field[Any]") -> Any:
    """The field's default; `...` if it has none."""
    return ... if knob.default is MISSING else knob.default


def as_config(options: Any, *leave_out: str, **known: Any) -> dict[str, Any]:
    """The options as they go into a manifest: plain values, without what changes no result."""
    plain = {knob.name: getattr(options, knob.name) for knob in fields(options) if knob.name not in leave_out}
    merged: Mapping[str, Any] = {**plain, **known}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in merged.items()}
