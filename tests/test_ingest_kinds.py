"""Ingest of sources whose rows say several things, or none alone: counts, ledger, groups, kinds, log-probs at once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefdata import query, versions
from prefdata.builds import add_reference, scoring, tokenise
from prefdata.builds.job import run
from prefdata.errors import UserError
from prefdata.verify import verify
from tests import tiny_world
from tests.test_builds import all_rows, sapo, write_pairs
from tests.test_formats import message
from tests.test_ingest import do


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ledger(version: versions.Version) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = version.ledger().to_pylist()
    return found


SCORED = (
    {"prompt": "w1", "responses": ["w2", "w3", "w2", "w4", "w4"], "rewards": [1, 5, 1, 2, 3]},
    {"prompt": "w5", "responses": ["w6"], "rewards": [0]},
    {"prompt": "w7", "responses": ["w8", "w8"], "rewards": [0, 1]},
    {"prompt": "w5", "responses": ["w6"], "rewards": [0]},
)


def test_a_row_of_several_answers_has_one_line_that_counts_them_all(tmp_path: Path, root: str, model: str) -> None:
    version = do(root, write(tmp_path / "x.jsonl", *SCORED), model=model, split="train").version
    assert (version.kind, verify(version)) == ("completions", [])
    lines = ledger(version)
    assert [line["status"] for line in lines] == ["kept", "kept", "set_aside", "set_aside"]
    assert [len(line["made"]) for line in lines] == [2, 1, 0, 0]
    assert lines[0]["shortfall"] == ["repeated_answer", "conflicting_labels", "conflicting_labels"]
    assert [line["reason"] for line in lines[2:]] == ["conflicting_labels", "duplicate_row"]
    found = {(row["prompt"][0]["content"], row["completion"][0]["content"]): row["score"] for row in all_rows(version)}
    assert found == {("w1", "w2"): 1.0, ("w1", "w3"): 5.0, ("w5", "w6"): 0.0}


def trees(count: int) -> list[dict[str, Any]]:
    """Trees of a question, three ranked answers, and two ranked answers one turn later."""
    rows = []
    for n in range(count):
        for name, parent, role, rank in (
            ("q", None, "prompter", None),
            ("a", "q", "assistant", 0),
            ("b", "q", "assistant", 1),
            ("c", "q", "assistant", 2),
            ("r", "a", "prompter", None),
            ("d", "r", "assistant", 0),
            ("e", "r", "assistant", 1),
            ("z", "b", "prompter", None),
        ):
            text = " ".join(f"w{(ord(name) + digit) % 60}" for digit in (n, 7 * n + 3, n // 3))
            row = message(f"{name}{n}", parent and f"{parent}{n}", role, rank, message_tree_id=f"tree {n}", text=text)
            rows.append(row)
    return rows


@pytest.mark.parametrize("unit_rows", [5, 2048])
def test_pairs_of_a_tree_are_made_once_from_all_their_messages(
    unit_rows: int, tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "UNIT_ROWS", unit_rows)  # trees that straddle units, and one unit for all
    version = do(root, write(tmp_path / "x.jsonl", *trees(12)), model=model, test_fraction=0.4).version
    assert verify(version) == []
    rows = all_rows(version)
    assert len(rows) == 12 * 4
    lines = ledger(version)
    assert Counter(line["reason"] for line in lines) == {None: 12 * 7, "not_compared": 12}
    assert [len(line["made"]) for line in lines[:7]] == [4, 3, 2, 2, 1, 1, 1]
    splits = [{row["row_id"] for row in version.table(split).to_pylist()} for split in ("train", "test")]
    for start in range(0, len(lines), 8):
        tree = {row for line in lines[start : start + 8] for row in line["made"]}
        assert any(tree <= split for split in splits)  # all of a tree on one side
    assert all(splits)


def test_unit_size_changes_no_row_of_a_tree(
    tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "x.jsonl", *trees(9))
    whole = do(root, source, model=model).version
    monkeypatch.setattr(tokenise, "UNIT_ROWS", 3)
    parts = do(str(tmp_path / "other"), source, model=model).version
    assert whole.logical_hash == parts.logical_hash
    assert ledger(whole) == ledger(parts)


@pytest.mark.parametrize(
    ("change", "made", "reasons"),
    [
        ({"message_id": "new", "parent_id": "q0", "role": "assistant", "rank": -1}, [7, 4], []),
        ({"message_id": "b0", "parent_id": "q0", "role": "assistant", "rank": 1, "deleted": True}, [2, 2], []),
    ],
)
def test_a_row_that_changes_changes_what_the_others_of_its_tree_say(
    change: dict[str, Any],
    made: list[int],
    reasons: list[str],
    tmp_path: Path,
    root: str,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The units of rows that did not change themselves must not be taken for done."""
    monkeypatch.setattr(tokenise, "UNIT_ROWS", 2)
    rows = [row for row in trees(1) if row["message_id"] != change["message_id"]]
    before = [row for row in trees(1) if row["message_id"] == change["message_id"]]
    source = write(tmp_path / "x.jsonl", *rows, *before)
    do(root, source, model=model, test_fraction=0.0)
    write(source, *rows, {**message("x", None, "prompter"), "message_tree_id": "tree 0", "text": "w1 w2", **change})
    changed = do(root).version
    fresh = do(str(tmp_path / "fresh"), source, model=model, test_fraction=0.0).version
    assert ledger(changed) == ledger(fresh)
    assert changed.logical_hash == fresh.logical_hash
    assert [len(line["made"]) for line in ledger(changed)[:2]] == made


