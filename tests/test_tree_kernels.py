"""The kernels for GPUs, as far as a CPU can tell: which pairs of tokens they let see each other, and their values."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefdata.errors import UserError
from prefdata.logprobs import Tree, flex, layout, shared
from prefdata.logprobs.attention import KERNELS, TreePlan
from prefdata.logprobs.layout import Layout, lay_out
from tests.test_logprobs import random_trees
from tests.tiny_models import tiny_model

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
TREES = st.lists(st.builds(Tree, IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=4)
CPU = torch.device("cpu")


def seen_along_paths(row: Layout) -> np.ndarray[Any, Any]:
    """(L, L) bool, queries x keys, from the paths of the runs alone."""
    seen = np.zeros((len(row.tokens),) * 2, bool)
    bounds = np.cumsum([0, *row.nodes])
    for run in row.runs:
        path = np.concatenate([np.arange(bounds[node], bounds[node + 1]) for node in run.nodes])
        for place, query in enumerate(range(run.start, run.end)):
            seen[query, path[: run.past + place + 1]] = True
    return seen


@given(TREES)
@settings(max_examples=150, deadline=None)
def test_the_end_of_each_token_says_who_sees_it(trees: list[Tree]) -> None:
    row = lay_out(trees)
    query, key = np.indices((len(row.tokens),) * 2)
    assert np.array_equal(seen_along_paths(row), (key <= query) & (query < row.ends[None, :]))


@given(TREES, st.sampled_from([2, 4, 8]))
@settings(max_examples=150, deadline=None)
def test_blocks_are_those_of_the_whole_square(trees: list[Tree], size: int) -> None:
    row = lay_out(trees)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK", size)
        full, partial = flex.blocks(row)
    length = len(row.tokens)
    count = -(-length // size)
    seen = np.zeros((count * size,) * 2, bool)
    seen[:length, :length] = seen_along_paths(row)
    by_block = seen.reshape(count, size, count, size).sum(axis=(1, 3))
    assert np.array_equal(full, by_block == size * size)
    assert np.array_equal(partial, (by_block > 0) & (by_block < size * size))


def heads(row: Layout, *, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    length = len(row.tokens)
    return tuple(torch.randn(1, count, length, 16, generator=draw) for count in (4, key_heads, key_heads))  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_flex_attention_gives_what_split_does(
    monkeypatch: pytest.MonkeyPatch, key_heads: int, cap: float | None
) -> None:
    monkeypatch.setattr(flex, "BLOCK", 16)
    row = lay_out(random_trees(12, longest=60, branches=4))
    query, key, value = heads(row, key_heads=key_heads)
    plan = TreePlan(row, CPU, "flex")
    found = KERNELS["flex"](plan, query, key, value, 0.3, cap)
    torch.testing.assert_close(found, KERNELS["split"](plan, query, key, value, 0.3, cap), atol=1e-5, rtol=1e-5)
    full, partial = flex.blocks(row)
    assert full.any()  # else nothing is left out of the asking
    assert np.array_equal(plan.blocks.to_dense()[0, 0].bool().numpy(), full | partial)


def sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What the flash kernel promises, one sequence at a time: causal, aligned at the end."""
    assert window_size == (-1, 0)
    assert most_queries == int(query_ends.diff().max())
    assert most_keys == int(key_ends.diff().max())
    parts = []
    for number in range(len(query_ends) - 1):
        own = slice(query_ends[number], query_ends[number + 1])
        all_ = slice(key_ends[number], key_ends[number + 1])
        q, k, v = (each.transpose(0, 1)[None] for each in (query[own], key[all_], value[all_]))
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        part = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_sequences_of_many_lengths_give_what_split_does(monkeypatch: pytest.MonkeyPatch, key_heads: int) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", sequences)
    row = lay_out(random_trees(12, branches=4))
    query, key, value = heads(row, key_heads=key_heads)
    plan = TreePlan(row, CPU, "varlen")
    found = KERNELS["varlen"](plan, query, key, value, 0.3, None)
    torch.testing.assert_close(found, KERNELS["split"](plan, query, key, value, 0.3, None), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="soft-cap"):
        KERNELS["varlen"](plan, query, key, value, 0.3, 5.0)


def test_a_kernel_that_fails_or_errs_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fails(*_: Any) -> Tensor:
        tried.append("fails")
        raise RuntimeError("no such kernel here")

    def errs(plan: TreePlan, *given: Any) -> Tensor:
        tried.append("errs")
        return KERNELS["split"](plan, *given) * 1.3

    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, given: Tensor) -> Tensor:
            return given.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * 1.3

    def errs_backwards(plan: TreePlan, *given: Any) -> Tensor:
        tried.append("backwards")
        return WrongBackward.apply(KERNELS["split"](plan, *given))  # type: ignore[no-any-return, no-untyped-call]

    for name, kernel in (("fails", fails), ("errs", errs), ("backwards", errs_backwards)):
        monkeypatch.setitem(KERNELS, name, kernel)
    monkeypatch.setattr(shared, "_ANYWHERE", ("fails", "errs", "backwards", "split"))
    sharing = shared.prepare(tiny_model())
    assert sharing.reason is None
    assert sharing.kernel == "split"
    assert list(dict.fromkeys(tried)) == ["fails", "errs", "backwards"]
    monkeypatch.setattr(shared, "_ANYWHERE", ("errs",))
    assert "differs" in (shared.prepare(tiny_model()).reason or "")


def test_a_kernel_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared.kernels("cuda") == ("flex", "split")
    assert shared.kernels("cpu") == ("split",)
    monkeypatch.setenv(shared.KERNEL_SETTING, "varlen")
    assert shared.kernels("cuda") == ("varlen",)
    monkeypatch.setenv(shared.KERNEL_SETTING, "dense")
    with pytest.raises(UserError, match=r"dense.*split, flex, varlen"):
        shared.kernels("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kernel", ["split", "flex", "varlen"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_every_kernel_trains_on_a_gpu(kernel: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared.KERNEL_SETTING, kernel)
    model = tiny_model(family).to("cuda", torch.bfloat16)
    sharing = shared.prepare(model)
    assert (sharing.reason, sharing.kernel) == (None, kernel)
    trees = random_trees(20, branches=4)
    torch.cat(shared.forward(model, trees).logps).sum().backward()
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in model.parameters() if weight.grad is not None)


def test_layouts_made_before_are_the_same() -> None:
    model, trees = tiny_model(), random_trees()
    shared.prepare(model)
    made = layout.lay_out(trees)
    for one, other in zip(
        shared.forward(model, trees, layout=made).logps, shared.forward(model, trees).logps, strict=True
    ):
        assert torch.equal(one, other)
