"""The report of a training run: from what a real run leaves, and from made-up curves that should raise alarms."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefdata import cli, report
from prefdata.errors import UserError
from prefdata.report import dynamics, of_run, training
from prefdata.report.alarms import Alarm
from tests.test_report import Page
from tests.trainer_world import Talk, make_world
from trainers import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of a few steps, and the root of its version."""
    folder = tmp_path_factory.mktemp("run")
    world = make_world(folder)
    from dataclasses import replace

    options = replace(world.options, out=str(folder / "runs" / "first"), eval_every=4)
    result = train.train(options, say=Talk())
    return result.folder, world.version.root


def test_the_page_says_what_was_trained_on_what(run: tuple[Path, str]) -> None:
    folder, root = run
    page = Page(of_run.page(str(folder), root).html)
    config = json.loads((folder / "run.json").read_text())["config"]
    assert f"dpo on v1, starting from {config['policy']['name']}. Finished after 12 steps." in page.text
    assert "knobs beta 0.1, label_smoothing 0.0" in page.text
    assert "lr 0.003" in page.text


def test_step_zero_is_told(run: tuple[Path, str]) -> None:
    """The policy starts from the reference, in the same precision."""
    page = Page(of_run.page(str(run[0]), run[1]).html)
    assert "Step 0 agrees with the stored reference: mean |policy - reference| was" in page.text


def test_the_curves_are_those_of_the_log(run: tuple[Path, str]) -> None:
    folder, root = run
    result = json.loads((folder / "run.json").read_text())
    curves = of_run.read_curves(folder)
    for name, value in result["after"].items():
        assert curves[f"eval/{name}"][12] == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert sorted(curves["eval/loss"]) == [0, 4, 8, 12]
    assert curves["train/loss"][max(curves["train/loss"])] == pytest.approx(result["train"]["loss"], rel=1e-6)
    drawn = [label for label in Page(of_run.page(str(folder), root).html).values("aria-label") if label]
    for title in ("moved from the reference", "which way both sides went", "orders that disagree", "saturation"):
        assert any(label.startswith(f"Curve of {title} by step") for label in drawn), title
    for title in ("loss", "reward margin", "accuracy", "log-prob per token", "gradient norm", "learning rate"):
        assert any(label.startswith(f"Curve of {title} by step") for label in drawn), title


def test_before_and_after_stand_side_by_side(run: tuple[Path, str]) -> None:
    folder, root = run
    page = Page(of_run.page(str(folder), root).html)
    result = json.loads((folder / "run.json").read_text())
    told = f"loss {result['before']['loss']:.4g} {result['after']['loss']:.4g}"
    assert told in page.text
    assert "rewards/ margins" not in page.text
    assert "rewards/margins" in page.text


def test_lineage_is_drawn_where_the_version_is_and_else_the_page_says_why(
    run: tuple[Path, str], tmp_path: Path
) -> None:
    folder, root = run
    labels = Page(of_run.page(str(folder), root).html).values("aria-label")
    assert any(label and "version v1" in label for label in labels)
    assert "where v1 came from cannot be drawn" in Page(of_run.page(str(folder), str(tmp_path)).html).text


def test_another_version_of_that_name_is_not_taken_for_it(run: tuple[Path, str], tmp_path: Path) -> None:
    from tests.published import publish

    publish(tmp_path / "data")
    assert "is not the one that was trained on" in Page(of_run.page(str(run[0]), str(tmp_path / "data")).html).text


