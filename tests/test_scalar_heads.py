"""Reward models: every branch's score is that of its own tokens alone, however it is computed."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from prefdata.errors import UserError
from prefdata.logprobs import Tree, rewards, scalar, score_rewards, shared
from prefdata.scorers import reward_model
from tests.test_logprobs import random_trees
from tests.tiny_models import CONFIGS, VOCABULARY, save_tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "phi3", "gpt2", "gemma3"]


def classifier(family: str = "llama", labels: int = 1) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIGS[family]()
        config.num_labels = labels
        config.pad_token_id = 0  # an id that stands in texts too
        for key in [key for key in vars(config) if "drop" in key or key.endswith("pdrop")]:
            setattr(config, key, 0.0)
        return AutoModelForSequenceClassification.from_config(config).eval()


def alone(model: Any, trees: list[Tree]) -> Tensor:
    """One branch at a time, nothing padded: the head at the last token."""
    found = []
    for tree in trees:
        for branch in tree.branches:
            ids = torch.tensor([[*tree.trunk, *branch]])
            base = model.base_model if hasattr(model, "base_model") else model.model
            found.append(model.score(base(input_ids=ids).last_hidden_state)[0, -1, 0])
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_each_branch_alone(family: str) -> None:
    model, trees = classifier(family), random_trees(branches=3, longest=6)
    weights = torch.linspace(-1, 2, sum(len(tree.branches) for tree in trees))
    slopes = []
    values = []
    for run in (alone, rewards, scalar.padded_forward):
        model.zero_grad()
        values.append(run(model, trees))
        (values[-1] * weights).sum().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert shared.prepare(model).reason is None
    for value, slope in zip(values[1:], slopes[1:], strict=True):
        torch.testing.assert_close(value, values[0], atol=1e-5, rtol=1e-5)
        assert float((slope - slopes[0]).norm()) <= 1e-5 * float(slopes[0].norm())


# few ids, so that branches share much; 0 is the padding's, at the ends too
IDS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def test_random_trees_whatever_ids_end_their_branches() -> None:
    model = classifier()
    shared.prepare(model)

    @given(st.lists(st.builds(Tree, IDS, st.lists(IDS, min_size=1, max_size=5)), min_size=1, max_size=3))
    @settings(max_examples=60, deadline=None)
    def check(trees: list[Tree]) -> None:
        with torch.no_grad():
            torch.testing.assert_close(rewards(model, trees), alone(model, trees), atol=1e-5, rtol=1e-5)

    check()


def test_scoring_keeps_order_whatever_the_batches() -> None:
    model, trees, told = classifier(), random_trees(20, branches=3), []
    found = score_rewards(model, trees, batch_tokens=40, tell=told.append)
    assert [len(each) for each in found] == [len(tree.branches) for tree in trees]
    with torch.no_grad():
        np.testing.assert_allclose(np.concatenate(found), alone(model, trees), atol=1e-5)
    assert told[-1] == 1


def test_each_token_runs_once() -> None:
    model = classifier()
    shared.prepare(model)
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    rewards(model, [Tree([1] * 10, [[2, 3], [2, 4], [5]])])
    assert seen == [10 + 4]


@pytest.mark.parametrize("model", [classifier(labels=2), torch.nn.Linear(2, 2)])
def test_what_gives_no_single_score_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="one label"):
        rewards(model, [Tree([1], [[2]])])


def test_a_language_model_gets_a_head_that_its_seed_decides_and_none_without(tmp_path: Any) -> None:
    folder = str(save_tiny_model(tmp_path / "model"))
    one, same, other = (reward_model.load(folder, fresh_head_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    with pytest.raises(UserError, match="reward model has one score"):
        reward_model.load(folder)
    one.save_pretrained(tmp_path / "rm")
    again = reward_model.load(str(tmp_path / "rm"))
    trees = [Tree([1, 2], [[VOCABULARY - 1], [3, 4]])]
    with torch.no_grad():
        assert torch.equal(rewards(again, trees), rewards(one, trees))
