"""Losses of pairs beyond DPO and its relatives: identities, limits and stationary points."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from prefdata.errors import UserError
from tests.loss_batches import at_margin, picked, random_batch, random_pairs, swapped
from trainers.metrics import measure
from trainers.objectives import (
    Pair,
    ReferencedPair,
    alphapo,
    aot,
    apo_down,
    apo_zero,
    bco_pair,
    cpo,
    discopop,
    dpo,
    exo,
    find,
    nca,
    rso_hinge,
    rso_sigmoid,
    simpo,
    slic,
    sppo,
    sppo_hard,
)
from trainers.objectives.batch import PairWithMeans, ScoredPair
from trainers.objectives.knobs import resolve
from trainers.objectives.log_ratios import margin


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def curve(loss: Any, x: Tensor, **knobs: Any) -> tuple[Tensor, Tensor]:
    """Loss and slope where the margin of sums is x."""
    d = x.clone().requires_grad_()
    zero, one = torch.zeros_like(x), torch.ones_like(x, dtype=torch.int64)
    value = loss(ReferencedPair(d, zero, one, one, zero, zero), **knobs)
    (slope,) = torch.autograd.grad(value.sum(), d)
    return value.detach(), slope


# -- slic and rso --------------------------------------------------------------------------------------------------


def test_slic_beyond_its_margin_is_likelihood_alone() -> None:
    one = torch.ones(3, dtype=torch.int64)
    lp = Pair(column(-1.0, -2.0, -3.0), column(-9.0, -3.0, -2.5), one, one)  # apart by 8, 1 and -0.5
    assert_close(slic(lp, delta=1.0, lam=0.5), column(0.5, 1.0, 1.5 + 1.5))
    means = measure(lp, find("slic"), {"delta": 1.0, "lam": 0.5}).means()
    assert means["slic/active"] == pytest.approx(1 / 3)
    assert means["slic/hinge"] == pytest.approx(0.5)
    assert means["slic/cross_entropy"] == pytest.approx(2.0)


def test_slic_over_its_margin_is_the_hinge_on_likelihoods() -> None:
    lp, delta = random_batch(Pair), 4.0
    assert_close(slic(lp, delta=delta, lam=0.0) / delta, F.relu(1 - (lp.chosen - lp.rejected) / delta))


def test_rso_is_dpo_under_another_name_and_a_hinge_that_ends() -> None:
    lp = random_pairs()
    assert_close(rso_sigmoid(lp, gamma=0.2), dpo(lp, beta=0.2))
    value, slope = curve(rso_hinge, column(-30.0, 0.0, 19.0, 21.0), gamma=0.05)
    assert_close(value, column(2.5, 1.0, 0.05, 0.0))
    assert_close(slope, column(-0.05, -0.05, -0.05, 0.0))


def test_rso_hinge_without_reference_is_slic() -> None:
    lp = replace(random_pairs(), ref_chosen=torch.zeros(7).double(), ref_rejected=torch.zeros(7).double())
    assert_close(rso_hinge(lp, gamma=0.25), slic(lp, delta=4.0, lam=0.0) / 4)


# -- cpo and alphapo -----------------------------------------------------------------------------------------------


def test_cpo_is_dpo_whose_reference_finds_both_sides_equal() -> None:
    lp = random_pairs()
    even = replace(lp, ref_rejected=lp.ref_chosen)
    for eps in (0.0, 0.2):
        assert_close(cpo(lp, alpha=0.7, label_smoothing=eps), dpo(even, label_smoothing=eps) - 0.7 * lp.chosen)


def test_alphapo_without_a_bend_is_simpo() -> None:
    lp = random_batch(Pair)
    assert_close(alphapo(lp, alpha=0.0), simpo(lp))
    assert_close(alphapo(lp, alpha=1e-6), simpo(lp), atol=1e-5, rtol=1e-5)
    assert_close(alphapo(lp, alpha=-1e-6), simpo(lp), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "grows"), [(0.5, True), (-0.5, False)])
def test_what_is_unlikely_weighs_more_or_less(alpha: float, grows: bool) -> None:
    one = torch.ones(2, dtype=torch.int64)
    both = column(-1.0, -3.0).requires_grad_()
    alphapo(Pair(both, both.detach(), one, one), alpha=alpha).sum().backward()
    likely, unlikely = (-both.grad).tolist()  # type: ignore[operator]
    assert (unlikely > likely) is grows
    assert unlikely / likely == pytest.approx(math.exp(2 * alpha))


# -- discopop ------------------------------------------------------------------------------------------------------


def test_discopop_has_a_dip_and_a_bump() -> None:
    value, slope = curve(discopop, column(-0.1186, 0.0720, 0.0), beta=1.0)
    assert_close(value, column(0.7859, 0.8783, (1 + math.log(2)) / 2), atol=5e-5, rtol=0)
    assert_close(slope[:2], column(0.0, 0.0), atol=5e-3, rtol=0)
    assert slope[2].item() == pytest.approx((1 - math.log(2)) / 0.2 - 0.75)


def test_discopop_far_out() -> None:
    value, slope = curve(discopop, column(-1e4, -60.0, 60.0, 1e4), beta=1.0)
    assert_close(value, column(1e4, 60.0, math.exp(-60), 0.0))
    assert_close(slope, column(-1.0, -1.0, -math.exp(-60), 0.0))


def test_discopop_at_a_high_temperature_is_the_mean_of_its_parts() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    value, _ = curve(discopop, x, beta=1.0, temperature=1e9)
    assert_close(value, (F.softplus(-x) + torch.exp(-x)) / 2)


# -- exo, nca, apo -------------------------------------------------------------------------------------------------


def test_exo_is_a_kl_divergence_that_rests_at_the_odds_of_its_labels() -> None:
    x = column(math.log(999), 0.3, -1e4, 1e4)
    value, slope = curve(exo, x, beta=1.0)
    q = torch.distributions.Bernoulli(probs=torch.sigmoid(x[1:2]))
    label = torch.distributions.Bernoulli(probs=column(0.999))
    assert_close(value[1:2], torch.distributions.kl_divergence(q, label))
    assert_close(value[[0, 2, 3]], column(0.0, -math.log(1e-3), -math.log1p(-1e-3)))
    assert_close(slope[[0, 2, 3]], column(0.0, 0.0, 0.0))


def test_nca_holds_chosen_at_ln2() -> None:
    beta = 0.1
    lp = at_margin(ReferencedPair, math.log(2) / beta, 3.0)
    nca(lp, beta=beta).sum().backward()
    assert abs(float(lp.chosen.grad)) < 1e-15


def test_apo_zero_is_anchored_and_apo_down_pushes_both_down() -> None:
    lp = random_pairs()
    moved = replace(lp, ref_chosen=lp.ref_chosen + 5, ref_rejected=lp.ref_rejected + 5)
    assert not torch.allclose(apo_zero(moved), apo_zero(lp))
    assert_close(dpo(moved), dpo(lp))
    near = at_margin(ReferencedPair, 0.5, 0.0)
    apo_down(near).sum().backward()
    assert float(near.chosen.grad) > 0 and float(near.rejected.grad) > 0  # noqa: PT018


@pytest.mark.parametrize("loss", [apo_zero, apo_down])
def test_apo_saturates(loss: Any) -> None:
    lp = at_margin(ReferencedPair, -1e4, 1e4)
    assert loss(lp).item() == pytest.approx(2.0 if loss is apo_zero else 1.0)
    loss(lp).sum().backward()
    assert float(lp.chosen.grad) == 0


# -- sppo ----------------------------------------------------------------------------------------------------------


def test_sppo_hard_rests_at_its_targets() -> None:
    lp = at_margin(ReferencedPair, 5.0, -5.0)
    assert sppo_hard(lp, beta=0.1).item() == 0.0
    mirrored = replace(lp, chosen=-lp.rejected + 1, rejected=-lp.chosen - 2)
    other = replace(lp, chosen=lp.chosen + 2, rejected=lp.rejected - 1)
    assert_close(sppo_hard(mirrored, beta=0.1), sppo_hard(other, beta=0.1))


def test_sppo_goes_from_ties_to_hard_labels_and_knows_no_order() -> None:
    lp: ScoredPair = random_batch(ScoredPair)
    apart = replace(lp, chosen_score=lp.chosen_score + 60)
    assert_close(sppo(apart, beta=0.1), sppo_hard(lp, beta=0.1))
    tied = replace(lp, chosen_score=lp.rejected_score)
    a, b = lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected
    assert_close(sppo(tied, beta=0.1), a**2 + b**2)
    turned: Any = replace(swapped(lp), chosen_score=lp.rejected_score, rejected_score=lp.chosen_score)
    assert_close(sppo(turned, beta=0.1), sppo(lp, beta=0.1))


# -- aot -----------------------------------------------------------------------------------------------------------


def test_aot_of_one_pair_is_dpo_and_of_many_sorts_both_sides() -> None:
    lp = random_pairs()
    for row in range(7):
        alone = picked(lp, torch.tensor([row]))
        assert_close(aot(alone, beta=0.3), dpo(alone, beta=0.3))
    u = (lp.chosen - lp.rejected).sort().values
    v = (lp.ref_chosen - lp.ref_rejected).sort().values
    assert_close(aot(lp, beta=0.3, label_smoothing=0.1).mean(), (
        -0.9 * F.logsigmoid(0.3 * (u - v)) - 0.1 * F.logsigmoid(-0.3 * (u - v))
    ).mean())  # fmt: skip


def test_aot_does_not_care_which_pair_a_reference_margin_belongs_to() -> None:
    lp = random_pairs()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    mixed = replace(lp, ref_chosen=lp.ref_chosen[order], ref_rejected=lp.ref_rejected[order])
    assert_close(aot(mixed), aot(lp))
    tied = replace(lp, chosen=lp.chosen * 0, rejected=lp.rejected * 0)
    assert_close(aot(tied).mean(), aot(picked(tied, order)).mean())


# -- bco_pair ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", [-8.0, 0.0, 3.0])
def test_bco_pair_bounds_dpo_from_above_whatever_its_shift(middle: float) -> None:
    lp = replace(random_batch(PairWithMeans), chosen_mean=column(middle)[0], rejected_mean=column(middle)[0])
    assert (bco_pair(lp, beta=0.7) > dpo(lp, beta=0.7)).all()


def test_bco_pair_shifts_by_the_midpoint_without_a_gradient() -> None:
    lp = replace(random_batch(PairWithMeans), chosen_mean=column(6.0)[0], rejected_mean=column(-2.0)[0])
    a, b = lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected
    assert_close(bco_pair(lp, beta=0.5), F.softplus(1 - 0.5 * a) + F.softplus(0.5 * b - 1))
    assert_close(bco_pair(lp, beta=0.5, shift="none"), F.softplus(-0.5 * a) + F.softplus(0.5 * b))
    given = random_batch(PairWithMeans)
    for name, pool in PairWithMeans.pools.items():
        side = name.removesuffix("_mean")
        total, count = pool(replace(given, **{side: getattr(given, side).requires_grad_()}))
        assert not total.requires_grad
        assert_close(total / count, (getattr(given, side) - getattr(given, f"ref_{side}")).mean().detach())


# -- knobs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "setting", "said"),
    [
        ("robust", "label_noise=0.5", "labels are coin flips"),
        ("exo", "label_smoothing=0", "must be above 0"),
        ("discopop", "temperature=2", "must be above 0 and at most 1"),
        ("ldpo", "alpha=1.1", "must be at least 0 and at most 1"),
        ("odpo", "offset_of=ratio", "takes one of log, difference"),
        ("psi_po", "psi=log", "takes one of identity, logit"),
        ("nca", "divergence=js", "nca has no knob called 'divergence'"),
        ("slic", "beta=1", "slic has no knob called 'beta'"),
        ("bco_pair", "shift=0.5", "takes one of midpoint, none"),
        ("rdpo", "alpha=-1", "length would be rewarded"),
    ],
)
def test_what_a_loss_does_not_read_or_cannot_use_is_refused(loss: str, setting: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(loss, find(loss).knobs, [setting])
    assert said in str(refused.value)


def test_a_margin_is_that_of_sums() -> None:
    lp = random_pairs()
    assert_close(margin(lp), (lp.chosen - lp.rejected) - (lp.ref_chosen - lp.ref_rejected))
