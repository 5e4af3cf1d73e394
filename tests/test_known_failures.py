"""Failures that tools which build preference data are known for, as far as they belong to reading. None happens here."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefdata import sources, versions
from prefdata.builds import tokenise
from prefdata.errors import UserError
from prefdata.records import Comparison, SetAside
from prefdata.storage import Storage
from prefdata.verify import verify
from tests import tiny_world
from tests.source_rows import Row, rated, ultrafeedback
from tests.test_builds import all_rows
from tests.test_ingest import do

QUIET = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def write(path: Path, *rows: Row | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(number: int, **change: Any) -> Row:
    """A pair whose prompt and answers all carry the same number."""
    spelled = " ".join(f"w{digit}" for digit in (number // 50, number % 50))
    return {"prompt": spelled, "chosen": f"{spelled} w51", "rejected": f"{spelled} w52"} | change


def reasons(version: versions.Version) -> list[str | None]:
    return [line["reason"] for line in version.ledger().to_pylist()]


BROKEN: tuple[Row | str, ...] = (
    "no JSON",
    "[1]",
    pair(1, chosen=None),
    pair(2, rejected=7),
    pair(3, rejected=""),
    pair(4, prompt=""),
    pair(5, chosen="w1", rejected="w1"),
    pair(6, chosen_score=1, rejected_score=1),
)


@QUIET
@given(
    broken=st.lists(st.tuples(st.integers(0, 30), st.sampled_from(BROKEN)), max_size=6), unit_rows=st.integers(1, 40)
)
def test_answers_stay_with_their_prompt(
    broken: list[tuple[int, Row | str]], unit_rows: int, model: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Answers attached to the wrong prompt: a filtered list zipped with an unfiltered one; `dropna` and then a concat by
    position (scripts of open-instruct)."""
    folder = tmp_path_factory.mktemp("wrong_prompt")
    rows: list[Row | str] = [pair(number) for number in range(30)]
    for place, row in broken:
        rows.insert(place, row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenise, "UNIT_ROWS", unit_rows)
        version = do(str(folder / "data"), write(folder / "x.jsonl", *rows), model=model).version
    kept = all_rows(version)
    assert len(kept) == 30
    for row in kept:
        asked = row["prompt"][0]["content"]
        assert row["chosen"][0]["content"] == f"{asked} w51"
        assert row["rejected"][0]["content"] == f"{asked} w52"
        assert row["chosen_ids"][: len(row["prompt_ids"])] == row["prompt_ids"]


def test_one_bad_row_voids_nothing_but_itself(tmp_path: Path, root: str, model: str) -> None:
    """One bad row voids its batch of 50, the rest flows on as nulls (distilabel)."""
    rows: list[Row | str] = [pair(number) for number in range(120)]
    rows[25] = "no JSON"
    rows[77] = pair(77, chosen=[{"role": "assistant", "content": 7}])
    version = do(root, write(tmp_path / "x.jsonl", *rows), model=model, split="train").version
    assert Counter(reasons(version)) == {None: 118, "unreadable_row": 1, "wrong_type": 1}
    assert verify(version) == []
    assert all(row["chosen_ids"] and row["rejected_ids"] and row["prompt_ids"] for row in all_rows(version))


def test_tied_scores_give_no_pair(tmp_path: Path, root: str, model: str) -> None:
    """All-tied scores give chosen == rejected (distilabel)."""
    tied = [pair(n, chosen_score=4, rejected_score=4) for n in range(3)]
    version = do(root, write(tmp_path / "x.jsonl", *tied, pair(9)), model=model, split="train").version
    assert reasons(version) == ["equal_scores"] * 3 + [None]
    scored = {"prompt": "w1", "responses": ["w2", "w3"], "rewards": [1, 1]}
    both = do(root, write(tmp_path / "y.jsonl", scored), split="train").version
    assert (both.kind, [row["score"] for row in all_rows(both)]) == ("completions", [1.0, 1.0])


