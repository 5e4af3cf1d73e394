"""DPO's relatives: what each is where its option is off, at policy == reference, and in closed form elsewhere."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tests.loss_batches import at_margin, at_reference, random_batch, random_pairs, swapped
from trainers.metrics import measure
from trainers.objectives import (
    ReferencedPair,
    dpo,
    dpo_nll,
    dpo_nll_token,
    dpo_norm,
    find,
    ipo,
    ldpo,
    odpo,
    psi_po,
    rdpo,
    robust,
)
from trainers.objectives.batch import PartialPair, PreferredPair, ReferencedPairOfStep, ScoredPair
from trainers.objectives.log_ratios import counted, margin

LN2 = math.log(2)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def lasting(value: float, rows: int = 7) -> Tensor:
    return torch.full((rows,), value, dtype=torch.float64)


def slope(loss: Any, kind: type[Any], d: float = 0.0, /, *, row: dict[str, float] | None = None, **knobs: Any) -> float:
    """Of the loss in the margin."""
    lp = at_margin(kind, d, 0.0, **(row or {}))
    loss(lp, **knobs).sum().backward()
    return float(lp.chosen.grad)


# -- robust --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.45])
def test_robust_is_ln2_at_the_reference_and_dpo_without_noise(noise: float) -> None:
    lp = random_pairs()
    assert_close(robust(at_reference(lp), label_noise=noise), lasting(LN2))
    assert_close(robust(lp, label_noise=0.0), dpo(lp))
    assert slope(robust, ReferencedPair, beta=0.3, label_noise=noise) == pytest.approx(-0.3 / (2 * (1 - 2 * noise)))


def test_robust_under_noise_is_dpo_under_true_labels_in_the_mean() -> None:
    lp, noise = random_pairs(), 0.2
    mean = (1 - noise) * robust(lp, label_noise=noise) + noise * robust(swapped(lp), label_noise=noise)
    assert_close(mean, dpo(lp), atol=1e-10, rtol=0)


def test_robust_has_no_lower_bound() -> None:
    lp = at_margin(ReferencedPair, 50.0, 0.0)
    assert robust(lp, beta=1.0, label_noise=0.1).item() == pytest.approx(-6.25)
    assert slope(robust, ReferencedPair, 500.0, beta=1.0, label_noise=0.1) == pytest.approx(-0.125)


# -- dpo_nll -------------------------------------------------------------------------------------------------------


def test_dpo_nll_without_likelihood_is_dpo_and_at_the_reference_adds_its_mean() -> None:
    lp = random_pairs()
    assert_close(dpo_nll(lp, alpha=0.0), dpo(lp))
    expected = LN2 - 0.5 * lp.chosen / lp.chosen_tokens
    assert_close(dpo_nll(at_reference(lp), alpha=0.5), expected)


def test_an_identical_pair_leaves_the_likelihood_gradient_alone() -> None:
    lp = random_pairs()
    chosen = lp.chosen.clone().requires_grad_()
    same = replace(lp, chosen=chosen, rejected=chosen, rejected_tokens=lp.chosen_tokens, ref_rejected=lp.ref_chosen)
    dpo_nll(same, alpha=0.5).sum().backward()
    assert_close(chosen.grad, -0.5 / lp.chosen_tokens.double())


def test_token_means_weigh_every_chosen_token_the_same() -> None:
    lp = random_batch(ReferencedPairOfStep)
    lp = replace(lp, mean_chosen_tokens=lp.chosen_tokens.double().mean())
    loss = dpo_nll_token(lp, alpha=0.3).mean()
    assert_close(loss, dpo(lp).mean() - 0.3 * lp.chosen.sum() / lp.chosen_tokens.sum())
    even = replace(lp, chosen_tokens=torch.full((7,), 5), mean_chosen_tokens=torch.tensor(5.0).double())
    assert_close(dpo_nll_token(even, alpha=0.3), dpo_nll(even, alpha=0.3))


# -- odpo ----------------------------------------------------------------------------------------------------------


def test_odpo_without_offset_is_dpo_and_at_the_reference_is_that_of_its_offset() -> None:
    lp: ScoredPair = random_batch(ScoredPair)
    assert_close(odpo(lp, alpha=0.0), dpo(lp))
    delta = 0.5 * (lp.chosen_score - lp.rejected_score).log()
    assert_close(odpo(at_reference(lp), alpha=0.5), torch.nn.functional.softplus(delta))
    delta = 0.5 * (lp.chosen_score - lp.rejected_score)
    assert_close(odpo(at_reference(lp), alpha=0.5, offset_of="difference"), torch.nn.functional.softplus(delta))


def test_an_offset_moves_dpo() -> None:
    lp, beta = random_batch(ScoredPair), 0.3
    delta = (lp.chosen_score - lp.rejected_score).log()
    moved = replace(lp, chosen=lp.chosen - delta / beta)
    assert_close(odpo(lp, beta=beta), dpo(moved, beta=beta))
    expected = -beta / (1 + math.exp(-math.log(4.0)))
    assert slope(odpo, ScoredPair, row={"chosen_score": 4.0}, beta=beta) == pytest.approx(expected)


def test_a_difference_below_one_asks_for_less_than_nothing_and_ties_stay_finite() -> None:
    near = at_margin(ScoredPair, 0.0, 0.0, chosen_score=0.5)
    assert odpo(near).item() == pytest.approx(softplus(math.log(0.5)))
    inverted = at_margin(ScoredPair, 0.0, 0.0, rejected_score=1.0)
    assert odpo(inverted).item() == pytest.approx(1e-6, rel=1e-3)  # NaN in published code; refused when data is read
    tied = at_margin(ScoredPair, 0.0, 0.0)
    odpo(tied).sum().backward()
    assert torch.isfinite(tied.chosen.grad).all()
    assert odpo(tied, offset_of="difference").item() == pytest.approx(LN2)


def test_odpo_says_how_many_pairs_are_beyond_their_offset() -> None:
    lp = random_batch(ScoredPair, rows=2)
    lp = replace(
        lp,
        chosen=lp.ref_chosen + torch.tensor([9.0, 1.0]),
        rejected=lp.ref_rejected,
        chosen_score=torch.tensor([3.0, 3.0]).double(),
        rejected_score=torch.tensor([1.0, 1.0]).double(),
    )
    knobs = {name: knob.default for name, knob in find("odpo").knobs.items()}
    means = measure(lp, find("odpo"), knobs).means()
    assert means["odpo/offset"] == pytest.approx(LN2)
    assert means["odpo/beyond_offset"] == 0.5  # 0.9 is beyond ln 2, 0.1 is not


# -- rdpo ----------------------------------------------------------------------------------------------------------


def test_rdpo_prices_length_in_the_precision_of_the_log_probs() -> None:
    lp = random_pairs()
    h = (lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected)
    logit = 0.1 * h + 0.05 * (lp.chosen_tokens - lp.rejected_tokens).double()
    assert_close(rdpo(lp, beta=0.1, alpha=0.05), F.softplus(-logit), atol=1e-12, rtol=0)


def test_rdpo_without_a_price_or_with_equal_lengths_is_dpo() -> None:
    lp = random_pairs()
    assert_close(rdpo(lp, alpha=0.0), dpo(lp))
    even = replace(lp, rejected_tokens=lp.chosen_tokens)
    assert_close(rdpo(even, alpha=0.7), dpo(even))


@pytest.mark.parametrize(("longer", "weight"), [(1, 0.2689), (-1, 0.7311)])
def test_a_longer_chosen_is_learnt_from_less(longer: int, weight: float) -> None:
    lp = at_margin(ReferencedPair, 0.0, 0.0)
    lp = replace(lp, chosen_tokens=torch.tensor([5 + longer]), rejected_tokens=torch.tensor([5]))
    loss = rdpo(lp, beta=0.1, alpha=1.0)
    loss.sum().backward()
    assert float(lp.chosen.grad) == pytest.approx(-0.1 * weight, abs=1e-5)
    assert loss.item() == pytest.approx(softplus(-longer))


# -- ldpo ----------------------------------------------------------------------------------------------------------


def test_ldpo_counts_tails_in_full_or_not_at_all() -> None:
    lp: PartialPair = random_batch(PartialPair)
    assert_close(ldpo(lp, alpha=1.0), dpo(lp))
    heads = replace(
        lp,
        chosen=lp.chosen_head,
        rejected=lp.rejected_head,
        ref_chosen=lp.ref_chosen_head,
        ref_rejected=lp.ref_rejected_head,
    )
    assert_close(ldpo(lp, alpha=0.0), dpo(heads))


def test_ldpo_weighs_a_tail_in_policy_and_reference_alike() -> None:
    lp: PartialPair = random_batch(PartialPair)
    a = (lp.chosen_head - lp.ref_chosen_head) + 0.3 * (
        (lp.chosen - lp.chosen_head) - (lp.ref_chosen - lp.ref_chosen_head)
    )
    b = (lp.rejected_head - lp.ref_rejected_head) + 0.3 * (
        (lp.rejected - lp.rejected_head) - (lp.ref_rejected - lp.ref_rejected_head)
    )
    assert_close(ldpo(lp, beta=0.4, alpha=0.3), torch.nn.functional.softplus(-0.4 * (a - b)))
    assert_close(ldpo(at_reference(lp), alpha=0.3), lasting(LN2))


# -- dpo_norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 50])
def test_dpo_norm_with_equal_lengths_is_dpo_at_another_beta(n: int) -> None:
    count = torch.full((7,), n)
    lp = replace(random_pairs(), chosen_tokens=count, rejected_tokens=count)
    assert_close(dpo_norm(lp, beta=5.0), dpo(lp, beta=5.0 / n))
    assert_close(dpo_norm(at_reference(random_pairs())), lasting(LN2))


# -- psi_po --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_psi_po_of_certain_preferences_is_ipo(tau: float) -> None:
    lp: PreferredPair = random_batch(PreferredPair)
    sure = replace(lp, preference=torch.ones(7, dtype=torch.float64))
    assert_close(psi_po(sure, tau=tau), ipo(lp, tau=tau))


@pytest.mark.parametrize(
    ("psi", "target"),
    [("identity", lambda p, tau: (2 * p - 1) / (2 * tau)), ("logit", lambda p, tau: math.log(p / (1 - p)) / tau)],
)
def test_psi_po_rests_at_what_the_preference_asks_for(psi: Any, target: Any) -> None:
    tau = 0.3
    for p in (0.5, 0.7, 0.95):
        row = {"preference": p}
        assert slope(psi_po, PreferredPair, target(p, tau), row=row, tau=tau, psi=psi) == pytest.approx(0, abs=1e-10)
        assert psi_po(at_margin(PreferredPair, target(p, tau), 0.0, **row), tau=tau, psi=psi).item() < 1e-20


def test_the_logit_target_is_the_optimum_of_dpo_with_soft_labels() -> None:
    # p sp(-tau d) + (1 - p) sp(tau d) is least at tau d = logit(p)
    p, tau = 0.8, 0.25
    assert slope(dpo, ReferencedPair, math.log(p / (1 - p)) / tau, beta=tau, label_smoothing=1 - p) == pytest.approx(
        0, abs=1e-12
    )


def test_soft_labels_average_both_orders_up_to_a_constant() -> None:
    # p (d - t)^2 + (1 - p) (d + t)^2 = (d - (2 p - 1) t)^2 + 4 p (1 - p) t^2
    lp, tau = random_batch(PreferredPair), 0.3
    p = lp.preference
    both = p * ipo(lp, tau=tau) + (1 - p) * ipo(swapped(lp), tau=tau)
    assert_close(both - psi_po(lp, tau=tau), p * (1 - p) / tau**2)


# -- divergences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "alpha", "steepness"),
    [("reverse_kl", 0.5, 1.0), ("forward_kl", 0.5, 1.0), ("js", 0.5, 0.5), ("alpha", 0.3, 1.0)],
)
def test_a_divergence_starts_at_nothing_with_its_own_slope(divergence: Any, alpha: float, steepness: float) -> None:
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = counted(z, divergence, alpha)
    value.sum().backward()
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    assert z.grad is not None
    assert z.grad.item() == pytest.approx(steepness)
    lp = at_reference(random_pairs())
    assert_close(dpo(lp, divergence=divergence, divergence_alpha=alpha), lasting(LN2))


def test_alpha_goes_from_the_forward_to_the_reverse_kl() -> None:
    z = torch.linspace(-8, 8, 33, dtype=torch.float64)
    assert_close(counted(z, "alpha", 0.0), counted(z, "forward_kl", 0.5))
    assert_close(counted(z, "forward_kl", 0.5), 1 - torch.exp(-z))
    assert_close(counted(z, "alpha", 1.0), z)
    assert_close(counted(z, "alpha", 1 - 1e-9), z, rtol=1e-6, atol=1e-6)


def test_jensen_shannon_bounds_what_a_side_can_gain() -> None:
    z = torch.tensor([-50.0, 50.0], dtype=torch.float64)
    assert_close(counted(z, "js", 0.5), torch.tensor([LN2 - 50, LN2], dtype=torch.float64))


def test_a_divergence_counts_each_side_by_itself() -> None:
    lp = random_pairs()
    a, b = lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected
    assert_close(margin(lp, "forward_kl"), torch.exp(-b) - torch.exp(-a))
