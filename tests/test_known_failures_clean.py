"""Failures that tools which build preference data are known for, as far as they belong to cleaning. None happens here."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefdata import versions
from prefdata.builds import clean
from prefdata.builds.job import Unit
from prefdata.verify import verify
from prefdata.work import Tables
from tests import tiny_world
from tests.test_build_clean import cleaned, completions, ingested, pairs, unpaired
from tests.test_builds import all_rows
from tests.test_ingest import do
from tests.test_known_failures import write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def numbered(number: int) -> str:
    return f"w{number // 50} w{number % 50} w{number % 7} w{number % 11}"


def test_answers_stay_with_their_prompt_whatever_is_set_aside(
    root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers attached to the wrong prompt: a filtered list zipped with an unfiltered one; `dropna` and then a concat by
    position (scripts of open-instruct)."""
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 7)
    rows = [pairs(numbered(n // 2)) | {"chosen": f"{numbered(n // 2)} w51 w{n % 2}"} for n in range(60)]
    parent = {row["row_id"]: row for row in all_rows(ingested(root, model, rows))}
    version = cleaned(root, source="v1", exact="prompts", near="rows", near_threshold=0.5, test_fraction=0.3).version
    kept = all_rows(version)
    assert 0 < len(kept) < len(parent)
    for row in kept:
        assert row == parent[row["row_id"]]
        assert row["chosen"][0]["content"].startswith(row["prompt"][0]["content"])


@pytest.mark.parametrize("files", [1, 3, 8])
def test_the_last_file_is_read_to_its_end(files: int, root: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards drop the tail: N // world (Online-RLHF)."""
    monkeypatch.setattr(versions, "ROWS_PER_FILE", files)
    ingested(root, model, [pairs(numbered(n)) for n in range(17)])
    version = cleaned(root, source="v1", exact="rows").version
    assert len(all_rows(version)) == version.ledger().num_rows == 17


def test_prompts_that_come_again_merge_nothing(root: str, model: str) -> None:
    """Candidates keyed by text: repeated prompts merge (OpenRLHF, RSO's reference code)."""
    rows = [completions(numbered(n)) | {"response": f"w{n} w{m}"} for n in range(4) for m in range(3)]
    ingested(root, model, rows)
    version = cleaned(root, source="v1", exact="prompts", near="prompts").version
    assert len(all_rows(version)) == 12


def test_what_is_held_out_is_neither_merged_nor_split_again(root: str, model: str, tmp_path: Path) -> None:
    """Same prompt in train and test; test pool merged and re-split (most; the Zephyr recipe)."""
    near = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16"
    write(tmp_path / "s" / "test.jsonl", pairs(near), *(pairs(numbered(n)) for n in range(10)))
    write(tmp_path / "s" / "train.jsonl", pairs(f"{near} w17"), *(pairs(numbered(n)) for n in range(100, 130)))
    both = do(root, tmp_path / "s", model=model).version
    version = cleaned(root, source=both.name, test_fraction=0.5, near="prompts").version
    ids = {split: set(version.table(split)["prompt_id"].to_pylist()) for split in ("train", "test")}
    assert set(both.table("test")["prompt_id"].to_pylist()) <= ids["test"]
    assert not ids["train"] & ids["test"]
    leak = next(
        row["row_id"] for row in both.table("train").to_pylist() if row["prompt"][0]["content"] == f"{near} w17"
    )
    assert leak not in {row["row_id"] for row in all_rows(version)}
    assert verify(version) == []


def test_rows_judged_both_ways_are_both_kept(root: str, model: str) -> None:
    """Labels merged or read into the wrong class (LLaMA-Factory 3803, TRL): nothing of a label is guessed."""
    rows = [unpaired("w1 w2") | {"label": label} for label in (True, False)]
    ingested(root, model, rows)
    version = cleaned(root, source="v1", exact="rows", near="rows").version
    assert sorted(row["label"] for row in all_rows(version)) == [False, True]


def test_no_row_goes_in_silence(root: str, model: str) -> None:
    """Rows dropped in silence, "Dropped invalid example" (LLaMA-Factory 9600, 4249)."""
    rows: list[dict[str, Any]] = [pairs(numbered(n % 5)) | {"rejected": f"w3 w{n}"} for n in range(20)]
    ingested(root, model, rows)
    version = cleaned(root, source="v1", exact="prompts", near="rows", near_threshold=0.3).version
    lines = version.ledger().to_pylist()
    assert len(lines) == 20
    assert all(line["reason"] and line["detail"] for line in lines if line["status"] == "set_aside")
    counts = version.manifest["counts"]
    assert counts["rows_in"] == counts["kept"] + counts["set_aside"] == 20


def test_what_was_stopped_half_way_is_no_result_and_goes_on(
    root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed pipeline does not resume; after Ctrl-C it returned 320 of 2,000 rows as if finished (distilabel 1065)."""
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 4)
    ingested(root, model, [pairs(f"{numbered(n)} ab@cd.de") for n in range(16)])
    read, computed = clean.ReadStage.compute, []

    def stopped(self: clean.ReadStage, unit: Unit) -> Tables:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(unit.key)
        return read(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(clean.ReadStage, "compute", stopped)
        with pytest.raises(KeyboardInterrupt):
            cleaned(root, source="v1", exact="rows", private_data="mask")
    assert [version.name for version in versions.every(root)] == ["v1"]
    outcome = cleaned(root, source="v1", exact="rows", private_data="mask")
    assert outcome.computed + outcome.reused == 8
    assert outcome.reused >= 5  # four masked files, and those that were read
    assert len(all_rows(outcome.version)) == 16


def test_a_masked_answer_that_was_cut_has_no_end_token(root: str, model: str) -> None:
    """finish_reason dropped; a cut-off answer gets an EOS and looks finished (nearly every sampler; OpenRLHF)."""
    row = {"prompt": "w1", "chosen": "ab@cd.de " + "w2 " * 30, "rejected": "w3"}
    ingested(root, model, [row], max_length=20)
    version = cleaned(root, source="v1", private_data="mask").version
    (found,) = all_rows(version)
    assert found["chosen"][0]["content"].startswith("[EMAIL] w2")
    assert (found["chosen_finish"], found["rejected_finish"]) == ("length", "stop")
    assert found["chosen_ids"][-1] not in version.manifest["tokenizer"]["end_ids"]


def test_one_row_that_can_not_be_masked_voids_nothing_but_itself(root: str, model: str) -> None:
    """One bad row voids its batch of 50, the rest flows on as nulls (distilabel)."""
    rows = [pairs(f"{numbered(n)} +49 30 1234567") for n in range(60)]
    rows[25] |= {"chosen": "w2 +49 30 1234567", "rejected": "w2 +49 301234567"}  # equal once they are masked
    ingested(root, model, rows)
    version = cleaned(root, source="v1", private_data="mask").version
    why = Counter(line["reason"] for line in version.ledger().to_pylist())
    assert why == {None: 59, "identical_tokens": 1}
    assert verify(version) == []
    assert all(row["chosen_ids"] and row["rejected_ids"] and row["prompt_ids"] for row in all_rows(version))