def test_a_pair_whose_difference_is_cut_off_is_no_pair(tmp_path: Path, root: str, model: str) -> None:
    """Truncation makes pairs identical: 352 of 5,000 (UltraFeedback at 512 tokens; OpenRLHF 1311)."""
    long = " ".join(["w1"] * 30)
    rows = [{"prompt": "w1", "chosen": f"{long} w2", "rejected": f"{long} w3"}, pair(1)]
    version = do(root, write(tmp_path / "x.jsonl", *rows), model=model, split="train", max_length=20).version
    assert reasons(version) == ["identical_after_truncation", None]


def test_an_answer_that_was_cut_has_no_end_token(tmp_path: Path, root: str, model: str) -> None:
    """finish_reason dropped; a cut-off answer gets an EOS and looks finished (nearly every sampler; OpenRLHF)."""
    row = {"prompt": "w1", "chosen": " ".join(["w2"] * 30), "rejected": "w3"}
    version = do(root, write(tmp_path / "x.jsonl", row), model=model, split="train", max_length=20).version
    (found,) = all_rows(version)
    ends = version.manifest["tokenizer"]["end_ids"]
    assert (found["chosen_finish"], found["rejected_finish"]) == ("length", "stop")
    assert found["chosen_ids"][-1] not in ends
    assert found["rejected_ids"][-1] in ends


def test_a_prompt_is_never_cut(tmp_path: Path, root: str, model: str) -> None:
    """Prompt truncated at its end: question and assistant header lost (LLaMA-Factory)."""
    rows = [pair(1, prompt=" ".join(["w1"] * 30)), pair(2)]
    version = do(root, write(tmp_path / "x.jsonl", *rows), model=model, split="train", max_length=20).version
    assert reasons(version) == ["prompt_too_long", None]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15])
