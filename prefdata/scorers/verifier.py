"""Verifiers: a Python function of yours that looks at a prompt and an answer and gives a number, or true or false."""

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefdata.errors import UserError
from prefdata.records import SetAside
from prefdata.scorers import Settings, Verdict
from prefdata.scorers.texts import answer, question

GROUP = "prefdata.verifiers"
_DETAIL_CHARACTERS = 300
_TELL_EVERY = 32


class Verifier:
    """`verifier:MODULE:FUNCTION`, or the name of an entry point in the group prefdata.verifiers.

    The function gets two texts, the prompt's last user turn and the answer; one with a parameter `row` also gets the row,
    by column. It is run in this process. Its fingerprint covers the file it stands in, and no other that this one imports.
    """

    runs: str | None = None

    def __init__(self, what: str | None, settings: Settings) -> None:
        if not what:
            raise UserError("scorer verifier: say which function, as in --scorer verifier:MODULE:FUNCTION.")
        self._what = what
        self._function = _found(what)
        self._wants_row = _wants_row(what, self._function)
        self.about: dict[str, Any] = {}
        self.fingerprint: dict[str, Any] = {"scorer": "verifier", "function": what, "code": _code(self._function)}

    def members(self, rows: pa.Table) -> list[str]:
        """The rows: their ids cover what is asked and answered."""
        found: list[str] = rows["row_id"].to_pylist()
        return found

    def score(self, rows: pa.Table, tell: Callable[[float], None], spend: Callable[[int], None]) -> Sequence[Verdict]:
        """What the function returns; a row for which it raises, or returns no finite number, has no score."""
        found: list[Verdict] = []
        columns = rows if self._wants_row else rows.select(["prompt", "completion"])
        for row in columns.to_pylist():
            found.append(self._verdict(row))
            if len(found) % _TELL_EVERY == 0:
                tell(len(found) / rows.num_rows)
        return found

    def close(self) -> None:
        """Nothing is held."""

    def _verdict(self, row: dict[str, Any]) -> Verdict:
        given = {"row": row} if self._wants_row else {}
        try:
            value = self._function(question(row["prompt"]), answer(row["completion"]), **given)
            number = float(value)
        except Exception as problem:  # whatever it is, it is the function's own affair and the row's
            told = f"{self._what}: {type(problem).__name__}: {problem}"
            return SetAside("verifier_failed", told[:_DETAIL_CHARACTERS])
        return number if math.isfinite(number) else SetAside("score_not_finite", f"{self._what} gave {number}")


def _found(what: str) -> Callable[..., Any]:
    """The function that a text names."""
    module, colon, name = what.partition(":")
    try:
        if colon:
            function = getattr(import_module(module), name)
        else:
            named = {point.name: point for point in entry_points(group=GROUP)}
            if what not in named:
                there = f"there are: {', '.join(sorted(named))}" if named else "none is installed"
                raise UserError(
                    f"there is no verifier {what!r} among the entry points {GROUP} ({there}); a function of a module is"
                    " named MODULE:FUNCTION."
                )
            function = named[what].load()
    except UserError:
        raise
    except Exception as problem:  # a module may raise anything when it is imported
        raise UserError(f"verifier {what} can't be loaded: {type(problem).__name__}: {problem}.") from problem
    if not callable(function):
        raise UserError(f"verifier {what} is no function.")
    return function  # type: ignore[no-any-return]


def _wants_row(what: str, function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one that is not written in Python says nothing of itself
        return False
    wants = "row" in signature.parameters
    try:
        signature.bind("", "", **({"row": {}} if wants else {}))
    except TypeError as problem:
        raise UserError(f"verifier {what} does not take a prompt's text and an answer's: {problem}.") from problem
    return wants


def _code(function: Callable[..., Any]) -> str | None:
    """sha256 hex of the file it stands in; None if there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None
