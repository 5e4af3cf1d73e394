"""What the mathematics promises of every loss, and the closed forms of each."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prefdata.errors import UserError
from tests.loss_batches import picked, policy_fields, random_batch, random_pairs
from trainers.metrics import measure, rewards
from trainers.objectives import (
    OBJECTIVES,
    Demonstration,
    Objective,
    Pair,
    Range,
    ReferencedPair,
    dpo,
    find,
    ipo,
    ipo_mean,
    orpo,
    sft,
    simpo,
)
from trainers.objectives.knobs import Knob, resolve
from trainers.objectives.orpo import log1mexp, log_odds, odds_ratio

LN2 = math.log(2)


def defaults(loss: str) -> dict[str, Any]:
    """The knobs as they are unless set."""
    return {name: knob.default for name, knob in find(loss).knobs.items()}


EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def pair(chosen: float, rejected: float, tokens: int = 1) -> Pair:
    count = torch.tensor([tokens])
    return Pair(torch.tensor([chosen]).double(), torch.tensor([rejected]).double(), count, count)


def referenced(h: float) -> ReferencedPair:
    """A pair whose log-ratios differ by h."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    return ReferencedPair(zero + h, zero, one, one, zero, zero)


# -- the table that every loss goes through ------------------------------------------------------------------------


@EVERY
def test_one_finite_loss_per_row(objective: Objective) -> None:
    losses = objective.loss(random_batch(objective.batch, rows=5))
    assert losses.shape == (5,)
    assert torch.isfinite(losses).all()


@EVERY
def test_row_order_changes_nothing(objective: Objective) -> None:
    batch = random_batch(objective.batch)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert_close(objective.loss(picked(batch, order)), objective.loss(batch)[order])


@EVERY
def test_a_row_depends_on_its_neighbours_only_where_that_is_said(objective: Objective) -> None:
    batch = random_batch(objective.batch)
    alone = objective.loss(picked(batch, torch.tensor([2])))
    assert torch.allclose(alone, objective.loss(batch)[2:3]) is not objective.across_rows


@EVERY
def test_gradients_are_those_of_finite_differences(objective: Objective) -> None:
    batch = random_batch(objective.batch, rows=3)
    names = policy_fields(batch)

    def loss(*values: Tensor) -> Tensor:
        return objective.loss(replace(batch, **dict(zip(names, values, strict=True))))

    assert torch.autograd.gradcheck(loss, tuple(getattr(batch, name).clone().requires_grad_() for name in names))


@EVERY
@pytest.mark.parametrize("low", [-1e4, -1e-12, 0.0])
@pytest.mark.parametrize("high", [-1e4, -1e-12, 0.0])
def test_extreme_log_probs_stay_finite_in_value_and_gradient(objective: Objective, low: float, high: float) -> None:
    batch = random_batch(objective.batch, rows=1, dtype=torch.float32)
    names = policy_fields(batch)
    values = {
        name: torch.full_like(getattr(batch, name), value).requires_grad_()
        for name, value in zip(names, [high, low] * 2, strict=False)
    }
    values |= {f.name: torch.ones_like(getattr(batch, f.name)) for f in fields(batch) if f.name.endswith("_tokens")}
    loss = objective.loss(replace(batch, **values)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for name in names if (grad := values[name].grad) is not None)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
@pytest.mark.parametrize(
    "objective", [one for one in OBJECTIVES.values() if "divergence" in one.knobs], ids=lambda one: one.name
)
def test_extreme_log_probs_stay_finite_under_every_divergence(objective: Objective, divergence: str) -> None:
    batch = random_batch(objective.batch, rows=3, dtype=torch.float32)
    for low, high in [(-1e4, 1e4), (1e4, -1e4), (0.0, 0.0), (1e4, 1e4)]:
        sums = {name: torch.full((3,), high if "rejected" in name else low) for name in policy_fields(batch)}
        sums = {name: value.requires_grad_() for name, value in sums.items()}
        losses = objective.loss(replace(batch, **sums), divergence=divergence, divergence_alpha=0.25)
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert all(torch.isfinite(value.grad).all() for value in sums.values() if value.grad is not None)


