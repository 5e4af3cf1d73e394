"""score-rewards: what scorers give each answer, side by side, and why some have none."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from prefdata import scorers
from prefdata.builds import job
from prefdata.builds.budget import Budget, BudgetReached
from prefdata.builds.paired import Options as PairedOptions
from prefdata.builds.paired import job as paired_job
from prefdata.builds.score_rewards import Options
from prefdata.builds.score_rewards import job as score_rewards
from prefdata.errors import UserError
from prefdata.scorers import Settings, reward_model
from prefdata.select.weighing import weighted_mean
from prefdata.verify import verify
from prefdata.versions import Version
from schemas import completions
from tests import tiny_world
from tests.samples import samples_dir
from tests.scored_world import ScoredWorld, make_world, scored_rows

HERE = "tests.test_score_rewards"


def long(prompt: str, answer: str) -> float:
    return float(len(answer.split()))


def picky(prompt: str, answer: str, *, row: dict[str, Any]) -> Any:
    """Raises for some rows, has no number for others."""
    kind = int(row["row_id"].split("-")[2])
    if kind == 0:
        raise ValueError("nothing to say of a greedy answer")
    return {1: math.nan, 2: "much", 3: True}.get(kind, 0.25)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ScoredWorld:
    return make_world(tmp_path_factory.mktemp("scored"), reference=True)


@pytest.fixture(scope="module")
def rm(world: ScoredWorld, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model made of the world's own model."""
    folder = tmp_path_factory.mktemp("rm") / "rm"
    reward_model.load(world.model, fresh_head_seed=3).save_pretrained(folder)
    AutoTokenizer.from_pretrained(world.model).save_pretrained(folder)
    return str(folder)


def build(world: ScoredWorld, *scorer: str, **options: Any) -> job.Outcome:
    return job.run(score_rewards(Options(source="v1", scorer=scorer, **options), world.root))


def scores(version: Version) -> dict[str, dict[str, float]]:
    rows = [row for split in version.splits for row in version.table(split).to_pylist()]
    return {row["row_id"]: {each["scorer"]: each["score"] for each in row["scores"]} for row in rows}


def column(version: Version, name: str) -> dict[str, Any]:
    return {row["row_id"]: row[name] for split in version.splits for row in version.table(split).to_pylist()}


def lines(version: Version) -> dict[str, dict[str, Any]]:
    return {line["row_id"]: line for line in version.table("ledger").to_pylist()}


def test_scorers_stand_side_by_side_and_another_one_runs_no_other_again(world: ScoredWorld, rm: str) -> None:
    first = build(world, f"rm=reward_model:{rm}", unit_rows=16)
    assert first.computed == first.reused + first.computed > 2
    verifier = f"verifier:{HERE}:long"
    both = build(world, f"rm=reward_model:{rm}", verifier, unit_rows=16)
    assert (both.reused, both.computed) == (first.computed, first.computed)
    mixed = build(world, verifier, f"rm=reward_model:{rm}", weights=(1.0, 3.0), unit_rows=16)
    assert mixed.computed == 0
    version = mixed.version
    before = {row["row_id"]: row for split in ("train", "test") for row in world.version.table(split).to_pylist()}
    for row_id, found in scores(version).items():
        assert set(found) == {"rm", "long", "mean"}
        assert found["long"] == len(before[row_id]["completion"][0]["content"].split())
        assert found["mean"] == pytest.approx((found["long"] + 3 * found["rm"]) / 4, abs=1e-12)
        assert column(version, "score")[row_id] == found["mean"]
    assert column(both.version, "score") == {row_id: each["rm"] for row_id, each in scores(version).items()}
    assert set(scores(version)) == set(before)
    names = {entry["name"]: entry["fingerprint"] for entry in version.manifest["scorers"]}
    assert names == {entry["name"]: entry["fingerprint"] for entry in both.version.manifest["scorers"]}
    assert set(names) == {"rm", "long"}
    assert len(set(names.values())) == 2
    assert {entry.get("model") for entry in version.manifest["scorers"]} == {rm, None}
    for row in version.table("train").to_pylist():  # what is stored of the reference stays, bit by bit
        assert row["ref_completion_token_logps"] == before[row["row_id"]]["ref_completion_token_logps"]
    assert verify(version) == []


