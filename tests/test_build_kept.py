"""build-rejection-samples and build-greedy-baselines: rows, columns, statistics and ledgers, in both outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefdata.builds import greedy_baselines, rejection
from prefdata.builds.job import run
from prefdata.select import rejection as rules
from prefdata.select.answers import answers
from prefdata.verify import verify
from prefdata.versions import Version
from tests.scored_world import ScoredWorld, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ScoredWorld:
    return make_world(tmp_path_factory.mktemp("kept"))


def accepted(world: ScoredWorld, **options: Any) -> Version:
    given = rejection.Options(source="v1", reference=world.model, **{"accept": 3, "beta": 1.0, **options})
    return run(rejection.job(given, world.root)).version


def compared(world: ScoredWorld, **options: Any) -> Version:
    given = greedy_baselines.Options(source="v1", reference=world.model, **options)
    return run(greedy_baselines.job(given, world.root)).version


def lines(version: Version, split: str) -> pl.DataFrame:
    return answers([version.table(split)])


BUILDS: dict[str, Callable[[ScoredWorld], Version]] = {
    "accepted pairs": lambda world: accepted(world),
    "accepted completions": lambda world: accepted(world, output="completions"),
    "advantages": lambda world: compared(world),
    "against greedy": lambda world: compared(world, output="pairs", pairs_per_prompt=2),
}


@pytest.mark.parametrize("name", BUILDS)
def test_every_row_of_the_parent_is_accounted_for(world: ScoredWorld, name: str) -> None:
    version = BUILDS[name](world)
    assert verify(version) == []
    ledger = version.ledger().to_pylist()
    parents = {row_id for split in world.version.splits for row_id in world.version.table(split)["row_id"].to_pylist()}
    assert sorted(line["row_id"] for line in ledger) == sorted(parents)
    made = {row_id for line in ledger for row_id in line["made"]}
    assert made == {row_id for split in version.splits for row_id in version.table(split)["row_id"].to_pylist()}
    assert version.manifest["reference"]
    column = "ref_chosen_logps" if version.kind == "pairs" else "ref_completion_logps"
    assert version.table("train")[column].null_count == 0


@pytest.mark.parametrize("rule", rules.RULES)
def test_accepted_completions_are_those_of_the_rule(world: ScoredWorld, rule: str) -> None:
    version = accepted(world, rule=rule, output="completions")
    for split in version.splits:
        expected = rules.select(lines(world.version, split), rule, accept=3, beta=1.0)
        found = version.table(split).select(["row_id", "accepted_place"]).to_pylist()
        assert [(row["row_id"], row["accepted_place"]) for row in found] == expected.rows.select(
            "row_id", "place"
        ).rows()
    told = {row["split"]: row for row in version.read(stats(version, "acceptance")).to_pylist()}
    for split in version.splits:
        assert told[split]["accepted"] == version.table(split).num_rows
        assert told[split]["score_after"] >= told[split]["score_before"] - 1e-9


def stats(version: Version, name: str) -> Any:
    return next(entry for entry in version.files("stats") if entry["path"] == f"stats/{name}.parquet")


def test_pairs_of_accepted_candidates_are_accepted_both_and_meet_once(world: ScoredWorld) -> None:
    version = accepted(world)
    for split in version.splits:
        kept = set(rules.select(lines(world.version, split), "statistical", accept=3, beta=1.0).rows["row_id"])
        used = [row[side] for row in version.table(split).to_pylist() for side in ("chosen_row_id", "rejected_row_id")]
        assert set(used) <= kept
        assert len(used) == len(set(used))  # a first round: each candidate once
        assert set(version.table(split)["method"].to_pylist()) == {"statistical+first_round"}


def test_advantages_are_measured_from_the_greedy_completion(world: ScoredWorld) -> None:
    version = compared(world)
    rows = {row["row_id"]: row for row in world.version.table("train").to_pylist()}
    found = version.table("train").to_pylist()
    assert found
    for row in found:
        baseline = rows[row["baseline_row_id"]]
        assert baseline["method"] == "greedy"
        assert baseline["prompt_id"] == row["prompt_id"]
        assert row["advantage"] == row["score"] - baseline["score"]
        assert row["completion_ids"] == rows[row["row_id"]]["completion_ids"]
    told = version.read(stats(version, "advantages")).to_pylist()[0]
    assert told["mean"] == pytest.approx(sum(row["advantage"] for row in found) / len(found))
    reasons = {line["reason"] for line in version.ledger().to_pylist() if line["reason"]}
    assert {"baseline", "no_score"} <= reasons


def test_pairs_against_greedy_go_in_either_order(world: ScoredWorld) -> None:
    version = compared(world, output="pairs", pairs_per_prompt=4)
    rows = {row["row_id"]: row for row in world.version.table("train").to_pylist()}
    orders = set()
    for pair in version.table("train").to_pylist():
        methods = [rows[pair[side]]["method"] for side in ("chosen_row_id", "rejected_row_id")]
        assert sorted(methods) == ["greedy", "sampled"]
        assert pair["chosen_score"] > pair["rejected_score"]
        assert [pair["chosen_method"], pair["rejected_method"]] == methods
        orders.add(methods[0])
    assert orders == {"greedy", "sampled"}


def test_shards_change_nothing(world: ScoredWorld, tmp_path: Path) -> None:
    other = make_world(tmp_path)
    for build, output in ((accepted, "completions"), (accepted, "pairs"), (compared, "pairs")):
        one, two = build(world, output=output), build(other, output=output, unit_rows=2)  # type: ignore[operator]
        assert one.logical_hash == two.logical_hash
