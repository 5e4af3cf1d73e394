"""The forward: closed forms, a slow loop as oracle, and invariance under everything that must not matter."""

import math
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from prefdata.errors import UserError
from prefdata.logprobs import Tree, batches, forward, head, padded, score, shared
from prefdata.logprobs.batches import pack
from tests.tiny_models import FAMILIES, POSITIONS, VOCABULARY, tiny_model

# the package's attribute of that name is the function
score_module = sys.modules["prefdata.logprobs.score"]


def random_trees(count: int = 6, seed: int = 0, longest: int = 14, branches: int = 2) -> list[Tree]:
    rng = np.random.default_rng(seed)

    def ids() -> list[int]:
        return [int(i) for i in rng.integers(VOCABULARY, size=rng.integers(1, longest))]

    return [Tree(ids(), [ids() for _ in range(rng.integers(1, branches + 1))]) for _ in range(count)]


def slow_logps(model: Any, tree: Tree) -> list[torch.Tensor]:
    """One sequence at a time, nothing padded, the whole softmax in float64."""
    found = []
    for branch in tree.branches:
        logits = model(input_ids=torch.tensor([[*tree.trunk, *branch]])).logits[0].double()
        probs = logits.softmax(-1)
        start = len(tree.trunk)
        found.append(torch.stack([probs[start + i - 1, token].log() for i, token in enumerate(branch)]))
    return found


class Bigram(torch.nn.Module):
    """The plainest causal model: the next token's logits are a table row of the last one. It takes nothing optional."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(table)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(weight=self.table)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def test_uniform_logits_give_minus_log_vocabulary():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    scores = forward(model, random_trees(), extras=True)
    assert scores.entropies is not None
    for logps, entropies in zip(scores.logps, scores.entropies, strict=True):
        torch.testing.assert_close(logps, torch.full_like(logps, -math.log(VOCABULARY)))
        torch.testing.assert_close(entropies, torch.full_like(entropies, math.log(VOCABULARY)))


def test_a_bigram_model_by_hand():
    # p(next | 0) = (1/2, 1/4, 1/4), p(next | 1) = (1, 0, 0), p(next | 2) = (1/3, 1/3, 1/3)
    model = Bigram(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).log())
    scores = forward(model, [Tree([2, 0], [[0, 1, 0], [2]])], extras=True)
    assert scores.entropies is not None
    assert scores.hits is not None
    torch.testing.assert_close(scores.logps[0], torch.tensor([0.5, 0.25, 1.0]).log())
    torch.testing.assert_close(scores.logps[1], torch.tensor([0.25]).log())
    torch.testing.assert_close(scores.entropies[0], torch.tensor([1.5, 1.5, 0.0]) * math.log(2))
    torch.testing.assert_close(scores.hits[0], torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_slow_loop_over_sequences(family):
    model, trees = tiny_model(family), random_trees()
    expected = [logps for tree in trees for logps in slow_logps(model, tree)]
    found = forward(model, trees).logps
    assert all(logps.dtype == torch.float32 for logps in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_company_and_order_do_not_matter(family):
    model, trees = tiny_model(family), random_trees()
    together = score(model, trees)
    alone = [score(model, [tree])[0] for tree in trees]
    backwards = score(model, trees[::-1], batch_tokens=30)[::-1]
    for one, other, third in zip(together, alone, backwards, strict=True):
        for a, b, c in zip(one, other, third, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
            np.testing.assert_allclose(a, c, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_separate_sequences(family):
    model, trees = tiny_model(family), random_trees()
    weights = torch.linspace(-1, 1, sum(len(branch) for tree in trees for branch in tree.branches))
    model.zero_grad()
    (torch.cat(forward(model, trees).logps) * weights).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    (torch.cat([logps for tree in trees for logps in slow_logps(model, tree)]) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        scale = max(1.0, float(parameter.grad.abs().max()))
        torch.testing.assert_close(found[name] / scale, parameter.grad / scale, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("run", [padded.forward, shared.forward], ids=["padded", "shared"])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, run):
    trees, found = random_trees(), []
    for rows in (2**10, 7, 1):
        monkeypatch.setattr(padded, "_CHUNK_LOGITS", rows * VOCABULARY)
        monkeypatch.setattr(head, "_CHUNK_ROWS", rows)
        model = tiny_model()
        shared.prepare(model)
        scores = run(model, trees, extras=True)
        torch.cat(scores.logps).square().sum().backward()
        assert scores.entropies is not None
        assert scores.hits is not None
        parts = [torch.cat(part) for part in (scores.logps, scores.entropies, scores.hits)]
        grad = model.lm_head.weight.grad
        found.append([*parts, grad / grad.abs().max()])  # its small entries are sums of large ones, in another order
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_no_float32_copy_of_all_logits(monkeypatch):
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                    self.seen = max(self.seen, tensor.numel())
            return result

    trees = [Tree([1], [[2] * 60]) for _ in range(4)]
    monkeypatch.setattr(padded, "_CHUNK_LOGITS", 4 * VOCABULARY)
    model = tiny_model().to(torch.bfloat16)
    with Largest() as largest:
        torch.cat(padded.forward(model, trees).logps).sum().backward()
    assert 0 < largest.seen < 4 * 60 * VOCABULARY


class Wrapper(torch.nn.Module):
    """Stands between caller and model as DDP does."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper], ids=["bare", "wrapped"])
def test_the_head_runs_on_positions_that_are_scored_in_some_row(wrap):
    model, trees = tiny_model(), [Tree([1] * 20, [[2] * 5, [3] * 4]), Tree([1] * 22, [[2]])]
    seen: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    padded.forward(wrap(model), trees)
    assert seen == [5]