@EVERY
def test_every_loss_says_what_it_is(objective: Objective) -> None:
    assert objective.loss.__doc__
    assert objective.source
    assert objective.batch.reads
    assert 0 < objective.lr < 1e-3
    for knob in objective.knobs.values():
        assert knob.range is None or knob.range.holds(knob.default)


@EVERY
def test_metrics_of_any_batch_are_finite_and_leave_no_graph(objective: Objective) -> None:
    batch = random_batch(objective.batch)
    knobs = defaults(objective.name)
    batch = replace(batch, **{name: getattr(batch, name).requires_grad_() for name in policy_fields(batch)})
    means = measure(batch, objective, knobs).means()
    assert ("nll_loss" in means) is (objective.batch.head == "logits")
    assert all(math.isfinite(value) for value in means.values())
    assert all(getattr(batch, name).grad is None for name in policy_fields(batch))


# -- sft -----------------------------------------------------------------------------------------------------------


def test_sft_is_the_negative_log_likelihood_and_counts_tokens() -> None:
    uniform = Demonstration(torch.tensor([3.0, 5.0]) * -math.log(512), torch.tensor([3, 5]))
    assert_close(sft(uniform).sum() / uniform.completion_tokens.sum(), torch.tensor(math.log(512)))
    assert find("sft").reduction == "tokens"


# -- dpo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.49])
def test_dpo_is_ln2_where_policy_equals_reference(beta: float, eps: float) -> None:
    lp = random_pairs()
    same = replace(lp, ref_chosen=lp.chosen, ref_rejected=lp.rejected)
    assert_close(dpo(same, beta=beta, label_smoothing=eps), torch.full((7,), LN2, dtype=torch.float64))


def test_swapping_the_pair_adds_exactly_the_margin() -> None:
    # -log s(-m) - (-log s(m)) = m, so a swapped label costs beta * h more
    lp, beta = random_pairs(), 0.3
    swapped = replace(
        lp, chosen=lp.rejected, rejected=lp.chosen, ref_chosen=lp.ref_rejected, ref_rejected=lp.ref_chosen
    )
    h = (lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected)
    assert_close(dpo(swapped, beta=beta) - dpo(lp, beta=beta), beta * h)


def test_a_constant_of_the_prompt_added_to_both_references_cancels() -> None:
    lp = random_pairs()
    constant = torch.linspace(-50, 50, 7, dtype=torch.float64)
    assert_close(
        dpo(replace(lp, ref_chosen=lp.ref_chosen + constant, ref_rejected=lp.ref_rejected + constant)), dpo(lp)
    )


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_starts_with_slope_minus_half_beta(beta: float) -> None:
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    lp = replace(referenced(0.0), chosen=h)
    dpo(lp, beta=beta).sum().backward()
    assert_close(h.grad, torch.tensor([-beta / 2], dtype=torch.float64))


def test_smoothed_dpo_is_least_where_the_odds_are_those_of_the_labels() -> None:
    # the minimum is the binary entropy, at beta h = ln((1 - eps) / eps)
    beta, eps = 0.1, 0.1
    best = math.log((1 - eps) / eps)
    assert best == pytest.approx(2.1972, abs=5e-5)
    h = torch.tensor([best / beta], dtype=torch.float64, requires_grad=True)
    loss = dpo(replace(referenced(0.0), chosen=h), beta=beta, label_smoothing=eps)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.325083, abs=5e-7)
    assert h.grad is not None
    assert abs(h.grad.item()) < 1e-12


def test_smoothing_mixes_a_pair_with_its_swap() -> None:
    lp, eps = random_pairs(), 0.2
    swapped = replace(
        lp, chosen=lp.rejected, rejected=lp.chosen, ref_chosen=lp.ref_rejected, ref_rejected=lp.ref_chosen
    )
    assert_close(dpo(lp, label_smoothing=eps), (1 - eps) * dpo(lp) + eps * dpo(swapped))


