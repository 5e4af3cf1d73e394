"""The last layer runs where it is read, in every family, and everywhere where that would change a number."""

import copy
from typing import Any

import pytest
import torch

from prefdata.logprobs import Tree, forward, shared
from prefdata.logprobs.last_layer import LastLayer
from tests.tiny_models import CONFIGS, tiny_model

SHARING = [family for family in CONFIGS if family != "bloom"]
TREES = [Tree([1, 2, 3, 4, 5, 6], [[7, 8, 9], [10, 11]]), Tree([12, 13], [[14]])]
PREDICTORS, TOKENS = 5, 11  # of the row; a branch's last token is in it only to be predicted


def wide(family: str) -> Any:
    config = CONFIGS[family]()
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = 64
    return tiny_model(family, 0, config=config).eval()


def places(model: Any) -> list[int]:
    """How many places each layer's feed-forward part is given in a forward."""
    seen: list[int] = []
    parts = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    hooks = [part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1])) for part in parts]
    try:
        forward(model, TREES)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.parametrize("family", SHARING)
def test_its_feed_forward_part_runs_at_predictors(family: str) -> None:
    model = wide(family)
    assert shared.prepare(model).last is not None
    assert places(model) == [TOKENS, PREDICTORS]


def test_queries_before_the_first_predictor_attend_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide("llama")
    shared.prepare(model)
    counted: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Any, *given: Any, **more: Any) -> Any:
        counted.append(query.shape[2])
        return attend(query, *given, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    forward(model, TREES)
    assert sum(counted) == TOKENS + PREDICTORS


def test_a_part_that_does_not_look_at_one_place_at_a_time_runs_everywhere() -> None:
    model = wide("llama")
    part = model.model.layers[-1].mlp
    original = part.forward
    part.forward = lambda hidden: original(hidden + hidden.cumsum(1))
    assert shared.prepare(model).last is None
    assert shared.prepare(model).reason is not None  # the shared forward itself is wrong there, too
    model = wide("llama")
    part = model.model.layers[-1].mlp
    inner = part.forward
    part.forward = lambda hidden: inner(hidden) + 0.1 * hidden.shape[1]  # knows how many there are
    assert shared.prepare(model).last is None


def test_forwards_without_a_plan_are_left_alone() -> None:
    model = wide("llama")
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = model(ids).logits
        forward(model, TREES)
        assert torch.allclose(model(ids).logits, before, atol=1e-6)


def test_a_part_that_is_called_by_itself_is_left_alone() -> None:
    model = wide("llama")
    part, hidden = model.model.layers[-1].mlp, torch.randn(1, 20, 32)
    expected = part(hidden)
    forward(model, TREES)
    assert torch.equal(part(hidden), expected)
    assert torch.equal(copy.deepcopy(part)(hidden), expected)


def test_a_layer_that_is_the_last_no_longer_runs_everywhere() -> None:
    model = wide("llama")
    forward(model, TREES)
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    model.config.num_hidden_layers = 3
    assert places(model) == [TOKENS, TOKENS, TOKENS]


def test_a_copy_of_a_model_is_watched_once() -> None:
    model = wide("llama")
    expected = forward(model, TREES).logps
    other = copy.deepcopy(model)
    assert shared.prepare(other).last is not None
    assert places(other) == [TOKENS, PREDICTORS]
    for one, again in zip(expected, forward(other, TREES).logps, strict=True):
        assert torch.equal(one, again)
    hooks = other.model.layers[-1]._forward_pre_hooks.values()
    assert sum(isinstance(getattr(hook, "__self__", None), LastLayer) for hook in hooks) == 1