def test_rewards_are_the_heads_at_the_last_token_of_each_answer_alone(world: ScoredWorld, rm: str) -> None:
    """Seen in RLHF-Reward-Modeling and distilabel: a reward model without a mask scores an answer by what pads it."""
    import torch

    model = reward_model.load(rm)
    found = column(build(world, f"reward_model:{rm}").version, "score")
    for row in world.version.table("train").to_pylist()[:12]:
        ids = torch.tensor([[*row["prompt_ids"], *row["completion_ids"]]])
        with torch.no_grad():
            alone = model.score(model.model(input_ids=ids).last_hidden_state)[0, -1, 0]
        assert found[row["row_id"]] == pytest.approx(float(alone), abs=1e-5)


def test_a_reward_model_with_its_own_template_reads_texts_and_ends_where_it_ends(
    world: ScoredWorld, rm: str, tmp_path: Path
) -> None:
    """Seen in RLHF-Reward-Modeling and distilabel: a reward model is fed another template than it was trained on."""
    import torch

    other = tmp_path / "other"
    model = reward_model.load(rm)
    model.save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(rm)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w1 ' if m.role == 'user' else 'w2 ' }}{{ m.content }}{{ ' </s> ' }}{% endfor %}"
        "{% if add_generation_prompt %}w2 {% endif %}"
    )
    tokenizer.save_pretrained(other)
    outcome = score_rewards(Options(source="v1", scorer=(f"reward_model:{other}",)), world.root)
    assert "another tokenizer or template" in outcome.notices[1]
    version = job.run(outcome).version
    assert version.manifest["scorers"][0]["tokens"] == "its own"
    found = column(version, "score")
    for row in world.version.table("test").to_pylist()[:6]:
        question, answer = row["prompt"][0]["content"], row["completion"][0]["content"]
        ids = tokenizer(f"w1 {question} </s> w2 {answer} </s>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            alone = model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0, -1, 0]
        assert found[row["row_id"]] == pytest.approx(float(alone), abs=1e-5)


def test_an_answer_that_was_cut_is_given_no_end(world: ScoredWorld, rm: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    reward_model.load(rm).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(rm)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} </s> {% endfor %}"
    tokenizer.save_pretrained(other)
    scorer = reward_model.RewardModel(str(other), Settings(world.version.manifest["tokenizer"]))
    rows = world.version.table("train").slice(0, 1)
    cut = rows.set_column(rows.schema.get_field_index("completion_finish"), "completion_finish", [["length"]])
    (whole,), (short,) = scorer._rendered(rows), scorer._rendered(cut)
    assert whole[1][-1] == 2
    assert short[1] == whole[1][:-1]
    assert scorer.members(rows) != scorer.members(cut)


def test_a_template_without_an_end_token_is_refused(world: ScoredWorld, rm: str, tmp_path: Path) -> None:
    reward_model.load(rm).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(rm)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} w9 {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="none of it is an end id of the model"):
        build(world, f"reward_model:{tmp_path}")


def test_rows_that_a_verifier_fails_on_are_set_aside_with_the_reason(world: ScoredWorld) -> None:
    version = build(world, f"verifier:{HERE}:picky").version
    found = lines(version)
    assert len(found) == 55
    for row_id, line in found.items():
        kind = int(row_id.split("-")[2])
        if kind >= 3:
            assert line["status"] == "kept"
            assert column(version, "score")[row_id] == (1.0 if kind == 3 else 0.25)
        else:
            reason = {0: "verifier_failed", 1: "score_not_finite", 2: "verifier_failed"}[kind]
            told = {0: "ValueError: nothing to say", 1: "gave nan", 2: "could not convert"}[kind]
            assert (line["stage"], line["reason"]) == ("score", reason)
            assert told in line["detail"]
    counts = version.manifest["counts"]
    assert (counts["rows_in"], counts["kept"], counts["set_aside"]) == (55, 22, 33)


