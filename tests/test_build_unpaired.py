"""build-unpaired: labels from pairs, scores and votes, weights, frozen partners with their log-probs, and a full ledger."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from prefdata import models, versions
from prefdata.builds.job import run
from prefdata.builds.unpaired import BuildUnpaired, Options
from prefdata.errors import UserError
from prefdata.records import Message
from prefdata.select import unpaired as rules
from prefdata.verify import verify
from prefdata.versions import Version
from tests.scored_world import ScoredWorld, make_world
from tests.tiny_world import completion_rows, pair_rows, publish, table, with_reference
from tests.trainer_world import Talk
from tests.unpaired_world import judged_table

W = [[n, n + 1, n + 2, 2] for n in range(5, 40, 3)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ScoredWorld:
    return make_world(tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="module")
def model(world: ScoredWorld) -> str:
    return world.model


def built(root: str | Path, **options: Any) -> Version:
    return run(BuildUnpaired(Options(**{"source": "v1", **options}), str(root))).version


def reasons(version: Version) -> dict[str, tuple[str, str | None, list[str]]]:
    return {
        line["row_id"]: (line["status"], line["reason"], line["shortfall"]) for line in version.ledger().to_pylist()
    }


def check_partners(version: Version, parent: Version) -> None:
    """Another prompt's answer, none of its own prompt's anywhere, with the log-probs of the row's own prompt before it."""
    for split in version.splits:
        rows = version.table(split).to_pylist()
        answers: dict[str, set[tuple[int, ...]]] = {}
        own: dict[str, str] = {}
        for row in parent.table(split).to_pylist():
            own[row["row_id"]] = row["prompt_id"]
            for side in ("chosen_ids", "rejected_ids", "completion_ids"):
                if side in row:
                    answers.setdefault(row["prompt_id"], set()).add(tuple(row[side]))
        for row in rows:
            other = own[row["partner_row_id"]]
            assert other != row["prompt_id"]
            assert tuple(row["partner_ids"]) in answers[other]
            assert tuple(row["partner_ids"]) not in answers[row["prompt_id"]]


def check_reference(version: Version, model: str) -> None:
    """Every stored log-prob, against sequences read one by one."""
    policy = models.load_model(model)
    for row in version.table("train").slice(0, 6).to_pylist():
        for side in ("completion", "partner"):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            with torch.no_grad():
                logps = policy(input_ids=ids).logits[0].float().log_softmax(-1)
            start = len(row["prompt_ids"])
            expected = [float(logps[start + n - 1, token]) for n, token in enumerate(row[f"{side}_ids"])]
            assert row[f"ref_{side}_token_logps"] == pytest.approx(expected, abs=1e-4)
            assert row[f"ref_{side}_logps"] == pytest.approx(sum(expected), abs=1e-3)


# -- from scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules.RULES)
def test_labels_from_scores_weights_partners_and_the_ledger(world: ScoredWorld, rule: str) -> None:
    version = built(world.root, rule=rule, threshold=2.0)
    assert verify(version) == []
    parent = pl.concat([pl.DataFrame(world.version.table(split)) for split in ("train", "test")])
    known = {row["row_id"]: row for row in parent.to_dicts()}
    bars = parent.group_by("prompt_id").agg(mean=pl.col("score").mean(), median=pl.col("score").median())
    bar = {row["prompt_id"]: row for row in bars.to_dicts()}
    for split in version.splits:
        for row in version.table(split).to_pylist():
            own = known[row["parent_row_id"]]
            assert row["label"] == (own["score"] > (2.0 if rule == "threshold" else bar[own["prompt_id"]][rule]))
            assert (row["completion_ids"], row["score"]) == (own["completion_ids"], own["score"])
    labels = pl.DataFrame(version.table("train")).group_by("label").agg(pl.col("weight").sum(), rows=pl.len())
    assert labels["weight"].n_unique() == 1 or labels["weight"].max() == pytest.approx(labels["weight"].min())
    assert min(version.table("train")["weight"].to_pylist()) == 1.0
    check_partners(version, world.version)
    counts = version.manifest["counts"]
    assert counts["rows_in"] == counts["kept"] + counts["set_aside"] == len(known)


def test_stored_log_probs_are_those_of_the_rows_own_prompt(world: ScoredWorld) -> None:
    check_reference(built(world.root), world.model)


