"""How a judge does beside people: closed forms, symmetry, and weights recovered from draws whose weights are known."""

import math

import numpy as np
import pytest

from prefdata.errors import UserError
from prefdata.scorers.calibration import Votes, calibrate, calibration_error, fit, sigmoid


def votes(first: list[float], second: list[float], longer: list[float] | None = None) -> Votes:
    return Votes(np.array(first), np.array(second), np.array(longer or [0.0] * len(first)))


def groups(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def consistent(human: list[float], right: int) -> Votes:
    """A judge that agrees with itself, and with people on the first `right` pairs."""
    vote = [1.0 if number < right else -1.0 for number in range(len(human))]
    return votes(vote, vote)


def test_one_weight_solves_its_equation() -> None:
    """n votes of one, k of them right: n sigmoid(w) - k + 0.1 w = 0, near logit(k / n)."""
    n, k = 1000, 800
    found = calibrate(consistent([1.0] * n, k), np.ones(n), groups(n))
    # chosen is better in all pairs, so a vote for rejected counts as one that is wrong
    assert n * sigmoid(np.array(found.vote_weight)) - k + 0.1 * found.vote_weight == pytest.approx(0, abs=1e-4)
    assert found.vote_weight == pytest.approx(math.log(k / (n - k)), abs=1e-3)
    assert found.length_weight == 0
    assert found.accuracy == pytest.approx(0.8)
    assert found.disagreement == found.position_bias == 0
    assert found.calibration_error < 0.01
    assert found.probability(votes([1, 1, -1, 0], [1, -1, -1, 0])) == pytest.approx([0.8, 0.5, 0.2, 0.5], abs=1e-3)


def test_a_judge_that_takes_what_stands_first() -> None:
    found = calibrate(votes([1.0] * 40, [-1.0] * 40), np.ones(40), groups(40))
    assert (found.accuracy, found.disagreement, found.position_bias) == (0.5, 1.0, 1.0)
    assert found.vote_weight == 0
    last = calibrate(votes([-1.0] * 40, [1.0] * 40), np.ones(40), groups(40))
    assert last.position_bias == -1.0


def drawn(count: int = 20_000) -> tuple[Votes, np.ndarray]:
    rng = np.random.default_rng(5)
    longer = rng.normal(size=count)
    first, second = (rng.choice([-1.0, 0.0, 1.0], count, p=[0.3, 0.1, 0.6]) for _ in range(2))
    found = Votes(first, second, longer)
    chance = sigmoid(found.features() @ np.array([2.0, -0.7]))
    return found, (rng.random(count) < chance).astype(float)


def test_known_weights_come_back_and_their_probabilities_are_calibrated() -> None:
    found, human = drawn()
    fitted = calibrate(found, human, groups(len(human)))
    assert (fitted.vote_weight, fitted.length_weight) == pytest.approx((2.0, -0.7), abs=0.08)
    assert fitted.calibration_error < 0.015


def test_swapping_the_sides_changes_nothing_but_which_probability_it_is() -> None:
    found, human = drawn(400)
    swapped = Votes(-found.rejected_first, -found.chosen_first, -found.longer)
    one, other = (calibrate(each, share, groups(400)) for each, share in ((found, human), (swapped, 1 - human)))
    for name, value in one.as_dict().items():
        assert other.as_dict()[name] == pytest.approx(value, abs=1e-6), name
    assert one.probability(found) + other.probability(swapped) == pytest.approx(np.ones(400), abs=1e-6)


def test_the_length_coefficient_tells_a_judge_of_length_from_one_of_quality() -> None:
    rng = np.random.default_rng(1)
    longer, human = rng.normal(size=2000), rng.integers(0, 2, 2000).astype(float)
    by_length, by_quality = np.sign(longer), 2 * human - 1
    long = calibrate(Votes(by_length, by_length, longer), human, groups(2000))
    good = calibrate(Votes(by_quality, by_quality, longer), human, groups(2000))
    assert long.length_coefficient > 3
    assert abs(good.length_coefficient) < 0.3
    assert abs(long.accuracy - 0.5) < 0.05
    assert good.accuracy == 1.0


def test_calibration_error_is_the_gap() -> None:
    assert calibration_error(np.full(10, 0.85), np.full(10, 0.6)) == pytest.approx(0.25)
    assert calibration_error(np.array([0.95, 0.05]), np.array([1.0, 0.0])) == pytest.approx(0.05)
    # in one bin errors cancel, in two they don't
    assert calibration_error(np.array([0.72, 0.78]), np.array([0.78, 0.72])) == pytest.approx(0.0)
    assert calibration_error(np.array([0.65, 0.75]), np.array([0.75, 0.65])) == pytest.approx(0.1)


def test_a_judge_that_is_never_wrong_has_finite_weights() -> None:
    w = fit(np.ones((50, 1)), np.ones(50))
    assert np.isfinite(w).all()
    assert 50 * (1 - sigmoid(w[0])) == pytest.approx(0.1 * w[0], abs=1e-6)


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="19 pairs"):
        calibrate(consistent([1.0] * 19, 10), np.ones(19), groups(19))
    with pytest.raises(UserError, match="of 1 prompts"):
        calibrate(consistent([1.0] * 50, 10), np.ones(50), ["p"] * 50)


def test_shares_are_of_votes() -> None:
    assert votes([1, 1, 0, -1], [1, -1, 1, -1]).share().tolist() == [1.0, 0.5, 0.75, 0.0]
    assert isinstance(Votes.joined([]).share(), np.ndarray)
