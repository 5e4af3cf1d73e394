"""A strip of dots for each of several names, over one axis: where few measurements of many things are compared."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prefdata.report.charts import MOST, WIDTH, number

_NAMES = 118.0  # room for names, left
_RIGHT = 12.0
_ROW = 17.0
_BOTTOM = 22.0


@dataclass(frozen=True)
class Strip:
    """Values under one name."""

    name: str
    values: Sequence[float]


def strips(title: str, rows: Sequence[Strip], *, level: float | None = None, note: str = "") -> Markup | None:
    """Dots of every row, with a bar at their mean; None if there are no values. `level`: where a line goes through all rows."""
    rows = [
        Strip(row.name, [max(-MOST, min(value, MOST)) for value in row.values if math.isfinite(value)]) for row in rows
    ]
    every = [value for row in rows for value in row.values]
    if not every:
        return None
    marked = [level] if level is not None and math.isfinite(level) else []
    low, high = min(every + marked), max(every + marked)
    pad = (high - low) * 0.05 or max(abs(low) * 0.05, 0.5)
    low, high = low - pad, high + pad
    height = _ROW * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return _NAMES + (value - low) / (high - low) * (WIDTH - _RIGHT - _NAMES)

    ticks = [low + pad, (low + high) / 2, high - pad]
    grid = [
        Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1:.1f}"/><text x="{0:.1f}" y="{2:.1f}" text-anchor="middle">{3}</text>').format(
            x(tick), height - _BOTTOM, height - 6, number(tick)
        )
        for tick in ticks
    ]  # fmt: skip
    lines = [
        Markup('<line class="equal" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1:.1f}"/>').format(x(each), height - _BOTTOM)
        for each in marked
    ]
    drawn = [_row(row, place, x) for place, row in enumerate(rows)]
    body = Markup("").join([Markup('<g class="grid">{}</g>').format(Markup("").join(grid)), *lines, *drawn])
    told = ", ".join(f"{row.name} {number(sum(row.values) / len(row.values))}" for row in rows if row.values)
    return Markup(
        '<figure class="plot"><figcaption><b>{}</b></figcaption><svg viewBox="0 0 {:.0f} {:.0f}" role="img" '
        'aria-label="{}">{}</svg><p class="fine">{}</p></figure>'
    ).format(title, WIDTH, height, f"Dots of {title.lower()}; means: {told}", body, note)


def _row(row: Strip, place: int, x: Callable[[float], float]) -> Markup:
    middle = _ROW * (place + 0.5)
    name = Markup('<text x="{:.0f}" y="{:.1f}" text-anchor="end">{}</text>').format(_NAMES - 8, middle + 4, row.name)
    dots = [
        Markup('<circle class="chosen" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x(each), middle) for each in row.values
    ]
    if not row.values:
        return name
    mean = x(sum(row.values) / len(row.values))
    bar = Markup('<line class="line plain" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
        mean, middle - 6, middle + 6
    )
    return Markup("").join([name, bar, *dots])
