"""Groups of rows whose sketches are alike: candidates by locality-sensitive hashing, each compared, groups joined up.

Rows that are alike by way of others are one group. Of every bucket of candidates rows are compared with the bucket's
first, those unlike it with the first of the rest, and so on. Rows come in an order that their content alone decides, so
the groups do not depend on how they were stored.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np

from prefdata.steps.sketch import SLOTS, Sketches
from prefdata.steps.words import Hashes, mixed

Places = np.ndarray[Any, np.dtype[np.int64]]

_RECALL = 0.99  # least share of pairs exactly at the threshold that come to be compared
_TURNS = 64  # rows of a bucket that others are compared with, before what is left of it is let go
_COMPARED = 1 << 16  # pairs together
_STEP = np.uint64(0xD1342543DE82EF95)


def groups(sketches: Sequence[Sketches], threshold: float, within: Hashes | None = None) -> Places:
    """(rows,) the place of the first row of each row's group.

    sketches: one or several of each row, (rows, SLOTS) each; rows are alike if all of theirs agree in a share of at least
    `threshold`. within: rows are alike only if they agree in this number too.
    """
    count = len(sketches[0])
    labels: Places = np.arange(count)
    least = ceil(threshold * SLOTS - 1e-9)
    for keys in _bands(sketches[0], threshold, within):
        labels = joined(labels, *_alike(sketches, keys, labels, least))
    return labels


def joined(labels: Places, left: Places, right: Places) -> Places:
    """Groups after these pairs are joined; a label is the place of the group's first row."""
    labels = labels.copy()
    while True:
        one, other = labels[left], labels[right]
        if (one == other).all():
            return labels
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while (labels[labels] != labels).any():
            labels = labels[labels]


def band_slots(threshold: float) -> int:
    """Slots of a band: as many as still bring nearly all pairs at the threshold together in one band or another."""
    fitting = (n for n in range(SLOTS, 0, -1) if 1 - (1 - threshold**n) ** (SLOTS // n) >= _RECALL)
    return next(fitting, 1)


def _bands(sketches: Sketches, threshold: float, within: Hashes | None) -> Iterator[Hashes]:
    width = band_slots(threshold)
    for start in range(0, SLOTS - width + 1, width):
        keys = np.zeros(len(sketches), np.uint64) if within is None else within
        with np.errstate(over="ignore"):
            for slot in range(start, start + width):
                keys = mixed(keys * _STEP + sketches[:, slot])
        yield keys


def _alike(sketches: Sequence[Sketches], keys: Hashes, labels: Places, least: int) -> tuple[Places, Places]:
    """Pairs of rows with equal keys that are alike, as far as they are not in one group yet."""
    order = np.argsort(keys, kind="stable")
    found: list[tuple[Places, Places]] = []
    for _ in range(_TURNS):
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
        sizes = np.diff(starts, append=len(order))
        shared = np.repeat(sizes > 1, sizes)
        first = np.repeat(order[starts], sizes)[shared]
        order = order[shared]
        if not len(order):
            break
        same = labels[order] == labels[first]
        compared = np.flatnonzero(~same)
        same[compared] = agree = _agree(sketches, order[compared], first[compared], least)
        found.append((order[compared][agree], first[compared][agree]))
        order = order[~same]
    empty = np.zeros(0, np.int64)
    left, right = zip(*found, strict=True) if found else ((empty,), (empty,))
    return np.concatenate(left), np.concatenate(right)


def _agree(
    sketches: Sequence[Sketches], left: Places, right: Places, least: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    alike = np.ones(len(left), bool)
    for start in range(0, len(left), _COMPARED):
        here = slice(start, start + _COMPARED)
        for each in sketches:
            alike[here] &= (each[left[here]] == each[right[here]]).sum(axis=1) >= least
    return alike