def test_given_scores_and_a_missing_one(world: ScoredWorld) -> None:
    version = build(world, "old=given", "lexicon").version
    before = column(world.version, "score")
    missing = [row_id for row_id, score in before.items() if score is None]
    assert missing
    assert column(version, "score") == {row_id: score for row_id, score in before.items() if score is not None}
    for row_id in missing:
        assert lines(version)[row_id]["reason"] == "no_score"
    # by name, out of what stands side by side; what stood there stays
    again = job.run(score_rewards(Options(source=version.name, scorer=("given:old",), score="old"), world.root)).version
    assert scores(again) == scores(version)


def test_selection_reads_the_named_scorer(world: ScoredWorld) -> None:
    version = build(world, "given", f"verifier:{HERE}:long", score="long").version
    made = job.run(paired_job(PairedOptions(source=version.name), world.root)).version
    for row in made.table("train").to_pylist():
        assert row["chosen_score"] == len(row["chosen"][0]["content"].split())
        assert row["margin"] > 0


def test_a_spent_budget_stops_between_units_and_the_same_build_goes_on(world: ScoredWorld, tmp_path: Path) -> None:
    small = make_world(tmp_path, prompts=6, held_out=1)
    reward_model.load(small.model, fresh_head_seed=1).save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(small.model).save_pretrained(tmp_path / "rm")
    options = Options(source="v1", scorer=(f"reward_model:{tmp_path / 'rm'}",), unit_rows=10, with_reference=False)
    with pytest.raises(BudgetReached, match="tokens were computed"):
        job.run(score_rewards(options, small.root), budget=Budget(max_tokens=1))
    again = job.run(score_rewards(options, small.root))
    assert (again.reused, again.computed) == (1, 3)
    assert again.version.manifest["reference"] is None
    # with the reference's log-probs nothing is scored again
    whole = job.run(score_rewards(replace(options, with_reference=True), small.root))
    assert (whole.reused, whole.computed) == (4, 4)
    assert "ref_completion_logps" in whole.version.columns()


def test_a_prompt_runs_once_for_all_of_its_answers(world: ScoredWorld, rm: str) -> None:
    spent: list[int] = []
    rows = world.version.table("train")
    scorer = reward_model.RewardModel(rm, Settings(world.version.manifest["tokenizer"]))
    scorer.score(rows, lambda share: None, spent.append)
    prompts = {row["prompt_id"]: len(row["prompt_ids"]) for row in rows.to_pylist()}
    answers = {(row["prompt_id"], tuple(row["completion_ids"])) for row in rows.to_pylist()}
    assert spent == [sum(prompts.values()) + sum(len(ids) for _, ids in answers)]


