"""Masking: other text has other tokens, ids and no log-probs; what can't be made again is set aside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefdata import versions
from prefdata.builds.clean import Clean, Options
from prefdata.errors import UserError
from prefdata.tokens import Limits, Renderer
from prefdata.verify import verify
from schemas import completions, pairs
from schemas.embeddings import COLUMN, EMBEDDED
from tests import tiny_world
from tests.test_build_clean import KINDS, cleaned, ingested, reasons
from tests.test_builds import all_rows
from tests.test_ingest import do
from tests.test_known_failures import write

SECRET, SAFE = "w1 +49 30 1234567 w2 ab@cd.de", "w1 [PHONE] w2 [EMAIL]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def said_in(row: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(row).replace(old, new))
    return changed


@pytest.mark.parametrize("make", KINDS, ids=[make.__name__ for make in KINDS])
def test_masked_rows_are_those_of_an_ingest_of_masked_text(
    make: Callable[[str], dict[str, Any]], root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [said_in(make(text), "w1 w2", text) for text in ("w7", SECRET, f"w8 {SECRET}", "w9")]
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 3)
    parent = ingested(root, model, rows)
    expected = ingested(root, model, [said_in(row, SECRET, SAFE) for row in rows], "masked.jsonl")
    version = cleaned(root, source="v1", private_data="mask").version
    assert verify(version) == []
    assert version.logical_hash == expected.logical_hash
    strip = {"source", "private_data"}
    for row, same in zip(all_rows(version), all_rows(expected), strict=True):
        assert {k: v for k, v in row.items() if k not in strip} == {k: v for k, v in same.items() if k not in strip}
    assert [row["private_data"] for row in all_rows(version)] == [None, ["email", "phone"], ["email", "phone"], None]
    lines = version.ledger().to_pylist()
    assert [line["row_id"] for line in lines] == [row["row_id"] for row in all_rows(parent)]
    assert [line["made"] for line in lines] == [[row["row_id"]] for row in all_rows(version)]


def test_log_probs_of_old_tokens_go_and_it_is_told(root: str, model: str) -> None:
    ingested(root, model, [{"prompt": "w1", "chosen": f"w2 {SECRET}", "rejected": "w3"}], reference=model)
    job = Clean(Options(private_data="mask"), root)
    assert any("without log-probs" in notice for notice in job.notices)
    version = cleaned(root, private_data="mask").version
    assert version.manifest["reference"] is None
    assert not [name for name in version.columns() if name.startswith("ref_")]
    ingested(root, model, [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}], "plain.jsonl", reference=model)
    plain = cleaned(root, source="v3", private_data="mask").version
    assert plain.manifest["reference"]["name"] == model
    assert "ref_chosen_logps" in plain.columns()


def test_rows_whose_tokens_are_not_those_of_their_text_are_set_aside(model: str, tmp_path: Path) -> None:
    rows = tiny_world.completion_rows(4)
    for row in rows[:3]:
        row["completion"] = [{"role": "assistant", "content": SECRET}]
    rows[1] |= {"completion_ids": [4, 0, 0, 0, 5, 0, 2], "completion_tokens": 7}  # those of its text
    rows[2] |= {**{name: rows[1][name] for name in ("completion_ids", "completion_tokens")}, "sample_index": 0}
    table = tiny_world.table(rows, completions.KIND)
    index = completions.SAMPLED.field("sample_index")
    table = table.append_column(index, pa.array([row.get("sample_index") for row in rows], index.type))
    tokenizer = Renderer.load(model).fingerprint | Limits(64).as_dict()
    tiny_world.publish(tmp_path / "data", {"train": table}, model, kind=completions.KIND, tokenizer=tokenizer)
    version = cleaned(str(tmp_path / "data"), private_data="mask").version
    assert verify(version) == []
    assert reasons(version) == ["tokens_not_from_text", None, "tokens_not_from_text", None]
    details = [line["detail"] for line in version.ledger().to_pylist()]
    assert details[0] != details[2]
    assert all_rows(version)[0]["completion"][0]["content"] == SAFE


def test_what_was_measured_on_old_tokens_goes_with_them(model: str, tmp_path: Path) -> None:
    rows = tiny_world.pair_rows(2)
    rows[0]["chosen"] = [{"role": "assistant", "content": SECRET}]
    rows[0] |= {"chosen_ids": [4, 0, 0, 0, 5, 0, 2], "chosen_tokens": 7}
    band = pairs.SELECTED.field("reference_band")
    table = tiny_world.table(rows).append_column(band, pa.array([1, 1], band.type))
    tokenizer = Renderer.load(model).fingerprint | Limits(64).as_dict()
    tiny_world.publish(tmp_path / "data", {"train": table}, model, tokenizer=tokenizer)
    found = all_rows(cleaned(str(tmp_path / "data"), private_data="mask").version)
    assert [row["reference_band"] for row in found] == [None, 1]
    assert found[0]["chosen_ids"] == [4, 0, 5, 0, 2]


@pytest.mark.parametrize(("text", "stays"), [(SECRET, False), ("w2", True)])
def test_embeddings_of_old_prompts_go_too(text: str, stays: bool, root: str, model: str, tmp_path: Path) -> None:
    plain = ingested(root, model, [{"prompt": text}, {"prompt": "w1"}])
    field = EMBEDDED.field(COLUMN)
    table = plain.table("train").append_column(field, pa.array([[1.0], [2.0]], field.type))
    tokenizer = plain.manifest["tokenizer"]
    tiny_world.publish(tmp_path / "other", {"train": table}, model, kind="prompts", tokenizer=tokenizer)
    version = cleaned(str(tmp_path / "other"), private_data="mask").version
    assert (COLUMN in version.columns()) is stays


def test_rows_that_masking_makes_equal_are_one_and_the_held_out_one_stands(
    root: str, model: str, tmp_path: Path
) -> None:
    for split, numbers in (("train", ("30 1234567", "301234567")), ("test", ("30 123 4567",))):  # of 2, 1 and 3 words
        rows = [{"prompt": f"w1 +49 {number}", "chosen": "w2", "rejected": "w3"} for number in numbers]
        write(tmp_path / "s" / f"{split}.jsonl", *rows)
    do(root, tmp_path / "s", model=model)
    version = cleaned(root, source="v1", private_data="mask").version
    assert version.manifest["counts"]["rows"] == {"test": 1}
    assert sorted(map(str, reasons(version))) == ["None", "duplicate_row", "duplicate_row"]
    assert verify(version) == []


def test_steps_after_it_read_what_is_masked(root: str, model: str) -> None:
    ingested(root, model, [{"prompt": f"w1 w2 w3 w4 {mail}@cd.de", "chosen": "w2", "rejected": "w3"} for mail in "ab"])
    assert reasons(cleaned(root, source="v1", exact="prompts").version) == [None, None]
    masked = cleaned(root, source="v1", exact="prompts", private_data="mask", near="rows", test_fraction=0.5).version
    assert sorted(map(str, reasons(masked))) == ["None", "duplicate_row"]


def test_another_tokenizer_in_its_place_is_refused(root: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny_world.save_model(folder)
    ingested(root, str(folder), [{"prompt": SECRET, "chosen": "w2", "rejected": "w3"}])
    tiny_world.save_model(folder, words=61)
    with pytest.raises(UserError, match="is another one than when v1 was made"):
        cleaned(root, private_data="mask")
