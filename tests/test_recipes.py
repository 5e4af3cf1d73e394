"""Every file in recipes/ builds, with a small model on rows of the sample data or of its format, at a fraction of its size."""

import json
import re
import shlex
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from prefdata import recipe
from prefdata.builds.job import run
from prefdata.verify import verify
from tests import source_rows
from tests.samples import samples_dir

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.toml"))
PROMPTS = 5


@pytest.fixture(scope="module")
def model() -> str:
    return str(samples_dir() / "models" / "stories260k")


@pytest.fixture(scope="module")
def reward_model(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small model with a random head of one score."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(tmp_path_factory.mktemp("reward") / "model")
    torch.manual_seed(0)
    made: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    made.config.pad_token_id = 0
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs that people judged, short ones."""
    rows = (line for line in (samples_dir() / "hh_helpful" / "train.jsonl").open() if len(line) < 900)
    path = tmp_path_factory.mktemp("sample") / "pairs.jsonl"
    path.write_text("".join(islice(rows, PROMPTS)))
    return str(path)


def test_the_published_ones_are_there() -> None:
    assert set(RECIPES) == {"kto", "llama3", "online-rlhf", "remax", "rso", "sapo", "simpo", "tulu3", "zephyr"}


@pytest.fixture
def built(model: str, reward_model: str, sample: str, tmp_path: Path) -> Callable[..., recipe.Done]:
    """A recipe's versions, small."""

    def build(name: str, *, source: str = sample, **settings: Any) -> recipe.Done:
        small = {"source.source": source, "source.model": model, "source.max_length": 160, "source.test_fraction": 0.0}
        read = recipe.read(str(FOLDER / f"{name}.toml"))
        if any(step.build == "generate" for step in read.steps):
            small |= {"generate.model": model, "generate.max_new_tokens": 12, "generate.engine": "transformers"}
            small |= {"score.scorer": f"reward_model:{reward_model}"}
        given = [f"{key}={json.dumps(value)}" for key, value in {**small, **settings}.items()]
        return recipe.run(
            recipe.read(str(FOLDER / f"{name}.toml"), given), str(tmp_path / "data"), lambda _, job: run(job)
        )

    return build


def rows(done: recipe.Done) -> list[dict[str, Any]]:
    assert not [problem for outcome in done.outcomes for problem in verify(outcome.version)]
    return [row for split in done.version.splits for row in done.version.table(split).to_pylist()]


def test_zephyr(built: Callable[..., recipe.Done], tmp_path: Path) -> None:
    answers = [source_rows.rated(f"Answer {n}.", *[str(n)] * 4, overall=9.0 - n, model=f"m{n}") for n in range(1, 5)]
    (tmp_path / "rated.jsonl").write_text(json.dumps(source_rows.ultrafeedback(*answers)))
    (row,) = rows(built("zephyr", source=str(tmp_path / "rated.jsonl")))
    assert row["chosen"][0]["content"] == "Answer 4."  # by the mean of the aspects, not by the overall score
    assert row["margin"] in (1, 2, 3)


@pytest.mark.parametrize("name", ["simpo", "online-rlhf", "tulu3"])
def test_pairs_of_samples_and_a_reward_model(built: Callable[..., recipe.Done], name: str) -> None:
    done = built(name, **{"generate.samples": 4})
    found = rows(done)
    assert 0 < len(found) <= PROMPTS
    assert all(row["chosen_score"] > row["rejected_score"] for row in found)
    assert all(row["ref_chosen_token_logps"] for row in found)


def test_llama3(built: Callable[..., recipe.Done], tmp_path: Path) -> None:
    sure, unsure = source_rows.HELPSTEER2_PREFERENCE, source_rows.HELPSTEER2_PREFERENCE | {"preference_strength": 1}
    unsure = unsure | {"prompt": "Name a tree."}
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (sure, unsure)))
    found = rows(built("llama3", source=str(tmp_path / "judged.jsonl"), **{"select.min_margin": 2.0}))
    assert [row["margin"] for row in found] == [2]


def test_rso(built: Callable[..., recipe.Done]) -> None:
    done = built("rso", **{"generate.samples": 6, "select.accept": 3, "select.beta": 5.0})
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows(done))
    assert done.version.manifest["config"]["rule"] == "statistical"


def test_kto(built: Callable[..., recipe.Done]) -> None:
    found = rows(built("kto"))
    assert {row["label"] for row in found} == {True, False}
    assert all(row["partner_ids"] != row["completion_ids"] and row["ref_partner_token_logps"] for row in found)


def test_remax(built: Callable[..., recipe.Done]) -> None:
    found = rows(built("remax"))
    assert {row["method"] for row in found} == {"sampled"}
    assert all(row["advantage"] == pytest.approx(row["score"] - row["baseline_score"]) for row in found)


def test_sapo(built: Callable[..., recipe.Done], sample: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "sapo.toml").write_text(
        (FOLDER / "sapo.toml")
        .read_text()
        .replace('version = "v1"', f"source = {json.dumps(sample)}\nmodel = {json.dumps(model)}\nmax_length = 160")
    )
    read = recipe.read(str(tmp_path / "sapo.toml"))
    found = rows(recipe.run(read, str(tmp_path / "data"), lambda _, job: run(job)))
    assert all(row["rejected_ids"] != row["chosen_ids"] for row in found)


@pytest.mark.parametrize("name", RECIPES)
def test_the_training_that_it_names_is_known(name: str) -> None:
    """Loss and knobs of the comment's command."""
    from trainers import run as command
    from trainers.loss import parse

    text = " ".join(line.lstrip("# ") for line in (FOLDER / f"{name}.toml").read_text().splitlines())
    for said in re.findall(r"python -m (trainers\.run .*?)(?=  |\[source\])", text):
        given = command.parser().parse_args(shlex.split(said)[1:])
        parse(given.loss, given.weights, given.set)