def test_entropies_and_hits_equal_a_slow_loop():
    model, trees = tiny_model(), random_trees()
    scores = forward(model, trees, extras=True)
    assert scores.entropies is not None
    assert scores.hits is not None
    assert not any(tensor.requires_grad for tensor in (*scores.entropies, *scores.hits))
    paths = [(tree.trunk, branch) for tree in trees for branch in tree.branches]
    for (trunk, branch), entropies, hits in zip(paths, scores.entropies, scores.hits, strict=True):
        logits = model(input_ids=torch.tensor([[*trunk, *branch]])).logits[0, len(trunk) - 1 : -1]
        probs = logits.double().softmax(-1)
        torch.testing.assert_close(entropies.double(), -(probs * probs.log()).sum(-1), atol=1e-5, rtol=1e-5)
        assert hits.tolist() == [float(p.argmax() == token) for p, token in zip(probs, branch, strict=True)]


def test_more_trunk_is_the_same_as_less_branch():
    # the chain rule: moving tokens from branch to trunk leaves the log-probs of the rest
    model, ids = tiny_model(), [int(i) for i in np.random.default_rng(3).integers(VOCABULARY, size=20)]
    whole = forward(model, [Tree(ids[:1], [ids[1:]])]).logps[0]
    for cut in (2, 9, 19):
        torch.testing.assert_close(forward(model, [Tree(ids[:cut], [ids[cut:]])]).logps[0], whole[cut - 1 :])


def test_arrays_and_lists_of_ids_are_the_same():
    model = tiny_model()
    arrays = Tree(np.array([1, 2, 3], np.int32), [np.array([4, 5], np.int32)])
    torch.testing.assert_close(forward(model, [arrays]).logps, forward(model, [Tree([1, 2, 3], [[4, 5]])]).logps)


def test_nothing_in_nothing_out():
    assert forward(tiny_model(), []).logps == ()
    assert score(tiny_model(), []) == []


@pytest.mark.parametrize(
    ("trunk", "branches", "word"), [([], [[1]], "trunk"), ([1], [[1], []], "empty"), ([1], [], "no branch")]
)
def test_a_tree_without_something_to_predict_is_refused(trunk, branches, word):
    with pytest.raises(ValueError, match=word):
        Tree(trunk, branches)


def test_score_keeps_the_shape_and_leaves_the_model_as_it_was():
    model, trees = tiny_model("gpt2").train(), random_trees()
    found = score(model, trees, batch_tokens=40)
    assert model.training
    assert [[len(logps) for logps in row] for row in found] == [[len(b) for b in tree.branches] for tree in trees]
    assert all(logps.dtype == np.float32 for row in found for logps in row)
    assert all(parameter.grad is None for parameter in model.parameters())
    again = score(model, trees, batch_tokens=40)  # GPT-2 has dropout: only eval mode repeats itself
    assert all(
        np.array_equal(a, b) for one, two in zip(found, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_score_tells_how_much_is_done():
    told: list[float] = []
    score(tiny_model(), random_trees(20), batch_tokens=30, tell=told.append)
    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == 1


def test_score_refuses_what_the_model_cannot_take():
    with pytest.raises(UserError, match=f"takes {POSITIONS}"):
        score(tiny_model(), [Tree([1] * 60, [[1] * 5])])
    assert len(score(tiny_model(), [Tree([1] * 60, [[1] * 4])])[0][0]) == 4
    for token in (VOCABULARY, -1):
        with pytest.raises(UserError, match="another model"):
            score(tiny_model(), [Tree([1], [[token]])])


def test_a_result_that_is_not_finite_comes_back_as_it_is():
    table = torch.zeros(3, 3)
    table[1] = torch.nan
    (found,) = score(Bigram(table), [Tree([0], [[1, 2, 0]])])
    assert np.isfinite(found[0]).tolist() == [True, False, True]


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch):
    model, trees = tiny_model(), random_trees(20)
    expected, sizes = score(model, trees), []

    def cramped(model, trees, **_):
        sizes.append(sum(len(tree.branches) for tree in trees))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("no room")
        return forward(model, trees)

    monkeypatch.setattr(score_module, "forward", cramped)
    found = score(model, trees)
    for one, two in zip(expected, found, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    too_large = [size for size in sizes if size > 3]
    assert too_large == sorted(too_large, reverse=True)
    assert len(too_large) < 5
    monkeypatch.setattr(score_module, "forward", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        score(model, trees)


def test_what_was_halved_grows_again_and_less_often_each_time_in_vain(monkeypatch):
    monkeypatch.setattr(batches, "_CALM", 4)
    room, tried = 4, []

    def run(batch):
        nonlocal room
        tried.append(len(batch))
        room = 8 if len(tried) > 60 else room
        if len(batch) > room:
            raise torch.OutOfMemoryError
        return batch

    work = [list(range(start, start + 8)) for start in range(0, 8 * 60, 8)]
    done = [item for part in batches.run_halving(work, run) for item in part]
    assert done == list(range(8 * 60))
    vain = [place for place, size in enumerate(tried) if size == 8 and place < 60]
    assert vain[0] == 0
    gaps = np.diff(vain)
    assert len(gaps) >= 3
    assert all(later > gap for gap, later in pairwise(gaps))
    assert tried[-1] == 8


@given(st.lists(st.integers(1, 50)), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_packing_keeps_order_and_budget(widths, budget):
    packed = pack(widths, budget)
    assert [i for batch in packed for i in batch] == list(range(len(widths)))
    for batch in packed:
        assert batch
        assert len(batch) == 1 or len(batch) * max(widths[i] for i in batch) <= budget
