"""Scores that stand beside the two sides of a comparison."""

import math
from collections.abc import Mapping

from prefdata.sources.refusal import Refused, Row

# (chosen, rejected) columns as published data sets spell them, at the top of a row or in its `metadata`
PAIRS = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


def scores(row: Row) -> tuple[float | None, float | None]:
    """(chosen, rejected) scores; refused when they do not say that chosen is better."""
    chosen, rejected = _find(row)
    if chosen is None or rejected is None:
        return chosen, rejected
    if chosen == rejected:
        raise Refused("equal_scores", f"both sides have the score {chosen:g}")
    if chosen < rejected:
        raise Refused("scores_inverted", f"chosen has {chosen:g}, rejected {rejected:g}")
    return chosen, rejected


def preference(row: Row) -> float | None:
    """The probability that chosen is better, where the row states one."""
    value = number(row, "preference")
    if value is not None and not 0 <= value <= 1:
        raise Refused("preference_out_of_range", f"preference is {value:g}")
    return value


def number(row: Row, name: str, *, unsound: str = "score_not_finite") -> float | None:
    """A finite number, or the text of one (a CSV file has nothing else); None when absent, null or empty.

    unsound: the reason if it is not finite.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Refused("wrong_type", f"{name} is {type(value).__name__}, a number is needed")
    try:
        found = float(value)
    except ValueError:
        raise Refused("wrong_type", f"{name} is {str(value)[:40]!r}, a number is needed") from None
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise Refused(unsound, f"{name} is {found}")
    return found


def _find(row: Row) -> tuple[float | None, float | None]:
    metadata = row.get("metadata")
    for place in (row, metadata if isinstance(metadata, Mapping) else {}):
        for chosen, rejected in PAIRS:
            if place.get(chosen) is not None or place.get(rejected) is not None:
                return number(place, chosen), number(place, rejected)
    return None, None