def test_a_tree_in_two_files_is_read_once_and_repeated_once(tmp_path: Path, root: str, model: str) -> None:
    folder = tmp_path / "trees"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write(folder / name, *trees(1))
    version = do(root, folder, model=model).version
    assert verify(version) == []
    reasons = Counter(line["reason"] for line in ledger(version))
    assert reasons == {None: 7, "duplicate_row": 7, "not_compared": 2}


def test_what_could_not_be_scored_is_missing_from_every_message_it_is_made_of(
    tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "UNIT_ROWS", 2)
    whole = scoring.finite

    def first_is_not(kind: str, rows: pa.Table) -> pa.Array:
        found = whole(kind, rows).to_pylist()
        return pa.array([False, *found[1:]])

    monkeypatch.setattr(scoring, "finite", first_is_not)
    version = do(root, write(tmp_path / "x.jsonl", *trees(3)), model=model, reference=model, test_fraction=0.0).version
    assert verify(version) == []
    assert any("not_finite" in line["shortfall"] for line in ledger(version))


@pytest.mark.parametrize("swap", [False, True])
def test_rows_that_differ_only_in_their_labels_are_all_set_aside(
    swap: bool, tmp_path: Path, root: str, model: str
) -> None:
    rows = [
        {"prompt": "w1", "text": "w2", "reward": 1},
        {"prompt": "w1", "text": "w3", "reward": 1},
        {"prompt": "w1", "text": "w3", "reward": 1},
        {"prompt": "w1", "text": "w2", "reward": 9},
    ]
    version = do(root, write(tmp_path / "x.jsonl", *(rows[::-1] if swap else rows)), model=model, split="train").version
    assert Counter(line["reason"] for line in ledger(version)) == {
        None: 1,
        "duplicate_row": 1,
        "conflicting_labels": 2,
    }
    assert [row["completion"][0]["content"] for row in all_rows(version)] == ["w3"]


def test_a_header_is_part_of_what_a_csv_row_says(tmp_path: Path, root: str, model: str) -> None:
    source = tmp_path / "x.csv"
    source.write_text("prompt,chosen,rejected\nw1,w2,w3\n")
    do(root, source, model=model, split="train")
    source.write_text("prompt,rejected,chosen\nw1,w2,w3\n")
    assert [row["chosen"][0]["content"] for row in all_rows(do(root).version)] == ["w3"]


