"""Several objectives side by side: a real comparison of two on a tiny world, and the arithmetic of its table."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import torch

from prefdata import draws, logprobs, models, report
from prefdata.engines import Request, Sampling
from prefdata.engines.transformers import TransformersEngine
from prefdata.errors import UserError
from prefdata.logprobs import Tree
from prefdata.report import of_comparison
from prefdata.tokens import Renderer
from prefdata.versions import Version
from tests.test_report import Page
from tests.tiny_world import completion_rows, publish, table
from tests.trainer_world import Talk, World
from trainers import compare, measured
from trainers.compare import Wanted
from trainers.measured import Asked, load_check
from trainers.options import Options

CHECK = "tests.test_compare:starts_like_the_prompt"


def starts_like_the_prompt(prompt: str, answer: str) -> bool:
    """What good answers of the tiny world do."""
    return answer.split()[:1] == prompt.split()[:1]


def wanted(world: World, out: Path, *, losses: tuple[str, ...] = ("dpo", "simpo"), **changes: Any) -> Wanted:
    base = Options(data=world.version.url, loss=losses[0], steps=2, batch_size=4, accumulate=1, dtype="float32")
    asked = Asked(answers=6, most_tokens=5, check=CHECK, batch_size=8)
    return replace(Wanted(base, losses, (0, 1), ("beta=0.5", "simpo.gamma=0.25"), 1000.0, asked, out), **changes)


@pytest.fixture(scope="module")
def done(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Wanted, dict[str, Any]]:
    asked = wanted(world, tmp_path_factory.mktemp("compared") / "out")
    assert compare.compare(asked, say=Talk())
    return asked, json.loads((asked.out / "comparison.json").read_text())


def test_every_loss_and_seed_is_measured_alike(done: tuple[Wanted, dict[str, Any]]) -> None:
    asked, content = done
    runs = content["runs"]
    assert [(run["loss"], run["seed"]) for run in runs] == [("dpo", 0), ("simpo", 0), ("dpo", 1), ("simpo", 1)]
    for run in runs:
        assert 0 <= run["pair_accuracy"] <= 1
        assert 0 <= run["checked"] <= 1
        assert run["answer_tokens"] <= 5
        assert run["kl"] != 0
    assert content["knobs"]["dpo"]["beta"] == 0.5
    assert content["knobs"]["simpo"] == {"beta": 0.5, "gamma": 0.25}
    assert [run["lr"] for run in runs[:2]] == [1e-3, 5e-4]  # each loss's own, times a thousand
    assert pl.read_parquet(asked.out / "comparison.parquet").height == 4


def test_pair_numbers_are_those_that_the_run_itself_measured(done: tuple[Wanted, dict[str, Any]]) -> None:
    asked, content = done
    after = json.loads((asked.out / "dpo-seed1" / "run.json").read_text())["after"]
    run = next(run for run in content["runs"] if (run["loss"], run["seed"]) == ("dpo", 1))
    for name, logged in (
        ("pair_accuracy", "logps/accuracies"),
        ("reward_accuracy", "rewards/accuracies"),
        ("chosen_per_token", "logps/chosen_per_token"),
    ):
        assert run[name] == pytest.approx(after[logged], rel=1e-4)


def test_a_finished_comparison_trains_and_measures_nothing_again(
    done: tuple[Wanted, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, content = done
    monkeypatch.setattr(measured.Measuring, "measure", lambda *_: pytest.fail("measured again"))
    talk = Talk()
    assert compare.compare(asked, say=talk)
    assert talk.text.count("nothing was trained") == 4
    assert json.loads((asked.out / "comparison.json").read_text()) == content


def test_the_page_stands_alone_and_says_how_kl_is_estimated(done: tuple[Wanted, dict[str, Any]]) -> None:
    asked, _ = done
    page = Page((asked.out / "comparison.html").read_text())
    assert "estimated on answers drawn from the policy" in page.text
    drawn = [label for label in page.values("aria-label") if label]
    assert any(label.startswith("Dots of pair accuracy; means: dpo") for label in drawn)
    assert not {"img", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert (asked.out / "comparison.md").read_text().splitlines()[2].startswith("| before | ")


def test_the_report_of_its_folder_is_the_same_page(done: tuple[Wanted, dict[str, Any]], tmp_path: Path) -> None:
    asked, _ = done
    assert report.report(str(asked.out)).html == (asked.out / "comparison.html").read_text()
    (tmp_path / "comparison.json").write_text("[]")
    with pytest.raises(UserError, match=r"is not what this version of trainers\.compare writes"):
        report.report(str(tmp_path))


def made_up() -> dict[str, Any]:
    run = {"pair_accuracy": 0.5, "chosen_per_token": -1.0, "kl": 2.0, "lr": 1e-6}
    return {
        "data": {"version": "v1"},
        "start": {"name": "m", "is_reference": True, "pair_accuracy": 0.25, "chosen_per_token": -1.25, "kl": 0.0},
        "budget": {"steps": 2},
        "asked": {"answers": 3, "check": None},
        "knobs": {"a": {"beta": 1}, "<b>": {}},
        "runs": [
            {**run, "loss": "a", "seed": 0},
            {**run, "loss": "<b>", "seed": 0},
            {**run, "loss": "a", "seed": 1, "pair_accuracy": 0.7, "chosen_per_token": -1.5, "kl": float("nan")},
        ],
    }


def test_a_table_has_means_deviations_and_drifts_from_the_start() -> None:
    head, _, before, first, second = of_comparison.table(made_up()).splitlines()
    assert head == "| loss | pair accuracy | KL | chosen drift |"
    assert before == "| before | 0.250 | 0.00 |  |"
    assert first == "| a | 0.600 ± 0.141 | nan ± nan | +0.000 ± 0.354 |"  # what is no number is no mean
    assert second == "| <b> | 0.500 | 2.00 | +0.250 |"


def test_names_are_text_on_the_page() -> None:
    html = of_comparison.page(made_up()).html
    assert "<b> 0.500 2.00 +0.250" in Page(html).text
    assert "<b></b>" not in html


def test_a_copy_of_the_start_has_no_divergence_and_other_weights_have_theirs(world: World, tmp_path: Path) -> None:
    """KL from drawn answers, against the same sums by hand."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(world.model, copy)
    shutil.copytree(world.model, other)
    changed = models.load_model(world.model)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(1.5)
    changed.save_pretrained(other)
    asked = Asked(answers=8, most_tokens=4)
    measuring = measured.Measuring(world.version, Renderer.load(world.model), world.model, asked, tmp_path)
    start, same, found = (measuring.measure(str(model)) for model in (world.model, copy, other))
    assert same == pytest.approx(start, abs=1e-5)
    prompts = measuring._prompts
    engine = TransformersEngine(changed, models.describe(str(other)))
    drawn = engine.generate(
        [
            Request(row["row_id"], tuple(row["prompt_ids"]), 4, draws.row_seed(0, row["row_id"], "comparison"))
            for row in prompts.to_pylist()
        ],
        Sampling(end_ids=tuple(Renderer.load(world.model).end_ids)),
    )
    ids = dict(zip(prompts["row_id"].to_pylist(), prompts["prompt_ids"].to_pylist(), strict=True))
    base, gaps = models.load_model(world.model), []
    for sample in drawn:
        tree = [Tree(ids[sample.key], [sample.token_ids])]
        gaps.append(logprobs.score(changed, tree)[0][0].sum() - logprobs.score(base, tree)[0][0].sum())
    assert found["kl"] == pytest.approx(sum(gaps) / 8, abs=1e-4)
    assert found["kl"] > 0.1