# -- ipo -----------------------------------------------------------------------------------------------------------


def margin_and_slope(loss: Any, d: float, tau: float) -> tuple[float, float]:
    """Loss and its derivative at a margin of d, with one token on both sides."""
    chosen = torch.tensor([d], dtype=torch.float64, requires_grad=True)
    value = loss(replace(referenced(0.0), chosen=chosen), tau=tau)
    value.sum().backward()
    assert chosen.grad is not None
    return value.item(), chosen.grad.item()


IPOS = pytest.mark.parametrize("loss", [ipo, ipo_mean])
TAUS = pytest.mark.parametrize("tau", [0.01, 0.1, 1.0, 5.0])


@IPOS
@TAUS
def test_ipo_rests_at_its_target_and_costs_more_on_either_side(loss: Any, tau: float) -> None:
    target = 1 / (2 * tau)
    assert margin_and_slope(loss, target, tau) == (0.0, 0.0)
    further, pulled_back = margin_and_slope(loss, target + 2, tau)
    nearer, pushed = margin_and_slope(loss, target - 2, tau)
    assert (further, nearer) == pytest.approx((4.0, 4.0))
    assert (pulled_back, pushed) == pytest.approx((4.0, -4.0))


@IPOS
@TAUS
def test_ipo_where_policy_equals_reference(loss: Any, tau: float) -> None:
    lp = random_pairs()
    same = replace(lp, ref_chosen=lp.chosen, ref_rejected=lp.rejected)
    assert_close(loss(same, tau=tau), torch.full((7,), 1 / (4 * tau**2), dtype=torch.float64))
    assert margin_and_slope(loss, 0.0, tau)[1] == pytest.approx(-1 / tau)


@TAUS
def test_ipo_times_tau_is_a_linear_reward_and_a_quadratic_penalty(tau: float) -> None:
    lp = random_pairs()
    d = (lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected)
    assert_close(tau * ipo(lp, tau=tau), tau * d**2 - d + 1 / (4 * tau))


@TAUS
def test_ipo_is_both_orders_of_the_pair_averaged_up_to_a_constant(tau: float) -> None:
    lp = random_pairs()
    d = (lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected)
    constant = torch.full((7,), 1 / (4 * tau**2), dtype=torch.float64)
    assert_close(0.5 * ((d - 1 / tau) ** 2 + d**2) - ipo(lp, tau=tau), constant)


@pytest.mark.parametrize("n", [1, 4, 50])
def test_ipo_mean_with_equal_lengths_is_ipo_at_another_tau(n: int) -> None:
    lp, tau = random_pairs(), 0.3
    count = torch.full((7,), n)
    lp = replace(lp, chosen_tokens=count, rejected_tokens=count)
    assert_close(ipo_mean(lp, tau=tau), ipo(lp, tau=tau / n) / n**2)


def test_only_ipo_mean_forgets_how_long_an_answer_is() -> None:
    lp = random_pairs()
    # every token of chosen twice; rejected as it was
    longer = replace(lp, chosen=2 * lp.chosen, ref_chosen=2 * lp.ref_chosen, chosen_tokens=2 * lp.chosen_tokens)
    assert_close(ipo_mean(longer), ipo_mean(lp))
    assert not torch.allclose(ipo(longer), ipo(lp))
    assert_close(ipo(replace(lp, chosen_tokens=2 * lp.chosen_tokens)), ipo(lp))


@TAUS
def test_a_total_order_of_three_has_its_closed_form(tau: float) -> None:
    # least squares on a > b, b > c, a > c: both steps are 1 / (3 tau), so a is not sent to certainty
    scores = torch.tensor([2 / (3 * tau), 1 / (3 * tau), 0.0], dtype=torch.float64, requires_grad=True)
    policy = scores.log_softmax(0)
    winners, losers = torch.tensor([0, 1, 0]), torch.tensor([1, 2, 2])
    uniform, one = torch.full((3,), -math.log(3), dtype=torch.float64), torch.ones(3)
    ipo(ReferencedPair(policy[winners], policy[losers], one, one, uniform, uniform), tau=tau).sum().backward()
    assert_close(scores.grad, torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)