def test_the_name_that_rows_carry_is_the_one_of_this_ingest(tmp_path: Path, root: str, model: str) -> None:
    (tmp_path / "folder").mkdir()
    source = write(tmp_path / "folder" / "file.jsonl", {"prompt": "w1", "text": "w2", "reward": 1})
    do(root, source, model=model, split="train")
    again = do(root, tmp_path / "folder").version
    assert {row["source"] for row in all_rows(again)} == {source["name"] for source in again.manifest["sources"]}


def test_judged_answers_are_a_kind_of_their_own(tmp_path: Path, root: str, model: str) -> None:
    source = write(
        tmp_path / "x.jsonl",
        {"prompt": "w1", "completion": "w2", "label": True},
        {"prompt": "w1", "completion": "w2", "label": False},
        {"prompt": "w1", "completion": "w3", "label": False, "weight": 0.5},
        {"prompt": "w1", "completion": "w4", "label": False, "weight": 0},
        {"prompt": "w1", "completion": " ", "label": True},
    )
    version = do(root, source, model=model, split="train").version
    assert (version.kind, verify(version)) == ("unpaired", [])
    assert [(row["label"], row["weight"]) for row in all_rows(version)] == [(True, None), (False, None), (False, 0.5)]
    assert [line["reason"] for line in ledger(version)][3:] == ["weight_out_of_range", "completion_empty"]
    scored = run(add_reference.AddReference(add_reference.Options(source="v1"), root)).version
    assert verify(scored) == []
    assert all(row["ref_completion_logps"] < 0 for row in all_rows(scored))
    labels = query.sql(
        "select label, rows, weight, sharing_prompt_with_other_label as both from labels where version = 'v1' order by label desc",
        root,
    )
    assert labels.to_pylist() == [
        {"label": True, "rows": 1, "weight": 1.0, "both": 1},
        {"label": False, "rows": 2, "weight": 1.5, "both": 2},
    ]


def test_a_source_without_verdicts_is_no_judged_source(tmp_path: Path, root: str, model: str) -> None:
    with pytest.raises(UserError, match=r"all 1 rows were set aside \(missing_field 1\)"):
        do(root, write(tmp_path / "x.jsonl", {"prompt": "w1", "completion": "w2"}), model=model, format="unpaired")
    assert not versions.every(root)


def test_log_probs_at_once_are_those_of_add_reference(tmp_path: Path, root: str, model: str) -> None:
    source = write_pairs(tmp_path / "x.jsonl", 40)
    do(root, source, model=model, test_fraction=0.2)
    later = run(add_reference.AddReference(add_reference.Options(source="v1"), root)).version
    at_once = do(root, source, model=model, test_fraction=0.2, reference=model).version
    assert verify(at_once) == []
    assert at_once.manifest["reference"]["fingerprint"] == later.manifest["reference"]["fingerprint"]
    assert at_once.logical_hash == later.logical_hash
    for split in ("train", "test"):
        assert at_once.table(split).select(later.schema.names) == later.table(split)


def test_a_reference_of_another_tokenizer_is_refused_before_a_row_is_read(
    tmp_path: Path, root: str, model: str
) -> None:
    other = tiny_world.save_model(tmp_path / "other", words=50)
    with pytest.raises(UserError, match="another tokenizer than this ingest"):
        do(root, write_pairs(tmp_path / "x.jsonl", 5), model=model, reference=other)
    assert not versions.every(root)


def test_only_the_best_scored_answers_of_a_prompt_are_good_answers(tmp_path: Path, root: str, model: str) -> None:
    rows = (
        {"prompt": "w1", "responses": ["w2 w9", "w3 w9", "w4 w9"], "rewards": [1, 5, 5]},
        {"prompt": "w5", "responses": ["w6 w9"], "rewards": [0]},
    )
    do(root, write(tmp_path / "x.jsonl", *rows), model=model, split="train")
    built = sapo(Path(root), seed=1).version
    assert {row["chosen"][0]["content"] for row in all_rows(built)} == {"w3 w9", "w4 w9", "w6 w9"}
    assert Counter(line["reason"] for line in ledger(built)) == {None: 3, "lower_score": 1}