def test_prompts_are_drawn_from_the_whole_split_and_none_twice(world: World, tmp_path: Path) -> None:
    """A split may be sorted, and its beginning be of one kind."""
    split = world.version.table("test")
    ids = split["prompt_id"].to_pylist()
    twice = publish(
        tmp_path,
        {
            "train": split,
            "test": pa.concat_tables([split, split])
            .drop_columns("row_id")
            .add_column(0, "row_id", [[f"{n}" for n in range(2 * len(split))]]),
        },
        world.model,
    )
    drawn = measured._prompts(twice, 10)["prompt_id"].to_pylist()
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(ids)
    assert set(drawn) != set(ids[:10])
    ours = measured.Measuring(world.version, Renderer.load(world.model), world.model, Asked(5), tmp_path, prompts=twice)
    assert ours._prompts["prompt_id"].to_pylist() == drawn[:5]
    assert drawn[:4] == measured._prompts(twice, 4)["prompt_id"].to_pylist()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("examples.demo.world", "MODULE:FUNCTION"),
        ("no.such.module:f", "cannot be loaded"),
        ("json:nothing", "cannot be loaded"),
        ("json:__name__", "is no function"),
    ],
)
def test_a_checker_that_is_none_is_a_sentence(named: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_check(named)


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--data", world.version.url, "--out", str(tmp_path / "out"), "--steps", "2"]
    assert compare.main([*line, "--loss", "dpo,nothing"]) == 2
    assert "there is no such loss" in capsys.readouterr().err
    assert compare.main([*line, "--loss", "dpo,simpo", "--set", "tau=1"]) == 2
    assert "none of dpo, simpo has a knob called 'tau'" in capsys.readouterr().err
    assert compare.main([*line, "--loss", "dpo", "--seeds", "a"]) == 2
    assert "whole numbers" in capsys.readouterr().err
    bare = publish(tmp_path / "data", {"train": world.version.table("train")}, world.model)
    assert compare.main([*line, "--loss", "simpo", "--prompts", bare.url]) == 2
    assert "v1 holds out no rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def demonstrations(world: World, tmp_path: Path) -> Version:
    rows = table(completion_rows(6), "completions")
    return publish(tmp_path, {"train": rows, "test": rows}, world.model, kind="completions")


def test_versions_without_pairs_are_refused(demonstrations: Version, world: World, tmp_path: Path) -> None:
    asked = wanted(world, tmp_path / "out", losses=("sft",), settings=())
    with pytest.raises(UserError, match="compared on one version of pairs"):
        compare.compare(replace(asked, base=replace(asked.base, data=demonstrations.url)), say=Talk())
