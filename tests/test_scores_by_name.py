"""Several scores of one answer, by name, and who wrote it: in rows, hashes, checks and statistics."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefdata import logical, query
from prefdata.builds import add_reference, tokenise
from prefdata.builds.job import run
from prefdata.verify import verify
from schemas import completions, pairs
from tests import tiny_world
from tests.published import completion, pair, rows_table
from tests.source_rows import HELPSTEER2_PREFERENCE, Row, rated, ultrafeedback
from tests.test_builds import all_rows
from tests.test_ingest import do


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def write(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asking(prompt: str, *answers: Row) -> Row:
    return {**ultrafeedback(*answers), "instruction": prompt}


def test_scores_and_generators_are_columns_of_the_version(tmp_path: Path, root: str, model: str) -> None:
    best = rated("w2", "5", "5", "4", "5", overall=9.0, model="gpt-4")
    buggy = rated("w3", "1", "1", "1", "1", overall=10.0, model="bard")
    version = do(root, write(tmp_path / "x.jsonl", asking("w1", best, buggy)), model=model, split="train").version
    assert verify(version) == []
    first, second = all_rows(version)
    assert (first["score"], first["generator"], first["method"]) == (4.75, "gpt-4", "model")
    assert (second["score"], second["generator"]) == (1.0, "bard")
    assert {each["scorer"]: each["score"] for each in second["scores"]} == {
        "instruction_following": 1.0,
        "honesty": 1.0,
        "truthfulness": 1.0,
        "helpfulness": 1.0,
        "overall_score": 10.0,
    }
    for name in ("scores", "generator"):
        assert version.schema.field(name).metadata[b"meaning"]
    spread = query.sql("select score, rows, mean from scores order by all", root).to_pylist()
    assert {"score": "overall_score", "rows": 2, "mean": 9.5} in spread
    assert {"score": "completion", "rows": 2, "mean": 2.875} in spread
    scored = run(add_reference.AddReference(add_reference.Options(source="v1"), root)).version
    assert [row["scores"] for row in all_rows(scored)] == [first["scores"], second["scores"]]
    assert verify(scored) == []


def test_a_version_has_the_columns_that_any_of_its_rows_has(
    tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "UNIT_ROWS", 1)
    named = rated("w2", "5", "5", "5", "5", model="gpt-4")
    nameless = {**rated("w3", "1", "1", "1", "1"), "model": None}
    source = write(tmp_path / "x.jsonl", asking("w1", nameless), asking("w2", named), asking("w3", nameless))
    version = do(root, source, model=model, split="train").version
    assert verify(version) == []
    assert [row["generator"] for row in all_rows(version)] == [None, "gpt-4", None]
    plain = do(root, write(tmp_path / "y.jsonl", {"prompt": "w1", "text": "w2", "reward": 1}), split="train").version
    assert plain.schema.names == completions.BASE.names


def test_the_order_of_a_rows_scores_changes_no_hash_and_their_values_do() -> None:
    scores = [{"scorer": name, "score": float(n)} for n, name in enumerate("abcd")]

    def hashed(scores: Any) -> str:
        found = logical.LogicalHash()
        schema = logical.schema_of("completions", completions.OPTIONAL, completions.REFERENCE)
        found.add("train", pa.Table.from_pylist([completion([1, 2], scores=scores)], schema=schema))
        return found.hexdigest()

    def without_column() -> str:
        found = logical.LogicalHash()
        found.add("train", rows_table("completions", [completion([1, 2])]))
        return found.hexdigest()

    shuffled = random.Random(0).sample(scores, len(scores))
    assert shuffled != scores
    assert hashed(scores) == hashed(shuffled)
    assert hashed(None) == hashed([]) == without_column()
    changed = [*scores[:-1], {"scorer": "d", "score": 9.0}]
    renamed = [*scores[:-1], {"scorer": "e", "score": 3.0}]
    assert len({hashed(each) for each in (scores, changed, renamed, scores[:-1], None)}) == 5


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([{"scorer": None, "score": 1.0}], "scores holds nulls"),
        ([{"scorer": "a", "score": None}], "scores holds nulls"),
        ([None], "scores holds nulls"),
        ([{"scorer": "a", "score": float("inf")}], "scores holds values that are not finite"),
        ([{"scorer": "a", "score": 1.0}, {"scorer": "a", "score": 1.0}], "scores names a scorer twice in one row"),
        ([], None),
        (None, None),
    ],
)
def test_scores_are_checked(scores: Any, problem: str | None) -> None:
    schema = logical.schema_of("completions", completions.OPTIONAL)
    rows = [completion([1, 2], prompt="q", scores=[{"scorer": "a", "score": 1.0}]), completion([1, 2], scores=scores)]
    table = pa.Table.from_pylist(rows, schema=schema)
    assert logical.row_problems("completions", table) == ([problem] if problem else [])
    wrong = table.set_column(table.schema.get_field_index("generator"), "generator", pa.nulls(2, pa.int32()))
    assert logical.row_problems("completions", wrong) == ["column generator is int32, expected string"]


def test_answers_that_differ_in_one_score_are_in_conflict(tmp_path: Path, root: str, model: str) -> None:
    one, same = (asking("w1", rated("w2", "5", "5", "4", "5")) for _ in range(2))
    other = asking("w1", rated("w2", "5", "5", "5", "4"))  # the same mean
    agreed = do(root, write(tmp_path / "x.jsonl", one, same), model=model, split="train").version
    assert Counter(line["reason"] for line in agreed.ledger().to_pylist()) == {None: 1, "duplicate_row": 1}
    sound = asking("w5", rated("w6", "1", "1", "1", "1"))
    mixed = do(root, write(tmp_path / "y.jsonl", one, other, sound), split="train").version
    assert Counter(line["reason"] for line in mixed.ledger().to_pylist()) == {"conflicting_labels": 2, None: 1}


def test_a_margin_that_the_source_states_is_a_label(tmp_path: Path, root: str, model: str) -> None:
    row = {**HELPSTEER2_PREFERENCE, "prompt": "w1", "response_1": "w2", "response_2": "w3"}
    rows = [{**row, "preference_strength": strength} for strength in (1, 3)]
    other = {**row, "prompt": "w4", "preference_strength": -2}
    version = do(root, write(tmp_path / "x.jsonl", *rows, other), model=model, split="train").version
    assert verify(version) == []
    assert [line["reason"] for line in version.ledger().to_pylist()] == [
        "conflicting_labels",
        "conflicting_labels",
        None,
    ]
    assert [(found["chosen"][0]["content"], found["margin"]) for found in all_rows(version)] == [("w2", 2.0)]


def test_a_stated_margin_is_part_of_the_hash_and_a_derived_one_is_not() -> None:
    def hashed(**columns: Any) -> str:
        found = logical.LogicalHash()
        table = pa.Table.from_pylist([pair([1, 2], [1, 3], **columns)], schema=logical.schema_of(pairs.KIND))
        found.add("train", table)
        return found.hexdigest()

    assert len({hashed(), hashed(margin=1.0), hashed(margin=2.0)}) == 3
    scores = {"chosen_score": 2.0, "rejected_score": 1.0}
    assert hashed(**scores) == hashed(**scores, margin=1.0)
