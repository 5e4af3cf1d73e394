"""build-paired: what a rule selects, by id, with log-probs, bands and a ledger that adds up; pairs pass through."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from prefdata import models, versions
from prefdata.builds import making
from prefdata.builds.job import run
from prefdata.builds.paired import Options, job
from prefdata.builds.selecting import model_label
from prefdata.errors import UserError
from prefdata.select import paired
from prefdata.verify import verify
from prefdata.versions import Version
from schemas import completions
from tests.scored_world import ScoredWorld, make_world, scored_rows
from tests.tiny_world import completion_rows, pair_rows, publish, table, with_reference


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ScoredWorld:
    return make_world(tmp_path_factory.mktemp("scored"))


def built(world: ScoredWorld, **options: Any) -> Version:
    options = {"source": "v1", "reference": world.model, **options}
    return run(job(Options(**options), world.root)).version


@pytest.mark.parametrize("rule", paired.RULES)
def test_pairs_are_those_of_the_rule_and_the_ledger_accounts_for_every_completion(
    world: ScoredWorld, rule: str
) -> None:
    version = built(world, rule=rule, pairs_per_prompt=2)
    assert verify(version) == []
    parent = {row["row_id"]: row for split in ("train", "test") for row in world.version.table(split).to_pylist()}
    used: Counter[str] = Counter()
    for split in version.splits:
        rows = version.table(split).to_pylist()
        lines = pl.DataFrame(
            {
                "row_id": list(parent),
                "prompt_id": [row["prompt_id"] for row in parent.values()],
                "score": [row["score"] for row in parent.values()],
                "tokens": [row["completion_tokens"] for row in parent.values()],
                "answer": [bytes(row["completion_ids"]) for row in parent.values()],
                "greedy": [row["method"] == "greedy" for row in parent.values()],
            }
        )
        own = set(world.version.table(split)["row_id"].to_pylist())
        expected = paired.select(lines.filter(pl.col("row_id").is_in(own)), rule, pairs_per_prompt=2).pairs
        assert {(row["chosen_row_id"], row["rejected_row_id"]) for row in rows} == set(
            expected.select("chosen", "rejected").rows()
        )
        for row in rows:
            chosen, rejected = parent[row["chosen_row_id"]], parent[row["rejected_row_id"]]
            used.update({row["chosen_row_id"], row["rejected_row_id"]})
            assert row["prompt_id"] == chosen["prompt_id"] == rejected["prompt_id"]
            assert (row["chosen_ids"], row["rejected_ids"]) == (chosen["completion_ids"], rejected["completion_ids"])
            assert row["chosen"] == chosen["completion"]
            assert row["margin"] == chosen["score"] - rejected["score"] > 0
            assert row["method"] == rule
    ledger = version.ledger().to_pylist()
    assert sorted(line["row_id"] for line in ledger) == sorted(parent)
    assert {line["row_id"] for line in ledger if line["status"] == "kept"} == set(used)
    assert all(line["reason"] for line in ledger if line["status"] == "set_aside")
    counts = version.manifest["counts"]
    assert counts["rows_in"] == counts["kept"] + counts["set_aside"] == len(parent)


def test_a_changed_rule_runs_the_reference_only_on_what_is_new(
    world: ScoredWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = make_world(tmp_path, reference=True)

    def no_model(*given: Any, **more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load_model", no_model)
    for rule in ("max_min", "adjacent"):
        version = built(own, rule=rule, min_margin=1.0)
        rows = version.table("train").to_pylist()
        parent = {row["row_id"]: row for row in own.version.table("train").to_pylist()}
        for row in rows:
            stored = parent[row["chosen_row_id"]]["ref_completion_token_logps"]
            assert row["ref_chosen_token_logps"] == pytest.approx(stored)


def test_the_same_build_again_does_nothing_and_shards_change_nothing(world: ScoredWorld, tmp_path: Path) -> None:
    first = built(world, rule="every", pairs_per_prompt=3)
    again = run(job(Options(source="v1", rule="every", pairs_per_prompt=3, reference=world.model), world.root))
    assert not again.published
    assert again.version.name == first.name
    other = make_world(tmp_path)
    small = built(other, rule="every", pairs_per_prompt=3, unit_rows=2)
    assert small.logical_hash == first.logical_hash


@pytest.mark.parametrize("rule", ["max_min", "every"])
def test_log_probs_that_come_along_are_those_that_are_scored(world: ScoredWorld, tmp_path: Path, rule: str) -> None:
    own = make_world(tmp_path, reference=True)
    brought, scored = (built(each, rule=rule, pairs_per_prompt=3).table("train") for each in (own, world))
    drop = ["ref_chosen_token_logps", "ref_rejected_token_logps", "ref_chosen_logps", "ref_rejected_logps"]
    assert brought.drop(drop).equals(scored.drop(drop))
    for name in drop[2:]:
        np.testing.assert_allclose(brought[name], scored[name], atol=1e-4)
    assert [len(row) for row in brought[drop[0]].to_pylist()] == [len(row) for row in brought["chosen_ids"].to_pylist()]


def test_bands_are_equal_parts_by_falling_margin(world: ScoredWorld) -> None:
    version = built(world, rule="every", pairs_per_prompt=9, bands=3)
    rows = pl.concat([pl.DataFrame(version.table(split)) for split in version.splits])
    margins = rows.with_columns(reference=pl.col("ref_chosen_logps") - pl.col("ref_rejected_logps"))
    for band, margin in (("score_band", "margin"), ("reference_band", "reference")):
        found = sorted(set(margins[band]))
        assert found[0] == 0
        assert 1 < len(found) <= 3  # margins of score repeat, and equal ones share a band
        spread = margins.group_by(band).agg(least=pl.col(margin).min(), most=pl.col(margin).max()).sort(band)
        assert all(spread["least"][n] >= spread["most"][n + 1] for n in range(len(found) - 1))
    even = margins.group_by("reference_band").len()["len"]
    assert even.max() - even.min() <= 1  # type: ignore[operator]


def test_on_policy_pairs_are_of_what_the_reference_wrote(world: ScoredWorld, tmp_path: Path) -> None:
    label = model_label(models.describe(world.model))
    rows = [
        {**row, "generator": label if number % 2 else "another"} for number, row in enumerate(scored_rows(8, answers=8))
    ]
    schema = pa.unify_schemas([completions.BASE, completions.OPTIONAL])
    publish(tmp_path, {"train": pa.Table.from_pylist(rows, schema=schema)}, world.model, kind="completions")
    options = {"source": "v1", "reference": world.model, "on_policy": True}
    version = run(job(Options(**options), str(tmp_path))).version
    own = {row["row_id"] for row in rows if row["generator"] == label}
    assert own >= {
        row[f"{side}_row_id"] for row in version.table("train").to_pylist() for side in ("chosen", "rejected")
    }
    assert {line["row_id"] for line in ledger_of(version) if line["reason"] == "off_policy"} == {
        row["row_id"] for row in rows
    } - own
    with pytest.raises(UserError, match="on_policy chooses among completions"):
        job(Options(**{**options, "source": version.name}), str(tmp_path))


def ledger_of(version: Version) -> list[dict[str, Any]]:
    return [line for entry in version.files("ledger") for line in version.read(entry).to_pylist()]


def test_pairs_pass_through_if_they_are_clear(world: ScoredWorld, tmp_path: Path) -> None:
    rows = pair_rows(6)
    for number, row in enumerate(rows):
        row |= {"margin": float(number), "preference": None if number % 2 else 0.4 + number / 10}
    pairs = with_reference(table(rows), world.model)
    publish(tmp_path, {"train": pairs}, world.model, reference_model=world.model)
    version = run(job(Options(source="v1", min_margin=1.0, min_preference=0.7), str(tmp_path))).version
    assert verify(version) == []
    assert version.table("train")["row_id"].to_pylist() == [rows[n]["row_id"] for n in (1, 3, 4, 5)]
    assert version.table("train")["ref_chosen_logps"].to_pylist() == [
        pairs["ref_chosen_logps"][n].as_py() for n in (1, 3, 4, 5)
    ]
    reasons = {line["row_id"]: line["reason"] for line in version.ledger().to_pylist() if line["reason"]}
    assert reasons == {rows[0]["row_id"]: "margin_too_small", rows[2]["row_id"]: "preference_too_low"}


def test_what_cannot_be_selected_from_is_one_sentence(world: ScoredWorld, tmp_path: Path) -> None:
    publish(
        tmp_path,
        {"train": table(completion_rows(3), "completions").drop_columns(["score"])},
        world.model,
        kind="completions",
    )
    with pytest.raises(UserError, match="score_rewards v1"):
        run(job(Options(source="v1", reference=world.model), str(tmp_path)))
    with pytest.raises(UserError, match="nothing was published"):
        built(world, min_margin=99.0)
    with pytest.raises(UserError, match="rule"):
        job(replace(Options(), source="v1", rule="best"), world.root)


def test_an_answer_in_no_finite_pair_says_so(world: ScoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    real = making.finite

    def not_all(rows: Any, kind: str) -> pl.Series:
        fine = real(rows, kind).to_list()
        return pl.Series([False, *fine[1:]])

    monkeypatch.setattr(making, "finite", not_all)
    version = built(world, rule="max_min", seed=5)
    lost = [line for line in version.ledger().to_pylist() if line["reason"] == "not_finite"]
    assert len(lost) == 2 * len(world.version.splits)
    assert np.isfinite(version.table("train")["ref_chosen_logps"].to_numpy()).all()
    assert versions.find(version.name, root=world.root).manifest["counts"]["stages"]
