"""clean: versions of every kind, end to end; ledgers add up, and how rows were stored changes nothing."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from prefdata import versions
from prefdata.builds.clean import Options, job
from prefdata.builds.cleaning import steps
from prefdata.builds.job import Outcome, run
from prefdata.errors import UserError
from prefdata.sources.evaluations import Evaluation
from prefdata.verify import verify
from prefdata.versions import Version
from tests import tiny_world
from tests.test_ingest import do

ASKED = ("w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w1")
Rows = list[dict[str, Any]]


def pairs(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "w1 w2", "rejected": "w3"}


def completions(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "response": "w1 w2"}


def unpaired(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": "w1 w2", "label": True}


def prompts(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt}


KINDS: tuple[Callable[[str], dict[str, Any]], ...] = (pairs, completions, unpaired, prompts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def ingested(root: str, model: str, rows: Rows, name: str = "x.jsonl", **options: Any) -> Version:
    path = Path(root).parent / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return do(root, path, model=model, **({"split": "train"} | options)).version


def cleaned(root: str, **options: Any) -> Outcome:
    return run(job(Options(**options), root))


def reasons(version: Version) -> list[str | None]:
    return [line["reason"] for line in version.ledger().to_pylist()]


@pytest.mark.parametrize("make", KINDS, ids=[make.__name__ for make in KINDS])
@pytest.mark.parametrize("compared", ["prompts", "rows"])
def test_every_kind_is_cleaned_and_its_ledger_adds_up(
    make: Callable[[str], dict[str, Any]], compared: str, root: str, model: str
) -> None:
    parent = ingested(root, model, [make(prompt) for prompt in (*ASKED, ASKED[0].upper(), f"{ASKED[0]}?", "W8")])
    version = cleaned(root, exact=compared, near=compared).version
    assert verify(version) == []
    assert (version.kind, version.schema) == (make.__name__, parent.schema)
    assert [line["row_id"] for line in version.ledger().to_pylist()] == parent.table("train")["row_id"].to_pylist()
    assert {parent.name} == {entry["version"] for entry in version.manifest["parents"]}
    assert [stage["stage"] for stage in version.manifest["counts"]["stages"]] == [
        "duplicates",
        "near_duplicates",
        "publish",
    ]
    assert version.manifest["counts"]["set_aside"] == 3
    kept = {row["row_id"]: row for row in version.table("train").to_pylist()}
    assert all(row == kept[row["row_id"]] for row in parent.table("train").to_pylist() if row["row_id"] in kept)


def test_row_order_and_files_change_nothing(root: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [pairs(f"{prompt} {tail}") for prompt in ASKED for tail in ("w1", "W1", "w2", "w1?")]
    ingested(root, model, rows)
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 3)
    ingested(root, model, rows[::-1], "y.jsonl")
    found = [cleaned(root, source=source, exact="rows", near="prompts").version for source in ("v1", "v2")]
    assert len({version.logical_hash for version in found}) == 1
    assert len({str(version.manifest["counts"]) for version in found}) == 1


def test_the_same_clean_again_does_nothing_and_another_threshold_reads_nothing(root: str, model: str) -> None:
    ingested(root, model, [pairs(prompt) for prompt in ASKED])
    assert cleaned(root, source="v1", near="prompts").computed == 1
    again = cleaned(root, source="v1", near="prompts")
    assert (again.published, again.computed, again.version.name) == (False, 0, "v2")
    other = cleaned(root, source="v1", near="prompts", near_threshold=0.9)
    assert (other.published, other.computed) == (True, 0)


def test_no_step_is_refused_in_words(root: str, model: str) -> None:
    ingested(root, model, [pairs(ASKED[0])])
    with pytest.raises(UserError, match="no step was asked for"):
        cleaned(root)
    with pytest.raises(UserError, match="near is 'answers'"):
        cleaned(root, near="answers")


def test_an_evaluation_is_named_by_the_ledger_and_the_manifest(root: str, model: str, tmp_path: Path) -> None:
    ingested(root, model, [pairs(prompt) for prompt in ASKED])
    exam = tmp_path / "elsewhere" / "exam.jsonl"
    exam.parent.mkdir()
    exam.write_text(json.dumps({"turns": [ASKED[0].upper(), "w3"]}) + "\n")
    version = cleaned(root, source="v1", decontaminate=(str(exam),)).version
    lines = version.ledger().to_pylist()
    assert [line["reason"] for line in lines] == ["contaminated", None, None]
    assert (lines[0]["stage"], lines[0]["detail"]) == ("contamination", "exam row 0: the same words")
    (named,) = version.manifest["config"]["decontaminate"]
    assert named["name"] == "exam"
    moved = exam.rename(tmp_path / "exam.jsonl")
    assert not cleaned(root, source="v1", decontaminate=(str(moved),)).published
    moved.write_text(json.dumps({"prompt": ASKED[1]}) + "\n")  # another content is another build
    assert reasons(cleaned(root, source="v1", decontaminate=(str(moved),)).version) == [None, "contaminated", None]


@pytest.mark.parametrize("make", KINDS, ids=[make.__name__ for make in KINDS])
def test_splits_are_drawn_by_prompt_and_later_versions_can_agree_with_them(
    make: Callable[[str], dict[str, Any]], root: str, model: str
) -> None:
    rows = [make(f"w{n} w{n + 1} w{n} w{n + 2}") for n in range(30)]
    ingested(root, model, rows)
    first = cleaned(root, source="v1", test_fraction=0.4).version
    ingested(root, model, [*(make(f"w{n + 3} w{n}") for n in range(20)), *rows], "more.jsonl")
    for seed, same in ((0, True), (1, False)):  # by the draw, and against it
        alone = cleaned(root, source="v3", test_fraction=0.4, seed=seed).version
        assert _keeps(first, alone) is same
        assert _keeps(first, cleaned(root, source="v3", test_fraction=0.4, seed=seed, split_like="v2").version)
        assert verify(alone) == []
        assert {line["status"] for line in alone.ledger().to_pylist()} == {"kept"}


def _keeps(first: Version, second: Version) -> bool:
    """Whether every prompt of the first is in the same split of the second."""
    before, after = (
        {row: split for split in version.splits for row in version.table(split)["prompt_id"].to_pylist()}
        for version in (first, second)
    )
    assert len(set(before.values())) == 2
    return {prompt: after[prompt] for prompt in before} == before


@pytest.mark.parametrize("make", KINDS, ids=[make.__name__ for make in KINDS])
def test_all_steps_in_one_chain(make: Callable[[str], dict[str, Any]], root: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text(json.dumps({"prompt": ASKED[1]}) + "\n")
    rows = [make(f"w{n} w{n % 7} w{n % 5} w{n % 3}") for n in range(30)]
    parent = ingested(root, model, [*rows, *map(make, (*ASKED, ASKED[0].upper())), make("w5 ab@cd.de " + "w1 " * 20)])
    version = cleaned(
        root,
        max_prompt_tokens=30,
        languages=("en",),
        decontaminate=(str(tmp_path / "exam.jsonl"),),
        exact="rows",
        near="prompts",
        max_per_prompt=1,
        max_per_source=20,
        test_fraction=0.2,
        private_data="flag",
        noise_hints=True,
    ).version
    assert verify(version) == []
    assert version.schema.names == [*parent.schema.names, "private_data", "noise_hints"]
    stages = (
        "private_data lengths language contamination duplicates near_duplicates prompt_cap source_cap split noise_hints"
    )
    assert [stage["stage"] for stage in version.manifest["counts"]["stages"]] == [*stages.split(), "publish"]
    held = [row["private_data"] for split in version.splits for row in version.table(split).to_pylist()]
    assert held.count(["email"]) + held.count(None) == len(held)
    (told,) = [entry for entry in version.files("stats") if entry["path"] == "stats/marks.parquet"]
    counted = version.read(told).to_pylist()
    assert sum(row["rows"] for row in counted if row["mark"] == "email") == held.count(["email"])
    assert {row["column"] for row in counted} <= {"private_data", "noise_hints"}
    assert {"contaminated", "over_source_cap"} <= set(reasons(version))
    again = cleaned(root, source=version.name, private_data="flag", noise_hints=True).version  # columns set anew
    assert (again.schema, again.logical_hash) == (version.schema, version.logical_hash)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"languages": ("en", "xx")}, "languages: xx can't be told; these can: ar, bn"),
        ({"near": "rows", "near_threshold": 1.5}, "near_threshold is 1.5; it is a share, and must be at most 1"),
        ({"test_fraction": 2.0}, "test_fraction is 2.0"),
        ({"min_answer_tokens": 5, "max_answer_tokens": 4}, "min_answer_tokens is 5 and max_answer_tokens is 4"),
        ({"decontaminate": ("/no/such.jsonl",)}, "/no/such.jsonl"),
    ],
)
def test_what_no_step_could_use_is_refused_in_words(options: dict[str, Any], said: str, root: str, model: str) -> None:
    ingested(root, model, [pairs(ASKED[0])])
    with pytest.raises(UserError, match=re.escape(said)):
        cleaned(root, **options)


def test_the_page_names_every_option_and_every_step() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cleaning.md").read_text()
    named = {word for line in page.splitlines() for word in re.findall(r"`(\w+)`", line)}
    assert {knob.name for knob in fields(Options)} - {"source", "seed"} <= named
    every = Options(
        private_data="mask", max_prompt_tokens=1, languages=("en",), exact="rows", near="rows", max_per_prompt=1
    )
    every = replace(every, max_per_source=1, test_fraction=0.0, noise_hints=True)
    found = steps(every, "pairs", [Evaluation("exam", "", (("Who?",),))])
    table = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    assert [step.name for step in found] == [name for cell in table for name in re.findall(r"`(\w+)`", cell)]
