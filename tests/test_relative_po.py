"""Relative Preference Optimization, of pairs and of judged rows, and what it does with prompt embeddings."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tests.loss_batches import at_reference, picked, random_batch
from trainers.metrics import measure
from trainers.objectives import dpo, find, relative_po, relative_po_unpaired
from trainers.objectives.batch import EmbeddedJudged, EmbeddedPair, ReferencedPair
from trainers.objectives.log_ratios import log_ratios
from trainers.objectives.prompt_distance import effective_number, nearness

LN2 = math.log(2)
LOSSES: Any = pytest.mark.parametrize("loss", [relative_po, relative_po_unpaired])


def pairs(rows: int = 5, embeddings: Tensor | None = None) -> EmbeddedPair:
    lp: EmbeddedPair = random_batch(EmbeddedPair, rows=rows)
    return lp if embeddings is None else replace(lp, prompt_embedding=embeddings.double())


def contrasts(lp: EmbeddedPair) -> Tensor:
    chosen, rejected = log_ratios(lp)
    return chosen[:, None] - rejected[None, :]


def as_judged(lp: EmbeddedPair) -> EmbeddedJudged:
    """Both sides of every pair as rows of their own."""
    count = len(lp.chosen)
    both = {
        "completion": torch.cat([lp.chosen, lp.rejected]),
        "completion_tokens": torch.cat([lp.chosen_tokens, lp.rejected_tokens]),
        "ref_completion": torch.cat([lp.ref_chosen, lp.ref_rejected]),
    }
    return EmbeddedJudged(
        **both,
        label=torch.arange(2 * count) < count,
        weight=torch.ones(2 * count).double(),
        prompt_embedding=lp.prompt_embedding.repeat(2, 1),
    )


@LOSSES
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_where_policy_equals_reference_it_is_ln2(loss: Any, beta: float) -> None:
    lp = at_reference(random_batch(find(loss.__name__).batch))
    assert loss(lp, beta=beta).mean().item() == pytest.approx(LN2)


def test_one_pair_is_dpo() -> None:
    lp = pairs(1)
    plain = ReferencedPair(lp.chosen, lp.rejected, lp.chosen_tokens, lp.rejected_tokens, lp.ref_chosen, lp.ref_rejected)
    assert_close(relative_po(lp, beta=0.3), dpo(plain, beta=0.3))
    assert_close(relative_po_unpaired(as_judged(lp), beta=0.3).mean(), dpo(plain, beta=0.3)[0])


def test_equal_prompts_are_uniform_with_beta_over_their_number() -> None:
    lp = pairs(5, torch.ones(5, 3))
    expected = F.softplus(-0.3 / 5 * contrasts(lp)).mean()
    assert_close(relative_po(lp, beta=0.3).mean(), expected)


def test_orthogonal_prompts_at_no_temperature_meet_themselves_alone() -> None:
    lp, count = pairs(4, torch.eye(4)), 4
    own = F.softplus(-0.3 * contrasts(lp).diagonal()).sum()
    expected = (own + (count**2 - count) * LN2) / count**2
    assert_close(relative_po(lp, beta=0.3, temperature=1e-3).mean(), expected)


def test_weights_are_a_softmax_of_cosines_whatever_the_embeddings_lengths() -> None:
    rows, columns = random_batch(EmbeddedPair).prompt_embedding[:3], random_batch(EmbeddedPair, seed=1).prompt_embedding
    weights = nearness(rows, columns, 0.5)
    cosine = torch.stack([F.cosine_similarity(row[None], columns) for row in rows])
    expected = (-(1 - cosine) / 0.5).exp()
    assert_close(weights, expected / expected.sum(dim=1, keepdim=True))
    assert_close(nearness(7 * rows, columns / 3, 0.5), weights)
    assert_close(effective_number(torch.full((2, 4), 0.25)), torch.full((2,), 4.0))
    assert_close(effective_number(torch.eye(3)), torch.ones(3))


@LOSSES
def test_permuting_rows_changes_nothing(loss: Any) -> None:
    lp = random_batch(find(loss.__name__).batch, rows=6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert_close(loss(picked(lp, order)), loss(lp)[order])


def test_pairs_taken_apart_give_the_same() -> None:
    lp = pairs(4)
    assert_close(relative_po_unpaired(as_judged(lp), beta=0.3).mean(), relative_po(lp, beta=0.3).mean())


def test_a_row_of_weight_2_counts_as_two_that_share_their_column() -> None:
    """Of the desirable rows, whose contrasts do not compete for weight."""
    lp: EmbeddedJudged = random_batch(EmbeddedJudged, rows=5)
    lp = replace(lp, label=torch.tensor([True, True, False, False, False]), weight=torch.ones(5).double())
    twice = picked(lp, torch.tensor([0, 0, 1, 2, 3, 4]))
    weighed = replace(lp, weight=torch.tensor([2.0, 1, 1, 1, 1]).double())
    assert_close(relative_po_unpaired(weighed).mean(), relative_po_unpaired(twice).mean())


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_gives_a_0_that_is_connected(label: bool) -> None:
    lp: EmbeddedJudged = random_batch(EmbeddedJudged, rows=3)
    completion = lp.completion.clone().requires_grad_()
    losses = relative_po_unpaired(replace(lp, completion=completion, label=torch.full((3,), label)))
    losses.sum().backward()
    assert not losses.detach().any()
    assert completion.grad is not None


def test_diagnostics_tell_true_pairs_from_the_others() -> None:
    lp = pairs(4, torch.eye(4))
    means = measure(lp, find("relative_po"), {"beta": 0.3, "temperature": 1e-3}).means()
    assert means["relative_po/own"] == pytest.approx(0.3 * contrasts(lp).diagonal().mean().item())
    assert means["relative_po/others"] == pytest.approx(0.0)
    assert means["relative_po/negatives"] == pytest.approx(1.0)