def test_the_last_unit_is_read_to_its_end(
    rows: int, tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards drop the tail: N // world (Online-RLHF)."""
    monkeypatch.setattr(tokenise, "UNIT_ROWS", 8)
    version = do(root, write(tmp_path / "x.jsonl", *map(pair, range(rows))), model=model, split="train").version
    assert len(all_rows(version)) == len(reasons(version)) == rows


@pytest.mark.parametrize("writes", [1, 2, 3, 5, 7])
def test_a_crash_between_two_writes_repeats_nothing(
    writes: int, tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between two writes duplicates a batch (ms-swift)."""
    monkeypatch.setattr(tokenise, "UNIT_ROWS", 5)
    source = write(tmp_path / "x.jsonl", *map(pair, range(23)))
    whole = do(str(tmp_path / "whole"), source, model=model, split="train").version
    crashed = []

    class Crash(BaseException):
        """The process ends here."""

    def crashing(what: str) -> Any:
        through = getattr(Storage, what)

        def wrote(self: Storage, name: str, data: bytes) -> Any:
            made = through(self, name, data)
            crashed.append(name)
            if len(crashed) == writes:
                raise Crash
            return made

        return wrote

    with monkeypatch.context() as patch:
        for what in ("write", "create"):
            patch.setattr(Storage, what, crashing(what))
        with pytest.raises(Crash):
            do(root, source, model=model, split="train")
    version = do(root, source, model=model, split="train").version
    assert verify(version) == []
    assert all_rows(version) == all_rows(whole)
    assert Counter(line["row_id"] for line in version.ledger().to_pylist()) == Counter(
        line["row_id"] for line in whole.ledger().to_pylist()
    )
    assert len({row["row_id"] for row in all_rows(version)}) == 23


def test_a_prompt_that_comes_again_merges_nothing(tmp_path: Path, root: str, model: str) -> None:
    """Candidates keyed by text: repeated prompts merge (OpenRLHF, RSO's reference code)."""
    first = {"prompt": "w1", "responses": ["w2", "w3"], "rewards": [1, 2]}
    second = {"prompt": "w1", "responses": ["w4", "w5"], "rewards": [3, 4]}
    version = do(root, write(tmp_path / "x.jsonl", first, second), model=model, split="train").version
    found = {row["completion"][0]["content"]: row["score"] for row in all_rows(version)}
    assert found == {"w2": 1.0, "w3": 2.0, "w4": 3.0, "w5": 4.0}
    assert len({row["prompt_id"] for row in all_rows(version)}) == 1


def test_a_test_split_stays_what_it_is(tmp_path: Path, root: str, model: str) -> None:
    """Same prompt in train and test; test pool merged and re-split (most; the Zephyr recipe)."""
    write(tmp_path / "s" / "test.jsonl", *map(pair, range(10)))
    write(tmp_path / "s" / "train.jsonl", *map(pair, range(10, 30)), pair(3, chosen="w7"))
    version = do(root, tmp_path / "s", model=model, test_fraction=0.5).version
    held = {
        split: {row["prompt"][0]["content"] for row in version.table(split).to_pylist()} for split in version.splits
    }
    assert held["test"] == {pair(number)["prompt"] for number in range(10)}
    assert not held["test"] & held["train"]
    assert Counter(reasons(version)) == {None: 30, "prompt_in_test": 1}


def test_an_overall_score_of_1_stored_as_10_picks_no_winner(tmp_path: Path, root: str, model: str) -> None:
    """`overall_score` 1 stored as 10 (UltraFeedback): the worst answer would come out best."""
    worst, best = rated("w2", "1", "1", "1", "2", overall=10.0), rated("w3", "5", "5", "4", "5", overall=9.0)
    row = {**ultrafeedback(worst, best), "instruction": "w1"}
    version = do(root, write(tmp_path / "x.jsonl", row), model=model, split="train").version
    found = {row["completion"][0]["content"]: row["score"] for row in all_rows(version)}
    assert max(found, key=lambda text: found[text]) == "w3"
    assert found == {"w2": 1.25, "w3": 4.75}


def test_an_empty_answer_is_no_undesired_one(tmp_path: Path, root: str, model: str) -> None:
    """Rows with an empty answer read as undesired (LLaMA-Factory 3803, TRL)."""
    rows = [
        {"prompt": f"w{n}", "completion": text, "label": label}
        for n, (text, label) in enumerate((("", True), (" ", False), ("", False), ("w9", True)))
    ]
    rows.append({"prompt": "w1", "completion": None, "label": True})
    version = do(root, write(tmp_path / "x.jsonl", *rows), model=model, split="train").version
    assert reasons(version) == ["completion_empty"] * 3 + [None, "missing_field"]
    assert [row["label"] for row in all_rows(version)] == [True]


def test_no_row_goes_in_silence(tmp_path: Path, root: str, model: str) -> None:
    """Rows dropped in silence, "Dropped invalid example" (LLaMA-Factory 9600, 4249)."""
    version = do(root, write(tmp_path / "x.jsonl", *BROKEN, pair(50), pair(50)), model=model, split="train").version
    lines = version.ledger().to_pylist()
    assert len(lines) == len(BROKEN) + 2
    assert [line["origin"].rpartition(":")[2] for line in lines] == [str(n) for n in range(len(lines))]
    assert all(line["reason"] for line in lines if line["status"] == "set_aside")
    assert [line["status"] for line in lines].count("kept") == 1
    counts = version.manifest["counts"]
    assert counts["rows_in"] == counts["kept"] + counts["set_aside"] == len(lines)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Why? Because.", "rejected": "Why? Never."},
        {
            "chosen": [{"role": "assistant", "content": "Why? So."}],
            "rejected": [{"role": "assistant", "content": "Why?"}],
        },
        {"text_chosen": "Q: a A: b", "text_rejected": "Q: a A: c"},
    ],
)
def test_no_prompt_is_guessed_from_a_common_prefix(row: Row, tmp_path: Path) -> None:
    """Prompt guessed from the common prefix corrupts rows (TRL's extract_prompt)."""
    path = write(tmp_path / "x.jsonl", row)
    with pytest.raises(UserError):
        sources.read(str(path))
    for format_ in sources.FORMATS:
        if format_.KIND == "pairs":
            assert all(isinstance(parsed, SetAside) for _, parsed in sources.read(str(path), format=format_.NAME))


def test_answers_that_begin_alike_keep_their_whole_text(tmp_path: Path) -> None:
    """The same: what both answers begin with is part of both."""
    row = {"prompt": "Why?", "chosen": "I think so.", "rejected": "I think not."}
    ((_, found),) = sources.read(str(write(tmp_path / "x.jsonl", row)))
    assert isinstance(found, Comparison)
    assert (found.prompt[0].content, found.chosen[0].content) == ("Why?", "I think so.")
