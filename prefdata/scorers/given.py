"""Scores that come with the data: a row's own `score`, or the one that a name stands for in its `scores`."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from prefdata.records import SetAside
from prefdata.scorers import Settings, Verdict


class Given:
    """`given` reads `score`, `given:NAME` what NAME gave."""

    runs: str | None = None

    def __init__(self, what: str | None, settings: Settings) -> None:
        self._name = what
        self.fingerprint: dict[str, Any] = {"scorer": "given", "of": what}
        self.about: dict[str, Any] = {}

    def members(self, rows: pa.Table) -> list[str]:
        """The scores themselves."""
        return [repr(value) for value in self._values(rows)]

    def score(self, rows: pa.Table, tell: Callable[[float], None], spend: Callable[[int], None]) -> Sequence[Verdict]:
        """As they stand."""
        return [self._unscored() if value is None else float(value) for value in self._values(rows)]

    def close(self) -> None:
        """Nothing is held."""

    def _values(self, rows: pa.Table) -> list[float | None]:
        column = "score" if self._name is None else "scores"
        if column not in rows.column_names:
            return [None] * rows.num_rows
        values: list[Any] = rows[column].to_pylist()
        if self._name is None:
            return values
        return [
            next((each["score"] for each in scores or () if each["scorer"] == self._name), None) for scores in values
        ]

    def _unscored(self) -> SetAside:
        return SetAside("no_score", "it came without one" if self._name is None else f"{self._name} gave it none")