def test_another_threshold_changes_no_partner_and_runs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_world(tmp_path)
    first = built(own.root, rule="threshold", threshold=1.5)

    def no_model(*given: Any, **more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load_model", no_model)
    second = built(own.root, rule="threshold", threshold=2.5, ratio=4 / 3, unit_rows=7)
    assert second.name != first.name
    earlier = {row["parent_row_id"]: row for row in first.table("train").to_pylist()}
    differing = 0
    for row in second.table("train").to_pylist():
        before = earlier[row["parent_row_id"]]
        for name in ("partner_row_id", "partner_ids", "ref_partner_token_logps", "ref_completion_token_logps"):
            assert row[name] == before[name]
        differing += row["label"] != before["label"]
    assert differing  # scores of 2 changed their label, and with it their row_id


def test_shards_change_nothing_and_an_equal_build_does_nothing(tmp_path: Path) -> None:
    own, other = make_world(tmp_path / "a"), make_world(tmp_path / "b")
    first = built(own.root, rule="mean")
    outcome = run(BuildUnpaired(Options(source="v1"), own.root))  # mean is the default for completions
    assert not outcome.published
    assert built(other.root, unit_rows=2).logical_hash == first.logical_hash


# -- from pairs ----------------------------------------------------------------------------------------------------


def pairs_of(model: str, sides: list[tuple[int, int, int]], **columns: list[Any]) -> Any:
    """Pairs of a prompt's number and two answers' numbers."""
    rows = pair_rows(len(sides))
    for place, ((prompt, *answers), row) in enumerate(zip(sides, rows, strict=True)):
        row |= {"prompt_id": f"p{prompt}", "prompt_ids": [3 + prompt, 4], "prompt_tokens": 2}
        row["prompt"] = [Message("user", f"w{prompt} w1").as_dict()]
        for side, number in zip(("chosen", "rejected"), answers, strict=True):
            words = " ".join(f"w{token - 3}" for token in W[number][:-1])
            row |= {side: [Message("assistant", words).as_dict()], f"{side}_ids": W[number], f"{side}_tokens": 4}
        row |= {name: values[place] for name, values in columns.items()}
    return with_reference(table(rows), model)


def labels_of(version: Version) -> dict[tuple[str, tuple[int, ...]], bool]:
    rows = version.table("train").to_pylist()
    found = {(row["prompt_id"], tuple(row["completion_ids"])): row["label"] for row in rows}
    assert len(found) == len(rows)
    return found


def test_pairs_give_two_rows_each_and_what_is_judged_both_ways_none(model: str, tmp_path: Path) -> None:
    # answer 1 of prompt 0 wins once and loses once; answer 0 wins twice and is one row
    sides = [(0, 0, 1), (0, 1, 2), (0, 0, 3), (1, 4, 5)]
    publish(tmp_path, {"train": pairs_of(model, sides)}, model, reference_model=model)
    version = built(tmp_path)
    assert verify(version) == []
    assert labels_of(version) == {
        ("p0", tuple(W[0])): True,
        ("p0", tuple(W[2])): False,
        ("p0", tuple(W[3])): False,
        ("p1", tuple(W[4])): True,
        ("p1", tuple(W[5])): False,
    }
    assert [reason[2] for reason in reasons(version).values()] == [
        ["contradicted"],
        ["contradicted"],
        ["duplicate_answer"],
        [],
    ]
    assert all(status == "kept" for status, _, _ in reasons(version).values())
    check_partners(version, versions.find("v1", root=str(tmp_path)))
    check_reference(version, model)


def test_votes_decide_where_labels_contradict(model: str, tmp_path: Path) -> None:
    # answer 1 wins twice and loses once; answer 3 once each; answer 5 loses, but half of the annotators disagreed
    sides = [(0, 1, 0), (0, 1, 2), (0, 6, 1), (0, 3, 7), (0, 8, 3), (1, 4, 5)]
    publish(
        tmp_path,
        {"train": pairs_of(model, sides, preference=[1.0, 1.0, 1.0, 1.0, 1.0, 0.5])},
        model,
        reference_model=model,
    )
    version = built(tmp_path, rule="votes")
    found = labels_of(version)
    assert found["p0", tuple(W[1])] is True
    assert ("p0", tuple(W[3])) not in found
    assert not any(prompt == "p1" for prompt, _ in found)
    told = list(reasons(version).values())
    assert told[2] == ("kept", None, ["outvoted"])
    assert told[5] == ("set_aside", "tie", [])
    with pytest.raises(UserError, match="nothing was published"):
        built(tmp_path, rule="labels", min_preference=1.1)


def test_pairs_that_are_not_sure_are_set_aside(model: str, tmp_path: Path) -> None:
    sides = [(0, 0, 1), (1, 2, 3), (2, 4, 5)]
    pairs = pairs_of(model, sides, preference=[0.6, 0.9, None])
    publish(tmp_path, {"train": pairs}, model, reference_model=model)
    version = built(tmp_path, min_preference=0.8)
    assert {prompt for prompt, _ in labels_of(version)} == {"p1", "p2"}
    assert next(iter(reasons(version).values()))[1] == "preference_too_low"


# -- from judged rows ----------------------------------------------------------------------------------------------


def test_judged_rows_get_partners_and_weights_twice_over_are_the_same(model: str, tmp_path: Path) -> None:
    rows = judged_table(9, model, seed=3, partners=False)
    publish(tmp_path, {"train": rows}, model, kind="unpaired", reference_model=model)
    version = built(tmp_path)
    assert verify(version) == []
    weighed = {
        label: sum(row["weight"] for row in version.table("train").to_pylist() if row["label"] is label)
        for label in (True, False)
    }
    assert weighed[True] == pytest.approx(weighed[False])
    again = built(tmp_path, source="v2")
    assert [row["weight"] for row in again.table("train").to_pylist()] == pytest.approx(
        [row["weight"] for row in version.table("train").to_pylist()]
    )
    assert again.table("train")["label"].to_pylist() == version.table("train")["label"].to_pylist()


def test_empty_answers_and_rows_that_have_no_partner_go_to_the_ledger(model: str, tmp_path: Path) -> None:
    rows = completion_rows(5)
    for place, row in enumerate(rows):
        row["score"] = float(place)
    rows[1] |= {"completion": [Message("assistant", " \n").as_dict()]}
    rows[2] |= {"completion_ids": [2], "completion_tokens": 1}
    for row in rows[3:]:
        row |= {name: rows[3][name] for name in ("completion", "completion_ids", "completion_tokens")}
    publish(tmp_path, {"train": table(rows, "completions")}, model, kind="completions")
    version = built(tmp_path, rule="threshold", threshold=3.5, reference=model)
    found = [reasons(version)[row["row_id"]][:2] for row in rows]
    assert found[1:3] == [("set_aside", "completion_empty")] * 2
    assert [status for status, _ in (found[0], *found[3:])] == ["kept"] * 3
    one = table(rows[3:], "completions")
    publish(tmp_path / "same", {"train": one}, model, kind="completions")
    with pytest.raises(UserError, match="no_partner 2"):
        built(tmp_path / "same", rule="threshold", threshold=3.5, reference=model)


def test_a_partner_is_cut_to_the_room_that_its_prompt_leaves(model: str, tmp_path: Path) -> None:
    from prefdata.tokens import Renderer

    rows = pair_rows(6, seed=4)
    tokenizer = {**Renderer.load(model).fingerprint, "max_length": 11}
    publish(tmp_path, {"train": with_reference(table(rows), model)}, model, reference_model=model, tokenizer=tokenizer)
    version = built(tmp_path)
    assert verify(version) == []
    made = version.table("train").to_pylist()
    assert all(len(row["prompt_ids"]) + len(row["partner_ids"]) <= 11 or len(row["partner_ids"]) == 1 for row in made)
    whole = {row["row_id"]: row for row in rows}
    cut = 0
    for row in made:
        sides = [whole[row["partner_row_id"]][f"{side}_ids"] for side in ("chosen", "rejected")]
        assert any(ids[: len(row["partner_ids"])] == row["partner_ids"] for ids in sides)
        cut += all(ids != row["partner_ids"] for ids in sides)
    assert cut


def test_without_partners_the_columns_are_not_there(world: ScoredWorld) -> None:
    version = built(world.root, partners=False)
    assert verify(version) == []
    assert not [name for name in version.columns() if "partner" in name]


# -- refusals, and training on what is made ------------------------------------------------------------------------


def test_what_cannot_be_judged_is_one_sentence(world: ScoredWorld, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="rule votes does not judge completions; their rules are mean, median, threshold"
    ):
        built(world.root, rule="votes")
    unscored = table(completion_rows(3), "completions").drop_columns(["score"])
    publish(tmp_path, {"train": unscored}, world.model, kind="completions")
    with pytest.raises(UserError, match="score_rewards v1"):
        built(tmp_path, reference=world.model)
    assert "KTO's paper wants 1 to 1.5" in BuildUnpaired(Options(source="v1", ratio=3.0), world.root).notices[-1]


def test_kto_trains_on_what_is_made_and_starts_at_half_a_weight(world: ScoredWorld, tmp_path: Path) -> None:
    from trainers.options import Options as RunOptions
    from trainers.run import train

    version = built(world.root)
    result = train(
        RunOptions(
            data=version.url, loss="kto", lr=1e-3, steps=2, batch_size=4, dtype="float32", out=str(tmp_path / "run")
        ),
        say=Talk(),
    )
    weights = version.table("test")["weight"].to_pylist()
    assert result.before["loss"] == pytest.approx(sum(weights) / len(weights) / 2, abs=1e-3)
    assert result.before["kto/kl"] == pytest.approx(0, abs=1e-3)
