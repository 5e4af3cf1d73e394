"""The row of a tree: every token once, and from every scored token the way back to exactly what comes before it."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefdata.logprobs import Tree
from prefdata.logprobs.layout import Layout, lay_out, pack

# three ids, so that prefixes are shared, branches are equal and one is the beginning of another
IDS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
TREES = st.lists(st.builds(Tree, IDS, st.lists(IDS, min_size=1, max_size=6)), min_size=1, max_size=4)


def prefixes(tree: Tree, branches: list[int] | None = None) -> set[tuple[int, ...]]:
    """Every beginning of trunk + branch that predicts something: what has to run, once each."""
    taken = range(len(tree.branches)) if branches is None else branches
    paths = [(*tree.trunk, *tree.branches[i][:-1]) for i in taken]
    return {path[:length] for path in paths for length in range(1, len(path) + 1)}


def visible(layout: Layout) -> list[list[int]]:
    """For every place of the row the places that it attends to, itself last, as the runs say."""
    starts = np.cumsum([0, *layout.nodes])
    found: list[list[int]] = []
    for run in layout.runs:
        path = [place for node in run.nodes for place in range(starts[node], starts[node + 1])]
        assert path[run.past :] == list(range(run.start, run.end))
        found += [path[: run.past + i + 1] for i in range(run.own)]
    return found


@given(TREES)
@example([Tree([0, 1], [[2], [2, 1], [2, 1, 0], [2, 1], [1]])])
@example([Tree([0], [[1, 1, 2, 2], [1, 1, 0, 0]])])
@settings(max_examples=300, deadline=None)
def test_every_scored_token_is_predicted_from_its_own_path(trees):
    layout = lay_out(trees)
    seen = visible(layout)
    paths = [(tree.trunk, branch) for tree in trees for branch in tree.branches]
    for (trunk, branch), items in zip(paths, layout.branches, strict=True):
        assert layout.targets[items].tolist() == list(branch)
        for i, place in enumerate(layout.predictors[layout.read[items]]):
            assert layout.tokens[seen[place]].tolist() == [*trunk, *branch[:i]]
            assert layout.positions[seen[place]].tolist() == list(range(len(trunk) + i))


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_each_token_runs_once_and_each_prediction_is_read_once(trees):
    layout = lay_out(trees)
    assert len(layout.tokens) == sum(len(prefixes(tree)) for tree in trees)
    assert len(layout.tokens) == len(layout.positions) == sum(layout.nodes) == layout.runs[-1].end
    assert [run.start for run in layout.runs] == [0, *(run.end for run in layout.runs[:-1])]
    scored = list(zip(layout.read.tolist(), layout.targets.tolist(), strict=True))
    assert scored == sorted(set(scored))
    assert layout.predictors.tolist() == sorted(set(layout.predictors.tolist()))
    assert layout.depth == max(len(path) for tree in trees for path in prefixes(tree))


@pytest.mark.parametrize(
    ("branches", "tokens", "runs"),
    [
        ([[3, 4, 5], [3, 4, 6]], 4, 1),  # both tails are one token: nothing runs behind the fork
        ([[3, 4, 5, 9], [3, 4, 6, 9]], 6, 2),
        ([[3, 4], [3, 4]], 3, 1),
        ([[3, 4], [3, 4, 5, 6]], 5, 1),  # one ends within the other
        ([[3, 4, 5], [3, 4, 6, 9], [3, 4, 7, 9]], 6, 2),  # one ends where the others part
        ([[3], [4], [5]], 2, 1),
    ],
)
def test_rows_worked_by_hand(branches, tokens, runs):
    layout = lay_out([Tree([1, 2], branches)])
    assert (len(layout.tokens), len(layout.runs)) == (tokens, runs)


def test_a_pair_is_one_causal_run_and_one_behind_the_prefix():
    layout = lay_out([Tree([1, 2], [[3, 4, 0], [3, 5, 0]])])
    assert layout.tokens.tolist() == [1, 2, 3, 5, 4]
    assert layout.positions.tolist() == [0, 1, 2, 3, 3]
    assert layout.nodes == (3, 1, 1)
    assert [(run.past, run.own, run.nodes) for run in layout.runs] == [(0, 4, (0, 1)), (3, 1, (0, 2))]
    # 3, which both score, is predicted once; the tails' first tokens by the last of what they share
    assert layout.predictors.tolist() == [1, 2, 3, 4]
    assert layout.read.tolist() == [0, 1, 1, 2, 3]
    assert layout.targets.tolist() == [3, 4, 5, 0, 0]


@given(TREES, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_packing_counts_each_token_once(trees, budget):
    batches = pack(trees, budget)
    everything = [(number, branch) for number, tree in enumerate(trees) for branch in range(len(tree.branches))]
    assert sorted(place for batch in batches for place in batch) == everything
    assert [number for batch in batches for number, _ in batch] == [number for number, _ in everything]
    for batch in batches:
        parts = {number: [branch for tree, branch in batch if tree == number] for number, _ in batch}
        tokens = sum(len(prefixes(trees[number], branches)) for number, branches in parts.items())
        first = len(prefixes(trees[batch[0][0]], [batch[0][1]]))
        assert tokens <= (budget if len(parts) > 1 else max(4 * budget, first))
        for number, branches in parts.items():
            whole = len(prefixes(trees[number]))
            assert len(branches) == len(trees[number].branches) or whole > 4 * budget


def test_packing_fills_a_row():
    trees = [Tree([1, 2, 3], [[4, 0], [5, 0]])] * 4  # five tokens each
    assert [len({number for number, _ in batch}) for batch in pack(trees, 10)] == [2, 2]
    assert [len({number for number, _ in batch}) for batch in pack(trees, 14)] == [2, 2]
    assert [len({number for number, _ in batch}) for batch in pack(trees, 15)] == [3, 1]


def test_a_large_tree_is_a_batch_of_its_own_and_a_very_large_one_is_parted():
    small, large = Tree([1], [[2, 0]]), Tree([1, 2], [[3 + i, 0] for i in range(10)])  # 2 and 12 tokens
    assert [len(batch) for batch in pack([small, large, small, small], 6)] == [1, 10, 2]
    assert [len(batch) for batch in pack([small, large, small, small], 2)] == [1, 6, 4, 1, 1]