@IPOS
@pytest.mark.parametrize("d", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ipo_of_an_extreme_margin(loss: Any, d: float, dtype: torch.dtype) -> None:
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1)
    chosen = torch.tensor([d], dtype=dtype, requires_grad=True)
    value = loss(ReferencedPair(chosen, zero, one, one, zero, zero), tau=0.1)
    value.sum().backward()
    assert_close(value, torch.tensor([(d - 5) ** 2], dtype=dtype))
    assert_close(chosen.grad, torch.tensor([2 * (d - 5)], dtype=dtype))


@pytest.mark.parametrize("name", ["ipo", "ipo_mean"])
def test_ipo_says_how_far_its_margins_are_from_the_target(name: str) -> None:
    one, zero = torch.ones(2), torch.zeros(2, dtype=torch.float64)
    lp = ReferencedPair(torch.tensor([3.0, 8.0]).double(), zero, 2 * one, one, zero, zero)
    means = measure(lp, find(name), {**defaults(name), "tau": 0.1}).means()  # target 5
    margins = [3.0, 8.0] if name == "ipo" else [1.5, 4.0]
    assert means["ipo/margin"] == pytest.approx(sum(margins) / 2)
    assert means["ipo/abs_margin_max"] == pytest.approx(max(abs(d) for d in margins))
    assert means["ipo/distance_to_target"] == pytest.approx(sum(abs(d - 5) for d in margins) / 2)
    assert means["ipo/beyond_target"] == sum(d > 5 for d in margins) / 2


# -- simpo ---------------------------------------------------------------------------------------------------------


def simpo_at(margin: float, *, beta: float, gamma: float) -> Tensor:
    """The loss where the means differ by a margin."""
    return simpo(pair(-3.0 + 3 * margin, -3.0, tokens=3), beta=beta, gamma=gamma)


