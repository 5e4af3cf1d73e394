"""The IPO bandit: our loss code on three answers, against the closed forms and the numbers of long runs."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from examples import ipo_bandit
from examples.ipo_bandit import DATA, LOSSES, TAUS, closed_form, train
from trainers.objectives import ReferencedPair, dpo, rso_hinge


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("tau", TAUS)
def test_closed_forms(tau: float) -> None:
    assert_close(closed_form(DATA["total"], tau), row(2 / (3 * tau), 1 / (3 * tau), 0).softmax(0))
    assert_close(closed_form(DATA["losing"], tau), row(0, 0, -1 / (2 * tau)).softmax(0))
    for nothing in ("cycle", "printed"):
        assert_close(closed_form(DATA[nothing], tau), row(1, 1, 1) / 3)
    a, b, _ = closed_form(["ab"], tau).tolist()
    assert a / b == pytest.approx(math.exp(1 / (2 * tau)))


def test_the_total_order_is_the_population_optimum() -> None:
    # pi in proportion to exp(p(y > mu) / tau), ties with oneself counted half
    assert_close(closed_form(DATA["total"], 0.5), (row(5 / 6, 1 / 2, 1 / 6) / 0.5).softmax(0))


@pytest.mark.parametrize("name", ["total", "losing"])
def test_ipo_comes_to_its_closed_form(name: str) -> None:
    run = train(LOSSES["ipo"], DATA[name], steps=1500)
    for tau, policy in zip(TAUS, run.policy, strict=True):
        assert_close(policy, closed_form(DATA[name], tau), atol=1e-3, rtol=0)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("name", ["cycle", "printed"])
def test_contradictions_and_what_is_not_compared_move_nothing(loss: str, name: str) -> None:
    assert_close(train(LOSSES[loss], DATA[name], steps=50).logits, torch.zeros(1, len(TAUS), 3).double())


def test_an_answer_that_is_never_compared_keeps_its_logit() -> None:
    run = train(LOSSES["ipo"], ["ab"], steps=300)
    assert not run.logits[..., 2].any()


@pytest.mark.slow
def test_dpo_goes_to_certainty_for_every_tau() -> None:
    run = train(LOSSES["dpo"], DATA["total"])
    apart = run.logits[0, :, 0] - run.logits[0, :, 1]
    # the smallest tau is still on its way: 83 nats, at a hundredth a step and less
    assert (torch.tensor(TAUS[1:], dtype=torch.float64) * apart[1:] > 12).all()
    assert apart[0] > 80
    assert_close(run.policy[:, 0], row(1.0, 1.0, 0.999998, 0.957, 0.819), atol=1e-3, rtol=0)


def test_dpo_sends_an_answer_that_never_wins_to_nothing() -> None:
    policy = train(LOSSES["dpo"], DATA["losing"], [0.5, 1.0], steps=1500).policy
    assert (policy[:, 2] < 5e-3).all()  # and falling
    assert_close(policy[:, 0], policy[:, 1], atol=1e-3, rtol=0)


def test_ipo_lets_go_of_a_as_tau_grows() -> None:
    of_a = [float(closed_form(DATA["total"], tau)[0]) for tau in TAUS]
    assert of_a == pytest.approx([0.96437, 0.5627, 0.44844, 0.35579, 0.34450], abs=1e-4)
    of_c = [float(closed_form(DATA["losing"], tau)[2]) for tau in (0.5, 1.0, 5.0)]
    assert of_c == pytest.approx([0.1554, 0.2327, 0.3115], abs=1e-4)


def test_smoothed_dpo_stops_at_the_odds_of_its_labels_on_a_tree() -> None:
    def smoothed(lp: ReferencedPair, tau: Tensor) -> Tensor:
        return dpo(lp, beta=tau, label_smoothing=0.1)  # type: ignore[arg-type]

    a, b, c = train(smoothed, ["ab", "bc"], [1.0], steps=1500).logits[0, 0].tolist()
    assert (a - b, b - c) == pytest.approx((math.log(9), math.log(9)), abs=1e-3)


def test_a_hinge_stops_once_it_is_reached() -> None:
    def hinged(lp: ReferencedPair, tau: Tensor) -> Tensor:
        return rso_hinge(lp, gamma=tau)  # type: ignore[arg-type]

    a, b, _ = train(hinged, ["ab"], [0.5], steps=600).logits[0, 0].tolist()
    assert 2.0 <= a - b < 2.3  # Adam's momentum carries it a little further


def test_the_example_draws_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ipo_bandit.main(["--out", str(tmp_path / "bandit.html"), "--steps", "40", "--seeds", "2"])
    page = (tmp_path / "bandit.html").read_text()
    assert page.count("<svg") == 4 * len(TAUS)
    assert "answer a" in page
    assert "http" not in page
    said = capsys.readouterr().out
    assert said.count("optimum") == 2 * len(TAUS)
