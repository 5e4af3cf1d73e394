"""build-sapo-negatives: which of several segments are kept, and versions of other builds as its source."""

from pathlib import Path
from typing import Any

import pytest

from prefdata import versions
from prefdata.builds import paired, rejection, sapo_negatives, unpaired
from prefdata.builds.generate import Generate
from prefdata.builds.generate import Options as GenerateOptions
from prefdata.builds.job import Outcome, run
from prefdata.errors import UserError
from prefdata.verify import verify
from tests.scored_world import ScoredWorld, make_world
from tests.tiny_world import pair_rows, publish, save_model, table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ScoredWorld:
    """v1: pairs; v2: four negatives for each, all kept."""
    folder = tmp_path_factory.mktemp("hard")
    model, root = save_model(folder / "model"), str(folder / "data")
    publish(folder / "data", {"train": table(pair_rows(30, seed=1))}, model, tokenizer=fingerprint(model))
    world = ScoredWorld(model, versions.find("v1", root=root), root)
    sapo(world, negatives=4)
    return world


def fingerprint(model: str) -> dict[str, Any]:
    from prefdata.tokens import Renderer

    return {**Renderer.load(model).fingerprint, "max_length": 40}


def sapo(world: ScoredWorld, source: str = "v1", **options: Any) -> Outcome:
    given = {"source": source, "model": world.model, "unit_rows": 8, **options}
    return run(sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(**given), world.root))


def rows_of(version: versions.Version) -> list[dict[str, Any]]:
    return [row for split in version.splits for row in version.table(split).to_pylist()]


def mean(row: dict[str, Any]) -> float:
    return float(row["ref_rejected_logps"] / row["rejected_tokens"])


@pytest.mark.parametrize("keep", ["likeliest", "unlikeliest", "random"])
def test_one_of_the_segments_drawn_is_kept_and_nothing_is_computed_for_it(built: ScoredWorld, keep: str) -> None:
    drawn: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(versions.find("v2", root=built.root)):
        drawn.setdefault(row["parent_row_id"], []).append(row)
    outcome = sapo(built, segments_per_answer=4, keep=keep)
    assert (outcome.computed, outcome.published) == (0, True)
    version = outcome.version
    assert verify(version) == []
    kept = {row["parent_row_id"]: row for row in rows_of(version)}
    assert kept.keys() == drawn.keys()
    assert version.table("train").num_rows == len(kept)
    for parent, row in kept.items():
        choose = {"likeliest": max, "unlikeliest": min}.get(keep)
        if choose:
            assert mean(row) == choose(map(mean, drawn[parent]))
        assert row in drawn[parent]
    if keep == "random":
        assert len({row["sample_index"] for row in kept.values()}) == 4
    ledger = {line["row_id"]: line for line in version.ledger().to_pylist()}
    for parent in drawn:
        assert len(ledger[parent]["made"]) + len(ledger[parent]["shortfall"]) == 4
        assert ledger[parent]["shortfall"].count("not_kept") == len(drawn[parent]) - 1


def test_several_may_be_kept_and_all_are_without_a_choice(built: ScoredWorld) -> None:
    two = sapo(built, segments_per_answer=4, negatives=2).version
    one = {row["row_id"] for row in rows_of(sapo(built, segments_per_answer=4).version)}
    assert one < {row["row_id"] for row in rows_of(two)}
    same = sapo(built, segments_per_answer=4, negatives=4, keep="random")
    assert (same.version.name, same.published) == ("v2", False)
    with pytest.raises(UserError, match="segments_per_answer is 2 and negatives 3"):
        sapo(built, segments_per_answer=2, negatives=3)


def test_equal_segments_are_one_candidate(built: ScoredWorld) -> None:
    version = sapo(built, mode="full", temperature=0.0, segments_per_answer=3).version  # all three are the same
    assert verify(version) == []
    for line in version.ledger().to_pylist():
        if line["status"] == "kept":
            assert (len(line["made"]), line["shortfall"]) == (1, ["duplicate_row"] * 2)