@pytest.mark.parametrize("beta", [0.1, 2.5, 10.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_equal_means_leave_simpo_its_margin(beta: float, gamma: float) -> None:
    expected = torch.tensor([math.log1p(math.exp(gamma))], dtype=torch.float64)
    # the same mean over two lengths
    lp = replace(pair(-3.0, -1.0, tokens=3), rejected_tokens=torch.tensor([1]))
    assert_close(simpo(lp, beta=beta, gamma=gamma), expected)
    if gamma == 0:
        assert_close(expected, torch.tensor([LN2], dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 4, 50])
def test_simpo_is_dpo_with_equal_reference_sums_and_lengths(n: int) -> None:
    lp, beta = random_pairs(), 2.5
    count = torch.full((7,), n)
    lp = replace(lp, ref_rejected=lp.ref_chosen, chosen_tokens=count, rejected_tokens=count)
    assert_close(simpo(lp, beta=beta, gamma=0.0), dpo(lp, beta=beta / n))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_every_token_twice_leaves_simpo_as_it_is(side: str) -> None:
    lp = random_batch(Pair)
    longer = replace(lp, **{name: 2 * getattr(lp, name) for name in (side, f"{side}_tokens")})
    assert_close(simpo(longer), simpo(lp))


@pytest.mark.parametrize("margin", [-2.0, 0.0, 0.7])
def test_raising_gamma_shifts_the_means_apart(margin: float) -> None:
    beta, gamma = 2.5, 1.2
    expected = simpo_at(margin - gamma / beta, beta=beta, gamma=0.0)
    assert_close(simpo_at(margin, beta=beta, gamma=gamma), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("margin", "loss", "slope"), [(-1e4, 2e4 + 1, -2.0), (1e4, 0.0, 0.0)])
def test_simpo_of_an_extreme_margin(margin: float, loss: float, slope: float, dtype: torch.dtype) -> None:
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1)
    chosen = torch.tensor([margin], dtype=dtype, requires_grad=True)
    value = simpo(Pair(chosen, zero, one, one), beta=2.0, gamma=1.0)
    value.sum().backward()
    assert_close(value, torch.tensor([loss], dtype=dtype))
    assert_close(chosen.grad, torch.tensor([slope], dtype=dtype))


def test_simpo_says_how_many_pairs_are_beyond_its_margin() -> None:
    one = torch.ones(4)
    lp = Pair(torch.tensor([-1.0, -1.0, -1.0, -1.0]), torch.tensor([-0.5, -1.4, -1.6, -9.0]), one, one)
    means = measure(lp, find("simpo"), {"beta": 2.0, "gamma": 1.0}).means()
    assert means["simpo/beyond_margin"] == 0.5  # apart by 0.6 and 8 nats per token, where 0.5 is asked
    assert means["rewards/margins"] == pytest.approx(2 * (-0.5 + 0.4 + 0.6 + 8) / 4)


@pytest.mark.parametrize(
    ("loss", "setting", "said"),
    [
        ("ipo", "tau=0", "must be above 0: the target is 1 / (2 tau)"),
        ("ipo_mean", "tau=-1", "must be above 0"),
        ("ipo", "beta=0.1", "its knobs are tau=0.1 (above 0)"),
        ("simpo", "beta=0", "must be above 0"),
        ("simpo", "gamma=-0.5", "must be at least 0"),
    ],
)
def test_knobs_of_ipo_and_simpo_have_ranges(loss: str, setting: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(loss, find(loss).knobs, [setting])
    assert said in str(refused.value)


# -- orpo ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "odds"), [(-0.7, -0.013659), (-2.0, -1.854587), (-LN2, 0.0)])
def test_log_odds_of_known_means(mean: float, odds: float) -> None:
    assert log_odds(torch.tensor([mean], dtype=torch.float64)).item() == pytest.approx(odds, abs=5e-7)


def test_log1mexp_is_exact_at_both_ends() -> None:
    u = torch.tensor([-1e-9, -1e-3, -LN2, -1.0, -40.0], dtype=torch.float64, requires_grad=True)
    value = log1mexp(u)
    expected = [math.log(1e-9), math.log(-math.expm1(-1e-3)), -LN2, math.log1p(-math.exp(-1)), -math.exp(-40)]
    assert_close(value, torch.tensor(expected, dtype=torch.float64))
    value.sum().backward()
    assert torch.isfinite(u.grad).all()


def test_log1mexp_has_no_nan_gradient_next_to_certainty_in_float32() -> None:
    u = torch.tensor([-1e-9, -1e-6, -100.0], requires_grad=True)
    log1mexp(u).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_equal_means_leave_the_likelihood_and_lam_ln2() -> None:
    same = pair(-3.0, -3.0, tokens=3)
    assert_close(orpo(same, lam=0.25), torch.tensor([1 + 0.25 * LN2], dtype=torch.float64))


def test_without_its_ratio_orpo_is_the_mean_likelihood_of_a_sequence() -> None:
    lp = random_batch(Pair)
    assert_close(orpo(lp, lam=0.0), -lp.chosen / lp.chosen_tokens)


def test_unlikely_pairs_are_ranked_by_their_means() -> None:
    # for m << 0 the odds are the probability: SimPO with beta 1 and no margin
    lp = pair(-30.0, -31.0)
    ratio = orpo(lp, lam=1.0) + lp.chosen
    assert_close(ratio, -torch.nn.functional.logsigmoid(torch.ones(1, dtype=torch.float64)))


def test_gradient_of_the_ratio_term() -> None:
    # -sig(-D) (grad mw / (1 - exp mw) - grad ml / (1 - exp ml))
    chosen = torch.tensor([-0.4], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.3], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1)
    (orpo(Pair(chosen, rejected, one, one), lam=1.0) + chosen).sum().backward()
    d = (log_odds(chosen) - log_odds(rejected)).detach()
    weight = -torch.sigmoid(-d)
    assert_close(chosen.grad, weight / (1 - chosen.detach().exp()))
    assert_close(rejected.grad, -weight / (1 - rejected.detach().exp()))


def test_odds_ratio_is_what_the_loss_uses() -> None:
    lp = random_batch(Pair)
    assert_close(orpo(lp, lam=0.3), -lp.chosen / lp.chosen_tokens - 0.3 * odds_ratio(lp)["log_odds_ratio"])


# -- rewards -------------------------------------------------------------------------------------------------------


def test_rewards_of_a_referenced_pair_are_scaled_log_ratios() -> None:
    lp = random_pairs()
    chosen, rejected = rewards(lp, {"beta": 0.3})
    assert_close(dpo(lp, beta=0.3), -torch.nn.functional.logsigmoid(chosen - rejected))


def test_ties_are_counted_apart() -> None:
    lp = random_pairs()
    same = replace(lp, ref_chosen=lp.chosen, ref_rejected=lp.rejected)
    means = measure(same, find("dpo"), {"beta": 0.1}).means()
    assert means["rewards/ties"] == 1.0
    assert means["rewards/accuracies"] == 0.0
    assert means["rewards/margins"] == 0.0


# -- knobs and names -----------------------------------------------------------------------------------------------


def test_knobs_come_from_the_signature() -> None:
    knobs = find("dpo").knobs
    defaults = {"beta": 0.1, "label_smoothing": 0.0, "divergence": "reverse_kl", "divergence_alpha": 0.5}
    assert {name: knob.default for name, knob in knobs.items()} == defaults
    assert resolve("dpo", knobs, ["beta=0.2"]) == {**defaults, "beta": 0.2}
    assert find("sft").knobs == {}
    only = resolve("dpo", knobs, ["divergence_alpha=0.3", "divergence=alpha"])  # in any order
    assert only == {**defaults, "divergence": "alpha", "divergence_alpha": 0.3}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("gamma=1", "its knobs are beta=0.1 (above 0), label_smoothing=0.0 (at least 0 and below 0.5)"),
        ("beta=0", "must be above 0: at 0 the loss is the same whatever the policy does"),
        ("beta=-1", "must be above 0"),
        ("beta=big", "must be a number"),
        ("beta=nan", "must be finite"),
        ("label_smoothing=0.5", "at least 0 and below 0.5"),
        ("divergence=kl", "dpo takes one of reverse_kl, forward_kl, js, alpha for divergence"),
        ("divergence_alpha=0.3", "dpo reads divergence_alpha only with divergence=alpha, and divergence is reverse_kl"),
        ("beta", "NAME=VALUE"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_with_the_reason(setting: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve("dpo", find("dpo").knobs, [setting])
    assert said in str(refused.value)


def test_knobs_of_other_types() -> None:
    assert Knob("k", int, 3, Range(at_least=1)).read("5", "loss") == 5
    assert Knob("k", bool, False).read("True", "loss") is True
    assert Knob("k", str, "a", choices=("a", "b")).read("b", "loss") == "b"
    for knob, text in [
        (Knob("k", int, 3), "2.5"),
        (Knob("k", bool, False), "1"),
        (Knob("k", str, "a", choices=("a",)), "c"),
    ]:
        with pytest.raises(UserError):
            knob.read(text, "loss")


def test_rpo_is_refused_with_its_three_meanings() -> None:
    with pytest.raises(UserError) as refused:
        find("rpo")
    for meaning in ("likelihood term", "Relative Preference Optimization", "Reward-aware", "orpo"):
        assert meaning in str(refused.value)


def test_an_unknown_loss_names_what_there_is() -> None:
    with pytest.raises(UserError, match=", ".join(sorted(OBJECTIVES))):
        find("dop")
