"""What losses of pairs are worth where policy equals reference, and which way it starts."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from tests.loss_batches import at_margin, random_batch
from trainers.objectives import OBJECTIVES, find

LN2 = math.log(2)
BETA = 0.3


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# name, knobs, values of the row, loss, slope in the log-ratio of chosen, slope in that of rejected
CONSTANTS: list[tuple[str, dict[str, Any], dict[str, float], float, float, float]] = [
    ("dpo", {"beta": BETA}, {}, LN2, -BETA / 2, BETA / 2),
    ("dpo", {"beta": BETA, "label_smoothing": 0.1}, {}, LN2, -BETA * 0.8 / 2, BETA * 0.8 / 2),
    ("robust", {"beta": BETA, "label_noise": 0.1}, {}, LN2, -BETA / 1.6, BETA / 1.6),
    ("aot", {"beta": BETA}, {}, LN2, -BETA / 2, BETA / 2),
    ("dpo_norm", {"beta": BETA}, {}, LN2, -BETA / 2, BETA / 2),
    ("rdpo", {"beta": BETA, "alpha": 0.5}, {"chosen_tokens": 3.0}, softplus(-1), -BETA * sig(-1), BETA * sig(-1)),
    ("ldpo", {"beta": BETA, "alpha": 0.25}, {}, LN2, -0.25 * BETA / 2, 0.25 * BETA / 2),  # of a tail
    ("rso_sigmoid", {"gamma": BETA}, {}, LN2, -BETA / 2, BETA / 2),
    ("rso_hinge", {"gamma": BETA}, {}, 1.0, -BETA, BETA),
    ("ipo", {"tau": BETA}, {}, 1 / (4 * BETA**2), -1 / BETA, 1 / BETA),
    ("ipo_mean", {"tau": BETA}, {}, 1 / (4 * BETA**2), -1 / BETA, 1 / BETA),
    ("psi_po", {"tau": BETA}, {"preference": 1.0}, 1 / (4 * BETA**2), -1 / BETA, 1 / BETA),
    *(
        (
            "odpo",
            {"beta": BETA},
            {"chosen_score": by},
            softplus(math.log(by)),
            -BETA * sig(math.log(by)),
            BETA * sig(math.log(by)),
        )
        for by in (0.5, 1.0, 4.0)
    ),
    ("dpo_nll", {"beta": BETA, "alpha": 0.5}, {"chosen": -2.0, "ref_chosen": -2.0}, LN2 + 1.0, -BETA / 2 - 0.5, BETA / 2),
    ("nca", {"beta": BETA}, {}, 2 * LN2, -BETA / 4, BETA / 4),
    ("bco_pair", {"beta": BETA}, {}, 2 * LN2, -BETA / 2, BETA / 2),
    ("apo_zero", {"beta": BETA}, {}, 1.0, -BETA / 4, BETA / 4),
    ("apo_down", {"beta": BETA}, {}, 1.0, 0.0, BETA / 4),
    ("sppo_hard", {"beta": BETA}, {}, 1 / (2 * BETA**2), -1 / BETA, 1 / BETA),
    ("sppo", {"beta": BETA}, {}, 0.0, 0.0, 0.0),  # equal scores
    ("exo", {"beta": BETA}, {}, 2.761231, -BETA * math.log(999) / 4, BETA * math.log(999) / 4),
    ("discopop", {"beta": BETA}, {}, 0.846574, 0.784264 * BETA, -0.784264 * BETA),  # the wrong way, by design
    # without a reference: where both sides are equally likely
    ("simpo", {"beta": BETA, "gamma": 0.7}, {}, softplus(0.7), -BETA * sig(0.7), BETA * sig(0.7)),
    ("alphapo", {"beta": BETA, "gamma": 0.7}, {}, softplus(0.7), -BETA * sig(0.7), BETA * sig(0.7)),
    ("cpo", {"beta": BETA}, {}, LN2, -BETA / 2 - 1, BETA / 2),
    ("slic", {"delta": 0.7, "lam": 0.25}, {}, 0.7, -1.25, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "knobs", "row", "value", "slope", "slope_of_rejected"), CONSTANTS, ids=lambda each: str(each)[:12]
)
def test_where_policy_equals_reference(
    name: str, knobs: dict[str, Any], row: dict[str, float], value: float, slope: float, slope_of_rejected: float
) -> None:
    one = find(name)
    lp = at_margin(one.batch, row.get("chosen", 0.0), 0.0, **{k: v for k, v in row.items() if k != "chosen"})
    loss = one.loss(lp, **knobs)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    loss.sum().backward()
    assert float(lp.chosen.grad) == pytest.approx(slope, rel=2e-6, abs=1e-12)
    assert float(lp.rejected.grad) == pytest.approx(slope_of_rejected, rel=2e-6, abs=1e-12)


@pytest.mark.parametrize(
    "name", ["dpo", "robust", "odpo", "rdpo", "ipo", "rso_hinge", "rso_sigmoid", "discopop", "exo"]
)
def test_an_identical_pair_has_no_gradient_where_only_the_margin_counts(name: str) -> None:
    one = find(name)
    lp = at_margin(one.batch, 1.3, 1.3, **({"chosen_score": 2.0} if name == "odpo" else {}))
    one.loss(lp).sum().backward()
    assert_opposite(lp)


@pytest.mark.parametrize(("name", "pulls"), [("nca", 1.0), ("bco_pair", 2.0), ("sppo_hard", 0.0)])
def test_an_identical_pair_is_pulled_back_where_rewards_count_by_themselves(name: str, pulls: float) -> None:
    one, a = find(name), 2.0
    lp = at_margin(one.batch, a, a)
    one.loss(lp, beta=0.5).sum().backward()
    both = float(lp.chosen.grad + lp.rejected.grad)
    r = 0.5 * a
    expected = 4 * a if name == "sppo_hard" else 0.5 * (2 * sig(r) - 1)
    assert both == pytest.approx(expected)


def assert_opposite(lp: Any) -> None:
    assert float(lp.chosen.grad + lp.rejected.grad) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("name", sorted(name for name, one in OBJECTIVES.items() if "pairs" in one.batch.sides))
def test_single_precision_gives_the_same_loss(name: str) -> None:
    one = find(name)
    lp = random_batch(one.batch)
    single = replace(
        lp, **{f.name: getattr(lp, f.name).float() for f in fields(lp) if getattr(lp, f.name).is_floating_point()}
    )
    torch.testing.assert_close(one.loss(single).double(), one.loss(lp), rtol=1e-5, atol=1e-5)
