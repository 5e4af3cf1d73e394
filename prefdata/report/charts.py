"""Plots as inline SVG: histograms, a scatter, curves. Colours are classes of the page's style, so both themes work.

Every text goes through `Markup.format`, which escapes it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

Numbers = np.ndarray[Any, np.dtype[Any]]

WIDTH, HEIGHT = 340.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 8.0, 34.0
BINS = 24
MINUS = "\N{MINUS SIGN}"
MOST = 1e300  # beyond it, what is added or scaled on the way to the page would overflow
_TAIL = 0.005  # share at each end that a histogram gathers in its outermost bins


@dataclass(frozen=True)
class Series:
    """Values under one name; `css` is their colour."""

    name: str
    css: str
    values: Numbers

    @classmethod
    def of(cls, name: str, css: str, values: Iterable[float | None]) -> "Series":
        """Leaves out what is null or not finite: it has no place on an axis."""
        found = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        return cls(name, css, found[np.isfinite(found)].clip(-MOST, MOST))


@dataclass(frozen=True)
class Curve:
    """Points joined by a line, in order."""

    name: str
    css: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float  # where low is drawn, and high
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * round_ for round_ in (1, 2, 2.5, 5, 10) if power * round_ >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def histogram(title: str, series: Sequence[Series], unit: str, note: str = "") -> Markup | None:
    """Shares of values per bin, the series over each other; None if there are no values."""
    series = [each for each in series if each.values.size]
    if not series:
        return None
    low, high = _range(np.concatenate([each.values for each in series]))
    edges = np.linspace(low, high, _bins(low, high, series) + 1)
    shares = [np.histogram(each.values.clip(low, high), edges)[0] / each.values.size for each in series]
    x, y = _axes(low, high, 0.0, float(max(share.max() for share in shares)) * 1.05)
    areas = [_area(each.css, edges, share, x, y) for each, share in zip(series, shares, strict=True)]
    medians = ", ".join(f"{each.name} {number(float(np.median(each.values)))}" for each in series)
    marks = [
        Markup('<line class="median {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            each.css, x(_within(x, median)), x(_within(x, median)), TOP, HEIGHT - BOTTOM
        )
        for each in series
        for median in [float(np.median(each.values))]
    ]
    body = Markup("").join([_grid(x, y, percent=True), *areas, *marks, _label(unit)])
    told = f"median: {medians}" if len(series) > 1 else f"median {medians.rsplit(' ', 1)[1]}"
    return _figure(title, f"Histogram of {title.lower()}, {unit}; {told}", body, series, f"{told}. {note}".strip())


def scatter(title: str, x: Series, y: Series, note: str = "") -> Markup | None:
    """Dots, larger where more rows are, the same scale both ways, with the line where both are equal."""
    if not x.values.size:
        return None
    most = float(max(np.quantile(each.values, 1 - _TAIL) for each in (x, y)))
    high = most * 1.02 if most > 1e-6 else 1.0
    across, up = _axes(0.0, high, 0.0, high)
    places = Counter(
        (round(across(_within(across, a))), round(up(_within(up, b))))
        for a, b in zip(x.values.tolist(), y.values.tolist(), strict=True)
    )
    commonest = max(places.values())
    dots = [
        Markup('<circle cx="{}" cy="{}" r="{:.1f}"/>').format(
            left, down, 1.5 + 5 * math.sqrt(rows / commonest) * (commonest > 1)
        )
        for (left, down), rows in sorted(places.items())
    ]
    line = Markup('<line class="equal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        across(0), up(0), across(high), up(high)
    )
    group = Markup('<g class="dots">{}</g>').format(Markup("").join(dots))
    body = Markup("").join([_grid(across, up), line, group, _label(x.name), _upright(y.name)])
    return _figure(title, f"Scatter plot: {y.name} against {x.name}", body, [], note)


def curves(title: str, lines: Sequence[Curve], note: str = "", *, zero: bool = False) -> Markup | None:
    """Values by training step; None if there are none. `zero`: with a line at 0."""
    finite = [
        Curve(line.name, line.css, [x for x, _ in points], [max(-MOST, min(y, MOST)) for _, y in points])
        for line in lines
        if (points := [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)])
    ]
    if not finite:
        return None
    low, high = _spread([y for line in finite for y in line.y] + ([0.0] if zero else []))
    first, last = _spread([x for line in finite for x in line.x], room=0)
    x, y = _axes(first, last, low, high)
    level = [Markup('<line class="equal" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
        LEFT, WIDTH - RIGHT, y(0), y(0)
    )] if zero else []  # fmt: skip
    body = Markup("").join([_grid(x, y), *level, *(_line(line, x, y) for line in finite), _label("step")])
    ends = ", ".join(f"{line.name} {number(line.y[0])} → {number(line.y[-1])}" for line in finite)
    return _figure(title, f"Curve of {title.lower()} by step; {ends}", body, finite, f"{ends}. {note}".strip())


def number(value: float) -> str:
    """A number short enough for an axis. What is rounding is 0."""
    size = abs(value)
    if size < 1e-8:
        return "0"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
    if size >= 1e4:
        return f"{value / 1e3:,.0f}k"
    text = f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def _range(values: Numbers) -> tuple[float, float]:
    low, high = (float(value) for value in np.quantile(values, [_TAIL, 1 - _TAIL]))
    if values.min() > low - (high - low) * 0.1:
        low = float(values.min())
    if values.max() < high + (high - low) * 0.1:
        high = float(values.max())
    pad = _room(low, high)
    return low - pad, high + pad


def _bins(low: float, high: float, series: Sequence[Series]) -> int:
    """No more bins than whole numbers, where the values are such: bins would be empty in turns."""
    whole = all(bool((each.values == np.round(each.values)).all()) for each in series)
    return max(1, min(BINS, round(high - low))) if whole else BINS


def _spread(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = _room(low, high) or (high - low) * room
    return low - pad, high + pad


def _room(low: float, high: float) -> float:
    """What an axis needs on either side where all values are the same but for rounding, of any size; else 0."""
    pad = max(0.5, abs(low) * 1e-6)
    return pad if high - low <= pad * 1e-9 else 0.0


def _within(axis: _Axis, value: float) -> float:
    return min(max(value, axis.low), axis.high)


def _axes(low: float, high: float, bottom: float, top: float) -> tuple[_Axis, _Axis]:
    return _Axis(low, high, LEFT, WIDTH - RIGHT), _Axis(bottom, top or 1.0, HEIGHT - BOTTOM, TOP)


def _grid(x: _Axis, y: _Axis, *, percent: bool = False) -> Markup:
    lines = [
        Markup('<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            LEFT, WIDTH - RIGHT, y(tick), y(tick), LEFT - 5, y(tick) + 4, f"{number(tick * 100)} %" if percent else number(tick)
        )
        for tick in y.ticks(4)
    ]  # fmt: skip
    marks = [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x(tick), HEIGHT - 19, number(tick))
        for tick in x.ticks(5)
    ]
    return Markup('<g class="grid">{}</g>').format(Markup("").join(lines + marks))


def _area(css: str, edges: Numbers, shares: Numbers, x: _Axis, y: _Axis) -> Markup:
    floor = f"{y(0):.1f}"
    steps = " ".join(
        f"L{x(left):.1f} {y(share):.1f}L{x(right):.1f} {y(share):.1f}"
        for left, right, share in zip(edges[:-1].tolist(), edges[1:].tolist(), shares.tolist(), strict=True)
    )
    path = f"M{x(float(edges[0])):.1f} {floor}{steps}L{x(float(edges[-1])):.1f} {floor}Z"
    return Markup('<path class="area {}" d="{}"/>').format(css, path)


def _line(line: Curve, x: _Axis, y: _Axis) -> Markup:
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x, line.y, strict=True))
    if len(line.x) <= 6:  # few measurements: show where they are
        dots = Markup("").join(
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(line.css, x(a), y(b))
            for a, b in zip(line.x, line.y, strict=True)
        )
        return Markup('<polyline class="line {}" points="{}"/>{}').format(line.css, points, dots)
    return Markup('<polyline class="line {}" points="{}"/>').format(line.css, points)


def _label(unit: str) -> Markup:
    return Markup('<text x="{:.0f}" y="{:.0f}" text-anchor="middle">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, unit
    )


def _upright(unit: str) -> Markup:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return Markup('<text x="10" y="{}" text-anchor="middle" transform="rotate(-90 10 {})">{}</text>').format(
        middle, middle, unit
    )


def _figure(title: str, told: str, body: Markup, named: Sequence[Series | Curve], note: str) -> Markup:
    keys = Markup("").join(
        Markup('<span class="key {}">{}</span>').format(each.css, each.name) for each in named if len(named) > 1
    )
    return Markup(
        '<figure class="plot"><figcaption><b>{}</b>{}</figcaption><svg viewBox="0 0 {:.0f} {:.0f}" role="img" '
        'aria-label="{}">{}</svg><p class="fine">{}</p></figure>'
    ).format(title, keys, WIDTH, HEIGHT, told, body, note)
