"""Token trees as one flat row that holds every token once, and the packing of many trees into such rows.

A branch's path is its trunk and the branch without its last token, which predicts nothing and so is not run. The paths
of a tree are merged into a trie: what several of them begin with stands in the row once. A branch may be the beginning
of another, or equal to it, or one token long, in which case its path is the trunk.

The row of a pair (prompt P, common prefix C, tails A and B):

    row         P C A | B           runs: P C A in one go, then B behind P C
    positions   0 ......|...        those of B continue from C's
    nodes       [P C] [A] [B]       the row cut wherever a path forks

Numbers only: nothing here knows of a model or a device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefdata.logprobs.trees import Tokens, Tree

# A tree of up to so many budgets stays whole.
_WHOLE_BUDGETS = 4

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Run:
    """Tokens [start, end) of the row, which follow one another on one path, behind `past` earlier tokens of it.

    `nodes` are the nodes of the whole path, from the root to the run's last token.
    """

    start: int
    end: int
    past: int
    nodes: tuple[int, ...]

    @property
    def own(self) -> int:
        """Tokens of the run itself."""
        return self.end - self.start


@dataclass(frozen=True, eq=False)
class Layout:
    """Trees as one row of L tokens.

    tokens      (L,) ids
    positions   (L,) position of each token on its path
    nodes       lengths of the pieces between forks, in the order of the row; they add up to L
    runs        what attends together, in the order of the row; they cover it
    predictors  (P,) places in the row that predict a scored token, each once, ascending
    read        (S,) for each scored token, which of `predictors` predicts it; ascending
    targets     (S,) ids of the scored tokens; a token that several branches share is scored once
    branches    for every branch, tree by tree: which of the S scored tokens are its own, in its order
    lasts       for every branch: the place of its path's last token
    """

    tokens: Ids
    positions: Ids
    nodes: tuple[int, ...]
    runs: tuple[Run, ...]
    predictors: Ids
    read: Ids
    targets: Ids
    branches: tuple[Ids, ...]
    lasts: Ids

    @property
    def depth(self) -> int:
        """Tokens on the longest path."""
        return int(self.positions.max()) + 1

    @property
    def ends(self) -> Ids:
        """(L,) for each token, the place just past the last one that has it on its path.

        A row lists a tree in the order of a walk, so the tokens that see token k are those at places k to ends[k] - 1.
        """
        last = [0] * len(self.nodes)
        for run in self.runs:
            for node in run.nodes:
                last[node] = max(last[node], run.end)
        return np.repeat(np.asarray(last, np.int64), self.nodes)


@dataclass(frozen=True)
class _Path:
    """One branch's path through the row. Its last `len(places) - past` tokens are new; the others stand there already."""

    branch: int
    tokens: Ids
    places: Ids
    past: int


def lay_out(trees: Sequence[Tree], *, whole: bool = False) -> Layout:
    """The row of these trees, one tree after another. `whole`: with the last token of every branch, which predicts none."""
    paths: list[_Path] = []
    scored: list[Ids] = []  # per branch: (tokens, 2), where each is predicted and what it is
    lasts: list[int] = []
    length = 0
    for tree in trees:
        own = list(_trie(tree, start=length, whole=whole))
        length += sum(len(path.places) - path.past for path in own)
        paths += own
        for path in sorted(own, key=lambda path: path.branch):
            branch = _ids(tree.branches[path.branch])
            predicted_at = path.places[len(tree.trunk) - 1 :][: len(branch)]
            scored.append(np.stack([predicted_at, branch], axis=1))
            lasts.append(int(path.places[-1]))
    items, inverse = np.unique(np.concatenate(scored), axis=0, return_inverse=True)
    predictors, read = np.unique(items[:, 0], return_inverse=True)
    new = [path for path in paths if len(path.places) > path.past]
    nodes, runs = _cut(new, length)
    ends = np.cumsum([len(part) for part in scored])[:-1]
    return Layout(
        tokens=np.concatenate([path.tokens[path.past :] for path in new]),
        positions=np.concatenate([np.arange(path.past, len(path.places)) for path in new]),
        nodes=nodes,
        runs=runs,
        predictors=predictors,
        read=read,
        targets=items[:, 1],
        branches=tuple(np.split(inverse.reshape(-1), ends)),
        lasts=np.asarray(lasts, np.int64),
    )


def pack(trees: Sequence[Tree], budget: int) -> list[list[tuple[int, int]]]:
    """Cuts trees, in the order given, into batches of at most `budget` tokens of their rows.

    A batch lists (tree, branch) numbers. A larger tree is a batch of its own, and is parted only if it is larger by far,
    since every part brings the trunk again. A branch too large for a part is one by itself.
    """
    batches: list[list[tuple[int, int]]] = []
    room = 0
    for number, tree in enumerate(trees):
        paths = list(_trie(tree, start=0))
        tokens = sum(len(path.places) - path.past for path in paths)
        size = min(max(tokens, budget), _WHOLE_BUDGETS * budget)
        begins = tokens > room
        for place, path in enumerate(paths):
            needed = len(path.places) - (path.past if place else 0)
            if begins or needed > room:
                batches.append([])
                room, needed, begins = size, len(path.places), False
            batches[-1].append((number, path.branch))
            room = max(0, room - needed)
        if size > budget:
            room = 0
    return batches


def _trie(tree: Tree, start: int, *, whole: bool = False) -> Iterator[_Path]:
    """The paths of a tree's branches, each behind one that it shares the most with."""
    trunk = _ids(tree.trunk)
    paths = [np.concatenate([trunk, _ids(branch)[: None if whole else -1]]) for branch in tree.branches]
    # In the order of their ids, what begins alike stands together. Descending, so that a path comes before its own
    # beginnings, which then add nothing. Big-endian bytes sort as the tuples would, and faster.
    order = sorted(range(len(paths)), key=lambda i: paths[i].astype(">i8").tobytes(), reverse=True)
    tokens = places = np.zeros(0, np.int64)
    for branch in order:
        past = _shared(tokens, paths[branch])
        tokens = paths[branch]
        new = len(tokens) - past
        places = np.concatenate([places[:past], np.arange(start, start + new)])
        start += new
        yield _Path(branch, tokens, places, past)


def _cut(paths: Sequence[_Path], length: int) -> tuple[tuple[int, ...], tuple[Run, ...]]:
    """Nodes and runs of a row. The row is cut where a run begins and where a later one forks off."""
    cuts = {length}
    for path in paths:
        cuts.add(int(path.places[path.past]))
        if path.past:
            cuts.add(int(path.places[path.past - 1]) + 1)
    bounds = np.array(sorted(cuts))
    lengths = np.diff(bounds)  # the row begins with a run, so the first cut is 0
    node_of = np.repeat(np.arange(len(lengths)), lengths)
    runs = tuple(
        Run(
            start=int(path.places[path.past]),
            end=int(path.places[-1]) + 1,
            past=path.past,
            nodes=tuple(np.unique(node_of[path.places]).tolist()),  # along a path, places ascend
        )
        for path in paths
    )
    return tuple(lengths.tolist()), runs


def _shared(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    width = min(len(one), len(other))
    differs = one[:width] != other[:width]
    return int(differs.argmax()) if differs.any() else width


def _ids(tokens: Tokens) -> Ids:
    return np.asarray(tokens, np.int64)
