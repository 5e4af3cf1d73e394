"""Proposed knobs: closed forms on rows where everything can be worked out by hand, and refusals."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefdata.errors import UserError
from prefdata.versions import Version
from tests.tiny_world import pair_rows, publish, table
from tests.trainer_world import World
from trainers import suggest
from trainers.contract import MissingColumns
from trainers.objectives import OBJECTIVES, find
from trainers.suggestions import ALPHAPO_ALPHA, OF_JUDGED, OF_PAIRS, JudgedFacts, PairFacts


def pairs(tokens: tuple[int, int] = (20, 30), ref: tuple[float, float] = (-20.0, -45.0), rows: int = 8) -> PairFacts:
    """Equal rows: 1 nat per token of chosen, 1.5 of rejected, unless said otherwise."""
    return PairFacts(*(np.full(rows, float(value)) for value in (*tokens, *ref)))


def proposed(loss: str, facts: Any) -> dict[str, float]:
    rule: Any = OF_PAIRS.get(loss) or OF_JUDGED[loss]
    return {each.knob: each.value for each in rule(facts)}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo", {"beta": 0.6}),  # 50 tokens move 5 nats apart, and 3 / 5
        ("ipo", {"tau": 0.1}),  # 1 / (2 * 5)
        ("ipo_mean", {"tau": 2.5}),  # 0.1 nats per token on both sides
        ("dpo_norm", {"beta": 15.0}),
        ("nca", {"beta": 1.2}),  # 25 tokens of a side move 2.5 nats
        ("rso_hinge", {"gamma": 0.2}),
        ("rso_sigmoid", {"gamma": 0.6}),
        ("slic", {"delta": 30.0}),  # begins at 25 nats, and 5 more
        ("sppo_hard", {"beta": 0.2}),  # 2.5 nats a side
        ("rdpo", {"beta": 0.6, "alpha": 0.1}),  # lengths differ by 10
        ("dpo_nll", {"beta": 0.6, "alpha": 0.69}),  # log 2 against 1 nat per token
        ("cpo", {"beta": 0.12, "alpha": 0.69}),  # 3 / 25
        ("discopop", {"beta": 0.6}),
        # margins of 0.5 nats per token are the ratio; nothing is far from it, so beta is the highest
        ("simpo", {"beta": 10.0, "gamma": 5.0}),
    ],
)
def test_equal_rows_give_closed_forms(loss: str, expected: dict[str, float]) -> None:
    assert proposed(loss, pairs()) == pytest.approx(expected)


def test_alphapo_is_simpo_on_bent_margins() -> None:
    """Means of -1 and -1.5 are 4 (exp(0.375) - exp(0.25)) apart, those of -1 and -2.5 so far that the ratio is 0.8."""
    assert 4 * (math.exp(0.375) - math.exp(0.25)) == pytest.approx(0.684, abs=1e-3)
    assert proposed("alphapo", pairs()) == pytest.approx({"beta": 10.0, "gamma": 6.8})
    far = 4 * (math.exp(0.625) - math.exp(0.25)) - 0.8
    beta = pytest.approx(3 / far, rel=0.05)
    assert proposed("alphapo", pairs(ref=(-20.0, -75.0))) == {"beta": beta, "gamma": pytest.approx(2.4 / far, rel=0.05)}
    assert find("alphapo").knobs["alpha"].default == ALPHAPO_ALPHA


def test_offsets_of_odpo_are_within_reach() -> None:
    near = replace(pairs(), chosen_score=np.full(8, 3.0), rejected_score=np.full(8, 1.0))
    assert proposed("odpo", near) == pytest.approx({"beta": 0.6, "alpha": 1.0})  # log 2 is below 3
    far = replace(near, chosen_score=np.full(8, 1 + math.exp(6)))
    assert proposed("odpo", far) == pytest.approx({"beta": 0.6, "alpha": 0.5})  # 3 / log exp(6)
    assert proposed("odpo", pairs()) == pytest.approx({"beta": 0.6})


def test_odds_ratio_is_a_tenth_of_the_likelihood() -> None:
    lo = [m - math.log(1 - math.exp(m)) for m in (-1.0, -1.5)]
    term = math.log(1 + math.exp(lo[1] - lo[0]))
    assert proposed("orpo", pairs())["lam"] == pytest.approx(0.1 / term, rel=0.05)


def test_ipo_per_token_is_ipo_times_the_tokens() -> None:
    """ipo_mean(d; tau) = ipo(d; tau / n) / n^2 where both sides have n tokens, so proposals must be n apart."""
    facts = pairs((50, 50), (-50.0, -60.0))
    assert proposed("ipo_mean", facts)["tau"] == pytest.approx(50 * proposed("ipo", facts)["tau"])


def test_pairs_that_the_reference_ranks_wrongly_ask_for_room() -> None:
    """A quarter of the pairs is 30 nats the wrong way: that is more than the 5 that length gives."""
    wrong = PairFacts(
        *(np.repeat(np.array(values), [6, 2]) for values in ((20.0, 20), (30.0, 30), (-20.0, -60), (-45.0, -30)))
    )
    assert proposed("dpo", wrong) == {"beta": 0.1}
    assert proposed("ipo", wrong) == {"tau": pytest.approx(1 / 60, rel=0.05)}
    assert "25% of the pairs wrongly" in OF_PAIRS["dpo"](wrong)[0].why


def test_published_settings_come_out() -> None:
    """DPO: beta 0.5 for summaries of some 35 tokens, 0.1 for dialogues of some 150."""
    assert proposed("dpo", pairs((35, 35), (-35.0, -40.0)))["beta"] == pytest.approx(0.5, abs=0.1)
    assert proposed("dpo", pairs((150, 150), (-150.0, -170.0)))["beta"] == pytest.approx(0.1, abs=0.01)


def test_kto_weighs_classes_by_their_counts() -> None:
    facts = JudgedFacts(np.full(10, 30.0), np.array([1.0] * 2 + [0.0] * 8), np.ones(10))
    assert proposed("kto", facts) == {"beta": 1.0, "desirable_weight": 4.0, "undesirable_weight": 1.0}
    heavy = JudgedFacts(facts.tokens, facts.label, np.array([8.0] * 2 + [1.0] * 8))
    assert proposed("kto", heavy) == {"beta": 1.0, "desirable_weight": 1.0, "undesirable_weight": 2.0}


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() & (OF_PAIRS | OF_JUDGED).keys()))
def test_what_is_proposed_is_a_knob_and_in_its_range(name: str) -> None:
    facts = pairs() if name in OF_PAIRS else JudgedFacts(np.full(4, 9.0), np.array([1.0, 0, 0, 1]), np.ones(4))
    knobs = find(name).knobs
    for knob, value in proposed(name, facts).items():
        allowed = knobs[knob].range
        assert allowed is None or allowed.holds(value)


def test_the_command_trains_with_what_is_proposed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    from trainers import run
    from trainers.loss import parse

    assert suggest.main(["--data", world.version.url, "--loss", "ipo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tau = ")
    assert "scored tokens on average" in said
    given = run.parser().parse_args(said.strip().splitlines()[-1].split()[3:])
    rows = world.version.table("train").to_pydict()
    both = np.mean(rows["chosen_tokens"]) + np.mean(rows["rejected_tokens"])
    wrong = [r - c for c, r in zip(rows["ref_chosen_logps"], rows["ref_rejected_logps"], strict=True) if r > c]
    room = max(0.1 * both, float(np.median(wrong)))
    assert parse(given.loss, given.weights, given.set).terms[0].knobs["tau"] == pytest.approx(1 / (2 * room), rel=0.05)


def test_a_sum_gets_weights(world: World) -> None:
    found = suggest.suggest(world.version.url, "dpo+sft")
    rows = world.version.table("train").to_pydict()
    nll = -sum(rows["ref_chosen_logps"]) / sum(rows["chosen_tokens"])
    assert found.proposals[-1].value == pytest.approx(0.2 * math.log(2) / nll, rel=0.05)
    assert f"--set dpo.beta={found.proposals[0].value:g} --weights 1,{found.proposals[-1].value:g}" in found.command


@pytest.fixture(scope="module")
def bare(world: World, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return publish(tmp_path_factory.mktemp("bare"), {"train": table(pair_rows(5))}, world.model)


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_a_version_without_reference_is_refused_with_the_flow_that_helps(loss: str, bare: Version) -> None:
    with pytest.raises(MissingColumns, match=r"python -m flows\.add_reference v1"):
        suggest.suggest(bare.url, loss)


def test_a_loss_that_no_rule_speaks_of_and_a_wrong_kind_are_sentences(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no rule proposes anything"):
        suggest.suggest(world.version.url, "sft")
    assert suggest.main(["--data", world.version.url, "--loss", "kto"]) == 2
    assert "reads unpaired" in capsys.readouterr().err
    assert suggest.main(["--data", "v9", "--loss", "dpo", "--root", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
