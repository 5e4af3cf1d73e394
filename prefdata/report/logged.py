"""The numbers that a run logged, by name and step."""

from collections.abc import Mapping
from typing import Any

Curves = Mapping[str, Mapping[int, float]]  # values by step, under train/NAME and eval/NAME
Run = Mapping[str, Any]  # run.json

_PLACES = (("held out", "eval"), ("in training", "train"))


def points(curves: Curves, name: str, *, fewest: int = 2) -> tuple[list[tuple[int, float]], str] | None:
    """(step, value) of a metric, held out where that was measured often enough, and where that is."""
    for where, prefix in _PLACES:
        found = sorted(curves.get(f"{prefix}/{name}", {}).items())
        if len(found) >= fewest:
            return found, where
    return None


def moved(curves: Curves, name: str) -> tuple[float, float, str] | None:
    """First and last value of a metric, and where they were measured."""
    found = points(curves, name)
    return None if found is None else (found[0][0][1], found[0][-1][1], found[1])


def last(curves: Curves, name: str) -> tuple[float, str] | None:
    """The last value of a metric, and where it was measured."""
    found = points(curves, name, fewest=1)
    return None if found is None else (found[0][-1][1], found[1])
