"""Versions of prompts alone: from a source to tokens, statistics, queries and pages; and who can't read them."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefdata import identity, query, report, versions
from prefdata.builds import add_reference, sapo_negatives
from prefdata.builds.job import run
from prefdata.errors import UserError
from prefdata.records import Message, Prompt, SetAside
from prefdata.steps import gate
from prefdata.steps.tokenise import rows as rows_of
from prefdata.tokens import Limits
from prefdata.verify import verify
from schemas import prompts
from tests import tiny_world
from tests.test_builds import all_rows
from tests.test_ingest import do
from tests.test_tokens import renderer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def asked(text: str, **more: Any) -> Prompt:
    return Prompt((Message("user", text),), **more)


def test_prompts_become_a_version_that_adds_up(tmp_path: Path, root: str, model: str) -> None:
    source = write(tmp_path / "x.jsonl", *(f"w{n} w{n % 7}" for n in range(40)), "w1 w1", " ", "w2 \ufffd")
    version = do(root, source, model=model, test_fraction=0.3, license="mit").version
    assert (version.kind, version.schema.names, verify(version)) == ("prompts", prompts.BASE.names, [])
    counts = version.manifest["counts"]
    assert (counts["rows_in"], counts["kept"], counts["set_aside"]) == (43, 40, 3)
    assert {line["reason"] for line in version.ledger().to_pylist()} == {
        None,
        "duplicate_row",
        "prompt_empty",
        "replacement_character",
    }
    rows = all_rows(version)
    assert len({row["row_id"] for row in rows}) == len({row["prompt_id"] for row in rows}) == 40
    assert {row["license"] for row in rows} == {"mit"}
    assert all(row["prompt_tokens"] == len(row["prompt_ids"]) for row in rows)
    assert min(counts["rows"].values()) > 3


def test_a_prompts_tokens_are_those_before_an_answer(tmp_path: Path, root: str, model: str) -> None:
    alone = do(root, write(tmp_path / "x.jsonl", "w1 w2"), model=model, split="train").version
    pairs = tmp_path / "y.jsonl"
    pairs.write_text(json.dumps({"prompt": "w1 w2", "chosen": "w3", "rejected": "w4"}) + "\n")
    answered = do(root, pairs, model=model, split="train").version
    (one,), (other,) = all_rows(alone), all_rows(answered)
    assert (one["prompt_id"], one["prompt_ids"]) == (other["prompt_id"], other["prompt_ids"])
    assert one["row_id"] != other["row_id"]


def test_queries_statistics_card_and_page_know_prompts(tmp_path: Path, root: str, model: str) -> None:
    assert query.sql("select count(*) as n from prompts", root).to_pylist() == [{"n": 0}]
    version = do(root, write(tmp_path / "x.jsonl", "w1", "w2 w3", "w2  w3"), model=model, split="train").version
    assert query.sql("select version, prompt_tokens from prompts order by 2", root).num_rows == 3
    (lengths,) = query.sql("select side, rows, max from lengths", root).to_pylist()
    assert (lengths["side"], lengths["rows"], lengths["max"]) == ("prompt", 3, 2)
    (repeated,) = query.sql(
        "select prompts, rows_sharing_prompt, rows_sharing_good_answer from duplicates", root
    ).to_pylist()
    assert repeated == {"prompts": 3, "rows_sharing_prompt": 0, "rows_sharing_good_answer": 0}
    card = version.storage.read("README.md").decode()
    assert "One row is one prompt, without an answer. Rows: train 3." in card
    page = report.report_version(version)
    assert "prompts without answers" in page.html
    assert "Prompt length" in page.html


def test_nobody_scores_or_regenerates_answers_that_are_not_there(tmp_path: Path, root: str, model: str) -> None:
    source = write(tmp_path / "x.jsonl", "w1", "w2")
    with pytest.raises(UserError, match="prompts hold no answers"):
        do(root, source, model=model, reference=model)
    do(root, source, model=model, split="train")
    for build in (
        lambda: add_reference.AddReference(add_reference.Options(source="v1"), root),
        lambda: sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(source="v1"), root),
    ):
        with pytest.raises(UserError, match="v1 holds prompts, and this reads"):
            run(build())
    with pytest.raises(UserError, match="no version of kind pairs"):
        versions.find("latest", root=root, kinds=("pairs",))


def test_training_on_prompts_is_refused_in_words(tmp_path: Path, root: str, model: str) -> None:
    from trainers import contract
    from trainers.loss import parse

    version = do(root, write(tmp_path / "x.jsonl", "w1"), model=model, split="train").version
    with pytest.raises(UserError, match="holds prompts") as refused:
        contract.check(version, parse("dpo", None, []))
    assert "build_sapo_negatives" not in str(refused.value)


def test_a_prompt_must_leave_room_for_an_answer() -> None:
    of = renderer("qwen25")
    (fits,) = rows_of([asked("The sea?")], of, Limits(64))
    assert isinstance(fits, dict)
    tokens = fits["prompt_tokens"]
    found = [rows_of([asked("The sea?")], of, limits)[0] for limits in (Limits(tokens), Limits(tokens + 3, None, 4))]
    assert [each.reason for each in found if isinstance(each, SetAside)] == ["prompt_too_long", "no_room_for_answer"]


def test_the_gate_judges_prompts() -> None:
    assert gate.check(asked("Hello")) is None
    assert [gate.check(asked(text)) for text in ("", "\ufffd")] == [
        SetAside("prompt_empty"),
        SetAside("replacement_character", "prompt: '\ufffd'"),
    ]


def test_a_prompts_id_is_of_its_kind_text_and_tools() -> None:
    prompt = (Message("user", "Hello"),)
    assert identity.prompt_row_id(prompt) == identity.digest(
        {"kind": "prompts", "prompt": [{"role": "user", "content": "Hello"}], "tools": None}
    )
    assert len({identity.prompt_row_id(prompt), identity.prompt_row_id(prompt, "[1]"), identity.prompt_id(prompt)}) == 3