# -- sources -------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path: Path) -> ScoredWorld:
    world = make_world(tmp_path, reference=True)
    # as `make_world`, but with the length limit that what generates needs
    first = world.version
    splits = {split: first.table(split) for split in first.splits}
    again = publish(
        Path(world.root),
        splits,
        world.model,
        kind=first.kind,
        reference_model=world.model,
        tokenizer=fingerprint(world.model),
    )
    return ScoredWorld(world.model, again, world.root)


def negatives_of(world: ScoredWorld, source: versions.Version, side: str) -> list[dict[str, Any]]:
    """Of the answers on this side of a version, checked against them."""
    version = sapo(world, source.name).version
    assert verify(version) == []
    assert version.manifest["parents"][0]["version"] == source.name
    good = {row["row_id"]: row[f"{side}_ids"] for row in rows_of(source)}
    rows = rows_of(version)
    assert len(rows) > 5
    for row in rows:
        assert row["chosen_ids"] == good[row["parent_row_id"]]
        start, end, rest = row["segment_start"], row["segment_end"], row["segment_source_end"]
        assert row["rejected_ids"][:start] == row["chosen_ids"][:start]
        assert row["rejected_ids"][end:] == ([] if row["ended_early"] else row["chosen_ids"][rest:])
    return rows


def test_winners_of_selected_pairs_are_good_answers(scored: ScoredWorld) -> None:
    pairs = run(paired.BuildPaired(paired.Options(source=scored.version.name), scored.root)).version
    rows = negatives_of(scored, pairs, "chosen")
    scores = {row["row_id"]: row["chosen_score"] for row in rows_of(pairs)}
    assert all(row["chosen_score"] == scores[row["parent_row_id"]] for row in rows)


@pytest.mark.parametrize(("output", "side"), [("completions", "completion"), ("pairs", "chosen")])
def test_accepted_answers_are_good_answers(scored: ScoredWorld, output: str, side: str) -> None:
    options = rejection.Options(source=scored.version.name, output=output)
    accepted = run(rejection.job(options, scored.root)).version
    negatives_of(scored, accepted, side)


def test_generated_samples_are_good_answers(scored: ScoredWorld) -> None:
    options = GenerateOptions(source=scored.version.name, model=(scored.model,), samples=2, max_new_tokens=8)
    samples = run(Generate(options, scored.root)).version
    negatives_of(scored, samples, "completion")


def test_desirable_answers_of_judged_ones_are_good_answers(scored: ScoredWorld) -> None:
    judged = run(unpaired.BuildUnpaired(unpaired.Options(source=scored.version.name), scored.root)).version
    labels = {row["row_id"]: row["label"] for row in rows_of(judged)}
    rows = negatives_of(scored, judged, "completion")
    assert all(labels[row["parent_row_id"]] for row in rows)
    lines = {line["row_id"]: line for line in versions.find("latest", root=scored.root).ledger().to_pylist()}
    assert {lines[row]["reason"] for row, label in labels.items() if not label} == {"judged_undesirable"}


def test_an_earlier_round_is_written_anew_by_a_newer_model(scored: ScoredWorld, tmp_path: Path) -> None:
    pairs = run(paired.BuildPaired(paired.Options(source=scored.version.name), scored.root)).version
    first = sapo(scored, pairs.name).version
    newer = save_model(tmp_path / "newer", seed=5)
    second = sapo(ScoredWorld(newer, first, scored.root), first.name).version
    assert verify(second) == []
    assert (first.manifest["round"], second.manifest["round"]) == (1, 2)
    before, after = rows_of(first), rows_of(second)
    assert {tuple(row["chosen_ids"]) for row in after} <= {tuple(row["chosen_ids"]) for row in before}
    assert not {row["row_id"] for row in after} & {row["row_id"] for row in before}
    assert {row["generator"] for row in after} != {row["generator"] for row in before}
    assert second.manifest["generator"]["digest"] == second.manifest["reference"]["digest"]
    assert second.manifest["reference"]["digest"] != first.manifest["reference"]["digest"]
