"""Where a version came from, as a drawing: sources, models and versions, oldest first, joined by lines at the left.

One box per row keeps the drawing as narrow as a phone; its lines run in lanes beside the boxes.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from markupsafe import Markup

from prefdata import lineage
from prefdata.report.rendering import visible
from prefdata.versions import Version

Kind = Literal["source", "version", "model", "lost"]

MOST_SOURCES = 6  # of one version that get a box each
MOST_VERSIONS = 30
_ROLES = {"generator": "wrote answers", "reference": "gave reference log-probs"}

_BOX, _LINE, _PAD, _GAP, _LANE = 312, 16, 10, 12, 12  # widths and heights, in px
_CHARACTERS = 44  # that fit on a line of a box
_TITLE = 27  # characters of a title, which is set bolder and leaves room for the kind
_MOST_LINES = 4


@dataclass(frozen=True)
class Box:
    """A version, or something that versions are made from."""

    kind: Kind
    title: str
    text: str
    parents: tuple[int, ...] = ()  # positions of the boxes it was made from; all come before it


def boxes(version: Version) -> list[Box]:
    """What a version came from and itself, each after what it was made from."""
    return _Gathering().gathered(version)


class _Gathering:
    """Visits versions once, parents first, without recursion: a lineage can be long."""

    def __init__(self) -> None:
        self._boxes: list[Box] = []
        self._at: dict[str, int] = {}  # version URLs and model digests: where their boxes are
        self._names = lineage.Tags()

    def gathered(self, version: Version) -> list[Box]:
        """All boxes."""
        above: dict[str, list[lineage.Node]] = {}
        waiting = [version]
        while waiting:
            each = waiting[-1]
            if each.url in above:
                waiting.pop()
                if each.url not in self._at:
                    self._at[each.url] = self._version(each, above[each.url])
                continue
            far = len(above) >= MOST_VERSIONS
            above[each.url] = [lineage.Node("and older ones", lost=True)] if far else lineage.above(each, self._names)
            waiting += [node.version for node in reversed(above[each.url]) if node.version is not None]
        return self._boxes

    def _version(self, version: Version, above: Sequence[lineage.Node]) -> int:
        sources = [node for node in above if node.version is None and not node.lost]
        parents = [self._at[node.version.url] for node in above if node.version and node.version.url in self._at]
        parents += [self._add(_box("lost", node.label)) for node in above if node.lost]
        parents += [self._add(_box("source", node.label)) for node in sources[:MOST_SOURCES]]
        if (more := len(sources) - MOST_SOURCES) > 0:
            parents.append(self._add(Box("source", f"{more:,} more sources", "the manifest lists them")))
        parents += self._models(version, [node.version for node in above if node.version is not None])
        return self._add(_box("version", self._names.label(version), tuple(parents)))

    def _models(self, version: Version, parents: Sequence[Version]) -> list[int]:
        """The models that came in with this version. One that a parent has in the same role is drawn there."""
        found: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for role, does in _ROLES.items():
            entry: Any = version.manifest.get(role)
            known = [parent.manifest.get(role) or {} for parent in parents]
            if entry and all(entry.get("digest") != other.get("digest") for other in known):  # type: ignore[attr-defined]
                found.setdefault(str(entry.get("digest")), (entry, []))[1].append(does)
        return [self._model(digest, entry, does) for digest, (entry, does) in found.items()]

    def _model(self, digest: str, entry: dict[str, Any], does: Sequence[str]) -> int:
        if digest not in self._at:
            size = entry.get("parameters")
            parts = [digest[:12], f"{size:,} parameters" if size else None, entry.get("dtype"), entry.get("engine")]
            text = " · ".join([" and ".join(does), *(str(part) for part in parts if part)])
            self._at[digest] = self._add(Box("model", str(entry.get("name") or "a model"), text))
        return self._at[digest]

    def _add(self, box: Box) -> int:
        self._boxes.append(replace(box, title=visible(box.title), text=visible(box.text)))
        return len(self._boxes) - 1


def _box(kind: Kind, label: str, parents: tuple[int, ...] = ()) -> Box:
    title, *rest = label.split("  ")
    return Box(kind, title.removeprefix("source ") if kind == "source" else title, " · ".join(rest), parents)


def drawing(found: Sequence[Box]) -> Markup:
    """The boxes below each other, with a line from each to those made from it."""
    lines = [_lines(box.text) for box in found]
    heights = [2 * _PAD + _LINE * (1 + len(each)) for each in lines]
    tops = [sum(heights[:number]) + _GAP * number for number in range(len(found))]
    middles = [top + height / 2 for top, height in zip(tops, heights, strict=True)]
    lanes = _lanes(found)
    left = _LANE * (1 + max(lanes.values(), default=-1)) + 14
    joins = [_join(box, number, middles, left, lanes) for number, box in enumerate(found) if box.parents]
    drawn = [
        _drawn(box, text, left, top, height) for box, text, top, height in zip(found, lines, tops, heights, strict=True)
    ]
    told = "; ".join(_told(box, found) for box in found)
    width, height = left + _BOX, sum(heights) + _GAP * (len(found) - 1)
    return Markup(
        '<svg class="lineage" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">{3}</svg>'
    ).format(width, height, told, Markup("").join(joins + drawn))


def _told(box: Box, found: Sequence[Box]) -> str:
    made = ", ".join(found[parent].title for parent in box.parents)
    return f"{box.kind} {box.title}" + (f" made from {made}" if made else "")


def _lines(text: str) -> list[str]:
    lines = textwrap.wrap(text, _CHARACTERS)
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1][:-1] + "…"]


def _lanes(found: Sequence[Box]) -> dict[int, int]:
    """For every box with parents, the lane its lines run in: the first that is free from its oldest parent on."""
    ends: list[int] = []
    lanes = {}
    for number, box in enumerate(found):
        if box.parents:
            lane = next((lane for lane, end in enumerate(ends) if end <= min(box.parents)), len(ends))
            ends[lane : lane + 1] = [number]
            lanes[number] = lane
    return lanes


def _join(box: Box, number: int, middles: Sequence[float], left: int, lanes: dict[int, int]) -> Markup:
    x, end = left - 10 - _LANE * lanes[number], middles[number]
    starts = Markup("").join(
        Markup('<path d="M{} {:.0f}H{}Q{} {:.0f} {} {:.0f}V{:.0f}"/>').format(
            left, middles[parent], x + 6, x, middles[parent], x, middles[parent] + 6, end - 6
        )
        for parent in box.parents
    )
    arrow = Markup('<path d="M{} {:.0f}Q{} {:.0f} {} {:.0f}H{}"/><path class="tip" d="M{} {:.0f}l-7 -4v8z"/>').format(
        x, end - 6, x, end, x + 6, end, left - 5, left, end
    )
    return Markup('<g class="join">{}{}</g>').format(starts, arrow)


def _drawn(box: Box, text: Sequence[str], left: int, top: float, height: float) -> Markup:
    title = box.title if len(box.title) <= _TITLE else "…" + box.title[1 - _TITLE :]
    lines = Markup("").join(
        Markup('<text x="{}" y="{:.0f}">{}</text>').format(left + 12, top + _PAD + _LINE * (2 + number) - 4, line)
        for number, line in enumerate(text)
    )
    return Markup(
        '<g class="box {0}"><title>{1}</title><rect x="{2}" y="{3:.0f}" width="{4}" height="{5:.0f}" rx="7"/>'
        '<text class="name" x="{6}" y="{7:.0f}">{8}</text><text class="kind" x="{9}" y="{7:.0f}" text-anchor="end">{0}'
        "</text>{10}</g>"
    ).format(
        box.kind, f"{box.title} {box.text}", left + 0.5, top + 0.5, _BOX - 1, height - 1,
        left + 12, top + _PAD + _LINE - 4, title, left + _BOX - 12, lines
    )  # fmt: skip