def test_the_page_stands_in_the_run_folder(run: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = run
    assert cli.main(["report", str(folder), "--root", root]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}/report.html: ")
    assert (folder / "report.html").read_text(encoding="utf-8") == of_run.page(str(folder), root).html


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": "other/1"}', '{"format": "prefdata-run/1", "config": {}}']
)
def test_what_is_no_run_is_said(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        report.report(str(tmp_path))


def test_a_run_that_was_just_begun_has_a_page(run: tuple[Path, str], tmp_path: Path) -> None:
    begun = json.loads((run[0] / "run.json").read_text())
    begun = {key: begun[key] for key in ("format", "config")} | {"status": "begun"}
    begun["config"]["knobs"] = {"<img src=x onerror=alert(1)>": "</script><b>"}
    (tmp_path / "run.json").write_text(json.dumps(begun))
    page = Page(of_run.page(str(tmp_path), run[1]).html)
    assert "Not finished, so far 0 steps" in page.text
    assert "<img src=x onerror=alert(1)> </script><b>" in page.text
    assert not {"img", "figure"} & {tag for tag, _ in page.tags}


# -- alarms --------------------------------------------------------------------------------------------------------

NAN = float("nan")
FINE = {"logps/chosen_per_token": (-1.0, -0.9), "logps/rejected_per_token": (-1.0, -1.5), "entropy": (1.0, 0.9)}


def alarms(
    changed: dict[str, tuple[float, float]] | None = None, *, split: str = "eval", agreements: Any = None, **run: Any
) -> list[str]:
    """Titles of the alarms of a finished run whose metrics went from one value to another."""
    curves = {f"{split}/{name}": {0: first, 9: last} for name, (first, last) in {**FINE, **(changed or {})}.items()}
    about = {"status": "finished", "before": {"nll_loss": 1.0}, "after": {"nll_loss": 0.9, "rewards/accuracies": 0.7}}
    return [alarm.title for alarm in training.check({**about, **run}, curves, agreements or {}).alarms]


def test_a_good_run_raises_no_alarm() -> None:
    assert alarms() == []


@pytest.mark.parametrize("split", ["eval", "train"])
@pytest.mark.parametrize(
    ("changed", "title"),
    [
        ({"logps/chosen_per_token": (-1.0, -1.2)}, "The chosen answers become less likely"),
        ({"logps/rejected_per_token": (-1.0, -2.1)}, "The rejected answers are driven far down"),
        (
            {"entropy": (1.0, 1.2), "logps/chosen_per_token": (-1.0, -1.005)},
            "Probability spreads to what was never seen",
        ),
    ],
)
def test_curves_that_go_the_wrong_way_raise_alarms(
    changed: dict[str, tuple[float, float]], title: str, split: str
) -> None:
    assert alarms(changed, split=split) == [title]


def dynamics_of(prefix: str = "eval", **curves: list[float]) -> list[str]:
    """Titles of the alarms of metrics that were logged every fifty steps; / is written as __."""
    named = {
        f"{prefix}/{name.replace('__', '/')}": {50 * place: value for place, value in enumerate(each)}
        for name, each in curves.items()
    }
    return [alarm.title for each in dynamics.CHECKS if isinstance(alarm := each({}, named), Alarm)]


DRIVEN, SUPPRESSED = (
    "The rejected answers are driven far below the reference",
    "The chosen answers stay below the reference",
)
FASTER, BOTH, SATURATED = (
    "Training pushes down more than up",
    "Most pairs lose both sides",
    "Most rows teach nothing any more",
)
STEEPER, DISPLACED = "The rejected side has the larger gradient", "A step lowers the chosen side too"


@pytest.mark.parametrize(
    ("curves", "titles"),
    [
        ({"logratios__rejected_per_token": [0, -1.1, -1.2]}, [DRIVEN]),
        ({"logratios__rejected_per_token": [0, -1.3, -1.2]}, []),  # no longer falling
        ({"logratios__rejected_per_token": [0, -0.8, -0.9]}, []),
        ({"logratios__rejected_per_token": [0, NAN]}, [DRIVEN]),
        ({"logratios__chosen": [0, 1.0, 2.0], "logratios__rejected": [0, -5.0, -10.1]}, [FASTER]),
        ({"logratios__chosen": [0, 1.0, 2.0], "logratios__rejected": [0, -5.0, -9.9]}, []),
        # the last hundred steps count: there chosen rose by 2 and rejected fell by 4
        ({"logratios__chosen": [0, 0.1, 1.1, 2.1], "logratios__rejected": [0, -50.0, -52.0, -54.0]}, []),
        ({"logratios__chosen": [0, 0.01], "logratios__rejected": [0, -0.9]}, []),  # too little to speak of
        ({"quadrants__both_down": [0, 0.51]}, [BOTH]),
        ({"quadrants__both_down": [0.9, 0.5]}, []),
        ({"saturation__beyond_6": [0.0, 0.81], "saturation__weightless": [0.0, 0.8]}, [SATURATED]),
        ({"saturation__beyond_6": [0.0, 0.8], "saturation__weightless": [0.0, 0.81]}, [SATURATED]),
        ({"saturation__beyond_6": [0.0, 0.8]}, []),
        ({"saturation__beyond_6": [0.0, NAN]}, [SATURATED]),
        ({"probe__gradient_ratio": [1.0, 3.1]}, [STEEPER]),
        ({"probe__gradient_ratio": [4.0, 3.0]}, []),
        ({"probe__displacement": [0.9, 1.01]}, [DISPLACED]),
        ({"probe__displacement": [1.2, 1.0]}, []),
    ],
)
def test_thresholds_of_where_log_probs_go(curves: dict[str, list[float]], titles: list[str]) -> None:
    assert dynamics_of(**curves) == titles


def test_chosen_below_the_reference_for_two_hundred_steps_of_training_is_suppression() -> None:
    assert dynamics_of("train", logratios__chosen=[0.1, -0.1, -0.1, -0.1, -0.1, -0.1]) == [
        SUPPRESSED
    ]  # steps 50 to 250
    assert dynamics_of("train", logratios__chosen=[0.1, -0.1, -0.1, 0.1, -0.1, -0.1]) == []
    assert dynamics_of("train", logratios__chosen=[0.1, -0.1, -0.1, -0.1, -0.1]) == []  # 150 steps
    assert dynamics_of("eval", logratios__chosen=[-0.1] * 9) == []


@pytest.mark.parametrize(
    ("run", "title"),
    [
        ({"after": {"nll_loss": 1.06}}, "Held-out likelihood got worse"),
        ({"after": {"rewards/accuracies": 0.5}}, "No better than chance on held-out pairs"),
        ({"after": {}}, "No held-out rows"),
        ({"status": "begun"}, "Not finished"),
    ],
)
def test_ends_that_raise_alarms(run: dict[str, Any], title: str) -> None:
    assert alarms(**run) == [title]


NO_NUMBER = "Numbers that are not finite"


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
def test_any_number_that_is_not_finite_is_an_error(value: float) -> None:
    curves = {"train/loss": {0: 1.0, 3: value, 5: value, 7: 0.5}, "train/grad_norm": {0: 1.0, 2: value}}
    found = training.check({"status": "finished", "after": {"margin": value}}, curves, {}).alarms
    assert (found[0].level, found[0].title) == ("error", NO_NUMBER)
    assert found[0].found == "train/grad_norm from step 2 on, train/loss from step 3 on, margin after training"


@pytest.mark.parametrize(
    ("changed", "run", "title"),
    [
        ({"logps/chosen_per_token": (-1.0, NAN)}, {}, "The chosen answers become less likely"),
        ({"logps/rejected_per_token": (-1.0, NAN)}, {}, "The rejected answers are driven far down"),
        (
            {"entropy": (1.0, NAN), "logps/chosen_per_token": (-1.0, -1.005)},
            {},
            "Probability spreads to what was never seen",
        ),
        ({}, {"after": {"nll_loss": NAN}}, "Held-out likelihood got worse"),
        ({}, {"after": {"rewards/accuracies": NAN}}, "No better than chance on held-out pairs"),
    ],
)
def test_what_is_no_number_passes_no_check(
    changed: dict[str, tuple[float, float]], run: dict[str, Any], title: str
) -> None:
    assert alarms(changed, **run) == [NO_NUMBER, title]


def agreement(mean: float, *, same_model: bool = True) -> dict[str, Any]:
    return {"v1": {"mean": mean, "tokens": 10, "rows": 2, "same_model": same_model, "allowed": 1e-3}}


def test_step_zero_must_agree_where_the_model_is_the_same() -> None:
    assert alarms(agreements=agreement(1e-6)) == []
    assert alarms(agreements=agreement(0.1)) == ["Step 0 disagrees with the stored reference"]
    assert alarms(agreements=agreement(float("nan"))) == ["Step 0 disagrees with the stored reference"]
    assert alarms(agreements=agreement(0.1, same_model=False)) == ["The policy is another model than the reference"]
