"""The shortcut probe, against data whose answer is known by arithmetic."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from prefdata.report import probe
from prefdata.report.probe import Features

PAIRS = 3000


def phi(z: float) -> float:
    """The normal distribution function."""
    return (1 + math.erf(z / math.sqrt(2))) / 2


def alone(n: int) -> list[str]:
    """Every pair has a prompt of its own."""
    return [f"prompt {number}" for number in range(n)]


def one_feature(mean: float, pairs: int = PAIRS, seed: int = 0) -> Features:
    return Features(["x"], np.random.default_rng(seed).normal(mean, 1, (pairs, 1)))


# -- the AUC itself ------------------------------------------------------------------------------------------------


def test_auc_counts_which_of_two_presentations_scores_higher() -> None:
    """Against the definition: every score against every flipped score, ties counting half."""
    rng = np.random.default_rng(1)
    scores = rng.integers(-3, 5, 200).astype(float)
    wins = [(one > -other) + (one == -other) / 2 for one in scores for other in scores]
    assert probe.auc(scores, np.arange(200)).value == pytest.approx(np.mean(wins))


def test_auc_of_swapped_sides_is_the_rest_to_one() -> None:
    scores = np.random.default_rng(2).normal(0.4, 1, 500)
    there, back = (probe.auc(each, np.arange(500)) for each in (scores, -scores))
    assert there.value + back.value == pytest.approx(1)
    assert there.high + back.low == pytest.approx(1)


@pytest.mark.parametrize("mean", [0.0, 0.2, 0.7])
def test_the_interval_holds_the_truth_as_often_as_it_says(mean: float) -> None:
    """Scores normal around a mean: two draws sum above 0 with probability phi(sqrt(2) mean)."""
    truth, rng = phi(math.sqrt(2) * mean), np.random.default_rng(3)
    found = [probe.auc(rng.normal(mean, 1, 300), np.arange(300)) for _ in range(400)]
    assert 0.92 < np.mean([each.low <= truth <= each.high for each in found]) < 0.98


def test_the_interval_is_wider_when_pairs_come_in_equal_groups() -> None:
    """Each of 100 scores counted ten times, as ten pairs of one prompt: the interval is that of 100."""
    scores = np.random.default_rng(4).normal(0.3, 1, 100)
    once = probe.auc(scores, np.arange(100))
    often = probe.auc(np.repeat(scores, 10), np.repeat(np.arange(100), 10))
    assert often.value == pytest.approx(once.value)
    assert often.high - often.low == pytest.approx(once.high - once.low)


# -- cross-validation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.15, 0.5, 1.2])
def test_a_feature_of_known_strength(mean: float) -> None:
    found = probe.probe(one_feature(mean), alone(PAIRS))
    assert found.auc is not None
    assert found.right is not None
    assert found.auc.value == pytest.approx(phi(math.sqrt(2) * mean), abs=0.025)
    assert found.right == pytest.approx(phi(mean), abs=0.025)


def test_a_feature_that_speaks_for_the_worse_side_tells_as_much() -> None:
    features = one_feature(0.5)
    there = probe.probe(features, alone(PAIRS))
    back = probe.probe(Features(["x"], -features.differences), alone(PAIRS))
    assert there.auc == back.auc
    assert (there.better, back.worse) == (("x",), ("x",))


def test_noise_tells_nothing() -> None:
    features = Features([f"f{n}" for n in range(50)], np.random.default_rng(5).normal(0, 1, (1000, 50)))
    found = probe.probe(features, alone(1000))
    assert found.auc is not None
    assert found.auc.value < 0.56
    assert not found.auc.tells


def test_noise_is_seldom_taken_for_a_shortcut_where_prompts_are_as_few_as_may_be() -> None:
    told = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(0, 1, (probe.FEWEST_GROUPS, 22))
        found = probe.probe(Features([str(n) for n in range(22)], noise), alone(probe.FEWEST_GROUPS))
        assert found.auc is not None
        told += found.auc.tells
    assert told <= 4


def test_what_may_be_chance_tells_nothing() -> None:
    assert probe.Auc(0.7, 0.51, 0.89).tells
    assert not probe.Auc(0.7, 0.5, 0.9).tells


def test_pairs_that_share_an_answer_are_held_out_together() -> None:
    """Random answers, each pair of them under six prompts: known again, unless prompts are joined by what they share."""
    rng = np.random.default_rng(13)
    better, worse = ([text for text in texts(rng, 120) for _ in range(6)] for _ in range(2))
    split = probe.probe(probe.words(better, worse), alone(720))
    grouped = probe.probe(probe.words(better, worse), probe.joined(alone(720), better, worse))
    assert split.auc is not None
    assert grouped.auc is not None
    assert split.auc.value > 0.95
    assert not grouped.auc.tells
    assert grouped.groups == 120


def test_groups_are_joined_by_prompts_and_by_either_side() -> None:
    prompts = ["c", "b", "b", "a", "d", "e"] + [f"z{n}" for n in range(30)]
    more = [f"answer {n}" for n in range(30)]
    better = ["1", "2", "3", "4", "5", "6", *more]
    worse = ["4", "7", "1", "8", "9", "9", *[f"{text} worse" for text in more]]
    found = probe.joined(prompts, better, worse)
    assert found == ["a", "a", "a", "a", "d", "d", *prompts[6:]]
    order = np.random.default_rng(14).permutation(36).tolist()
    shuffled = probe.joined(*([values[at] for at in order] for values in (prompts, better, worse)))
    assert shuffled == [found[at] for at in order]


def test_a_stock_answer_joins_nothing_and_is_found() -> None:
    rng = np.random.default_rng(15)
    better, worse = texts(rng, 200), ["sorry"] * 200
    found = probe.probe(probe.words(better, worse), probe.joined(alone(200), better, worse))
    assert found.groups == 200
    assert found.auc is not None
    assert found.auc.value == 1.0


def test_what_only_names_the_prompt_tells_nothing() -> None:
    """A feature per prompt, with a sign that is the same in the prompt's pairs, would tell all if prompts were split."""
    groups = np.repeat(np.arange(100), 8)
    differences = np.zeros((800, 100))
    differences[np.arange(800), groups] = np.random.default_rng(6).choice([-1, 1], 100)[groups]
    features = Features([str(n) for n in range(100)], differences)
    grouped = probe.probe(features, [str(group) for group in groups])
    split = probe.probe(features, alone(800))
    assert grouped.auc is not None
    assert split.auc is not None
    assert grouped.auc.value == pytest.approx(0.5)
    assert split.auc.value > 0.99