def test_more_samples_of_a_prompt_leave_the_others_scores_as_they_are(tmp_path: Path) -> None:
    small = make_world(tmp_path, prompts=6, held_out=1)
    reward_model.load(small.model, fresh_head_seed=1).save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(small.model).save_pretrained(tmp_path / "rm")
    options = Options(source="v1", scorer=(f"reward_model:{tmp_path / 'rm'}",), unit_rows=8, with_reference=False)
    first = job.run(score_rewards(options, small.root)).version
    own = small.version.table("train")
    more = tiny_world.table(scored_rows(6, seed=1, answers=7), completions.KIND)
    new = more.filter(pa.array([row_id not in set(own["row_id"].to_pylist()) for row_id in more["row_id"].to_pylist()]))
    joined = pa.concat_tables([own, new])
    order = np.random.default_rng(0).permutation(joined.num_rows)
    larger = tiny_world.publish(Path(small.root), {"train": joined.take(order)}, small.model, kind=completions.KIND)
    spent: list[int] = []
    whole = score_rewards(replace(options, source=larger.name), small.root)
    for stage in whole.stages():
        for unit in stage.units():
            whole.work.store(unit.key, stage.compute(replace(unit, spend=spent.append)))
    asked = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in new.to_pylist())
    assert new.num_rows == 12
    assert sum(spent) <= asked  # prompts that stand in a unit twice run once
    version = job.run(whole).version
    assert len(scores(version)) == 42
    before = scores(first)
    assert {row_id: each for row_id, each in scores(version).items() if row_id in before} == {
        row_id: each for row_id, each in before.items() if row_id.startswith("1-")
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scorer": ()}, "no scorer is named"),
        ({"scorer": ("taste",)}, "KIND is one of"),
        ({"scorer": ("lexicon", "lexicon")}, "two scorers are called 'lexicon'"),
        ({"scorer": ("lexicon:nrc",)}, "no lexicon 'nrc'"),
        ({"scorer": ("verifier",)}, "say which function"),
        ({"scorer": ("verifier:nobody",)}, "no verifier 'nobody' among the entry points"),
        ({"scorer": ("verifier:nowhere:check",)}, "can't be loaded: ModuleNotFoundError"),
        ({"scorer": (f"verifier:{HERE}:HERE",)}, "is no function"),
        ({"scorer": (f"verifier:{HERE}:weighted_mean_of_one",)}, "can't be loaded: AttributeError"),
        ({"scorer": (f"verifier:{HERE}:lines",)}, "does not take a prompt's text"),
        ({"scorer": ("reward_model",)}, "say which model"),
        ({"scorer": ("lexicon",), "weights": (1.0, 2.0)}, "2 weights for 1 scorers"),
        ({"scorer": ("lexicon", "given"), "weights": (1.0, -1.0)}, "sum above 0"),
        ({"scorer": ("mean=lexicon",), "weights": (1.0,)}, "a scorer is called mean"),
        ({"scorer": ("lexicon",), "score": "given"}, "it can be: lexicon"),
    ],
)
def test_what_is_refused(world: ScoredWorld, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        score_rewards(Options(source="v1", **options), world.root)


def test_a_language_model_is_no_reward_model(world: ScoredWorld) -> None:
    with pytest.raises(UserError, match="labels, and a reward model has one score"):
        build(world, f"reward_model:{world.model}")


def test_names() -> None:
    called = [
        scorers.parse(text)
        for text in ("reward_model:models/rm/", "a.b=verifier:m.n:f", "given:x", "reward-model:o/m@v1")
    ]
    assert [(each.name, each.kind, each.what) for each in called] == [
        ("rm", "reward_model", "models/rm/"),
        ("a.b", "verifier", "m.n:f"),
        ("x", "given", "x"),
        ("m@v1", "reward_model", "o/m@v1"),
    ]


def test_the_weighted_mean_of_one_is_itself_and_nulls_have_none() -> None:
    one, other = pl.Series([1.0, -2.0, None]), pl.Series([3.0, 0.5, 1.0])
    assert weighted_mean([one], [7.0]).to_list() == [1.0, -2.0, None]
    assert weighted_mean([one, other], [1, 3]).to_list() == [2.5, -0.125, None]


def test_a_changed_verifier_is_another_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "my_verifier_module.py"
    file.write_text("def check(prompt, answer):\n    return 1\n")
    first = scorers.load(scorers.parse("verifier:my_verifier_module:check"), Settings({})).fingerprint
    file.write_text("def check(prompt, answer):\n    return 2\n")
    second = scorers.load(scorers.parse("verifier:my_verifier_module:check"), Settings({})).fingerprint
    assert first != second


def lexicon_scores(texts: list[str]) -> list[Any]:
    rows = pa.table({"completion": [[{"role": "assistant", "content": text}] for text in texts]})
    lexicon = scorers.load(scorers.parse("lexicon"), Settings({}))
    return list(lexicon.score(rows, lambda share: None, lambda tokens: None))


def test_vader_gives_what_its_documentation_says() -> None:
    told = {"VADER is smart, handsome, and funny.": 0.8316, "Today SUX!": -0.5461, "the book": 0.0}
    assert lexicon_scores(list(told)) == list(told.values())


def test_vader_goes_with_how_people_rated_film_reviews() -> None:
    """Sentences that twenty people rated from -4 to 4."""
    file = samples_dir() / "sentiment" / "movie_snippets.jsonl"
    rated = [json.loads(line) for line in file.read_text().splitlines()[:1000]]
    found = lexicon_scores([each["text"] for each in rated])
    both = pl.DataFrame({"found": found, "rated": [float(each["mean_rating"]) for each in rated]})
    assert both.select(pl.corr("found", "rated")).item() > 0.25