def test_equal_sides_tell_nothing() -> None:
    found = probe.probe(probe.lengths([5] * 100, [5] * 100), alone(100))
    assert found.auc is not None
    assert (found.auc.value, found.right) == (0.5, 0.5)


def test_few_prompts_are_too_few() -> None:
    found = probe.probe(one_feature(3, 400), ["a", "b"] * 200)
    assert (found.auc, found.right, found.groups) == (None, None, 2)


def test_the_order_of_pairs_changes_nothing() -> None:
    features, groups = one_feature(0.3, 600), alone(600)
    order = np.random.default_rng(7).permutation(600)
    shuffled = probe.probe(Features(["x"], features.differences[order]), [groups[at] for at in order])
    found = probe.probe(features, groups)
    assert shuffled.auc is not None
    assert found.auc is not None
    assert shuffled.auc.value == pytest.approx(found.auc.value, abs=1e-9)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_fit_is_where_the_gradient_is_zero(scale: float) -> None:
    """Of sum softplus(-x w) + |w|^2 / 2, which has one minimum."""
    x = np.random.default_rng(8).normal(0.3, scale, (400, 20))
    w = probe.fit(x)
    gradient = w - x.T @ (1 / (1 + np.exp(np.clip(x @ w, -700, 700))))
    assert np.linalg.norm(gradient) <= 1e-3 * np.sqrt(400)


# -- features ------------------------------------------------------------------------------------------------------


def texts(rng: np.random.Generator, pairs: int, *more: str) -> list[str]:
    """Words without digits, capitals or punctuation."""
    words = np.array([chr(97 + number // 20) + chr(97 + number % 20) for number in range(200)])
    return [" ".join([*rng.choice(words, 30), *more]) for _ in range(pairs)]


def test_a_word_that_comes_more_often_on_one_side() -> None:
    """In 80 % of chosen and 20 % of rejected answers: the difference is 1, 0, -1 with .64, .32, .04, and nothing else
    tells. Two draws sum above 0 with .64 (.64 + 2 .32) = .8192, and to 0 with .32^2 + 2 .64 .04 = .1536.
    """
    rng = np.random.default_rng(9)
    sides = [[text + " indeed" * bool(rng.random() < share) for text in texts(rng, PAIRS)] for share in (0.8, 0.2)]
    found = probe.probe(probe.words(*sides), alone(PAIRS))
    assert found.auc is not None
    assert found.auc.value == pytest.approx(0.8192 + 0.1536 / 2, abs=0.03)
    assert found.better[0] == "indeed"
    assert found.auc.tells


FORMATS: dict[str, Callable[[str], str]] = {
    "bullet list": lambda text: f"- {text}\n- {text}",
    "numbered list": lambda text: f"1. {text}\n2. {text}",
    "heading": lambda text: f"## Answer\n{text}",
    "bold": lambda text: f"**{text}**",
    "code block": lambda text: f"```\n{text}\n```",
    "table": lambda text: f"| {text} |\n",
    "paragraphs": lambda text: f"{text}\n\n{text}",
    "ends a sentence": lambda text: f"{text}.",
    "begins with a capital": str.capitalize,
    "emoji": lambda text: f"{text} \N{SMILING FACE WITH SMILING EYES}",
    "capitals": str.upper,
    "exclamation marks": lambda text: f"{text}!!",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_only_one_side_has(name: str) -> None:
    rng = np.random.default_rng(10)
    plain = texts(rng, 300)
    laid_out = [FORMATS[name](text) if rng.random() < 0.9 else text for text in texts(rng, 300)]
    found = probe.probe(probe.formats(laid_out, plain), alone(300))
    assert found.auc is not None
    assert found.auc.tells
    assert name in found.better


def test_format_does_not_see_words_nor_words_the_format() -> None:
    rng = np.random.default_rng(11)
    plain = texts(rng, 400)
    polite = [text + " please" for text in texts(rng, 400)]
    listed = [f"* {text}" for text in texts(rng, 400)]
    blind = [
        probe.probe(features, alone(400)).auc for features in (probe.formats(polite, plain), probe.words(listed, plain))
    ]
    assert all(found is not None and not found.tells for found in blind)


def test_length_alone() -> None:
    rng = np.random.default_rng(12)
    shorter = rng.integers(20, 60, 500)
    found = probe.probe(probe.lengths((shorter * 1.5).astype(int).tolist(), shorter.tolist()), alone(500))
    assert found.auc is not None
    assert found.auc.value == 1.0


def test_scripts_without_spaces_are_read_sign_by_sign() -> None:
    assert probe._words("你好, World") == {"你", "好", "world"}
