"""Every file of the sample data: its rows are ingested and add up, or it is refused in a sentence."""

from pathlib import Path

import pytest

from prefdata import versions
from prefdata.builds.ingest import Ingest, Options
from prefdata.builds.job import run
from prefdata.errors import UserError
from prefdata.verify import verify
from tests.samples import DEFAULT, samples_dir

# file: (format, kind, rows)
READ = {
    "conversational_pairs_en/train.json": ("conversations", "pairs", 200),
    "conversational_pairs_zh/train.json": ("conversations", "pairs", 200),
    "decontamination/mt_bench_questions.jsonl": ("prompts", "prompts", 80),
    "hh_helpful/test.jsonl": ("hh", "pairs", 300),
    "hh_helpful/train.jsonl": ("hh", "pairs", 1600),
    "human_judged/llmbar_gptinst.json": ("index_label", "pairs", 92),
    "human_judged/llmbar_natural.json": ("index_label", "pairs", 100),
    "human_judged/pandalm.json": ("index_label", "pairs", 704),
    "oasst1_trees/messages.jsonl": ("oasst", "pairs", 1418),
    "ranked_qa/fine_grained_qa.json": ("fine_grained_qa", "pairs", 350),
    "scored_completions/tldr.jsonl": ("scored", "completions", 572),
    "sentiment/imdb_completions.jsonl": ("scored", "completions", 1800),
    "ultrafeedback_pairs/train.jsonl": ("explicit", "pairs", 1000),
    "unpaired/kto_train.json": ("unpaired", "unpaired", 200),
}
# file: what the refusal says
REFUSED = {
    # sentences with a rating: nothing asks for them, and a prompt made of their own first words would be a guess
    "sentiment/movie_snippets.jsonl": "says nowhere what was asked (columns: 'id', 'mean_rating', 'text')",
    "sentiment/vader_lexicon.txt": "is not a kind of file that can be read",
    "dirty_rows/examples.jsonl": "says nowhere what was asked (columns: 'file', 'row', 'defect', 'data')",
}
NO_DATA = ("README.md", "LICENSE", "models/", "tokenizers/")  # names, or their beginnings


def ingest(file: Path, root: Path) -> versions.Version:
    model = str(samples_dir() / "models" / "stories260k")
    return run(Ingest(Options(source=(str(file),), model=model, license="mit"), str(root))).version


@pytest.mark.parametrize("name", READ)
def test_every_row_of_a_sample_file_is_kept_or_set_aside(name: str, tmp_path: Path) -> None:
    format_, kind, rows = READ[name]
    version = ingest(samples_dir() / name, tmp_path / "data")
    manifest = version.manifest
    counts = manifest["counts"]
    assert (manifest["config"]["format"], version.kind) == (format_, kind)
    assert counts["rows_in"] == rows == counts["kept"] + counts["set_aside"]
    assert verify(version) == []
    lines = version.ledger().to_pylist()
    assert len(lines) == rows
    made = {row for line in lines for row in line["made"]}
    held = {row for split in version.splits for row in version.table(split)["row_id"].to_pylist()}
    assert made == held
    assert counts["kept"] > 0
    (source,) = manifest["sources"]
    assert (source["rows"], source["license"]) == (rows, "mit")


@pytest.mark.parametrize("name", REFUSED)
def test_a_sample_file_that_holds_nothing_for_a_preference_pipeline_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        ingest(samples_dir() / name, tmp_path / "data")
    said = str(refused.value)
    assert REFUSED[name] in said
    assert "\n" not in said
    assert not versions.every(str(tmp_path / "data"))


def test_no_sample_file_is_left_out() -> None:
    folder = samples_dir()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    data = {name for name in found if not name.startswith(NO_DATA) and not name.rpartition("/")[2].startswith(NO_DATA)}
    assert data == {*READ, *REFUSED}


def test_the_first_turn_of_a_benchmarks_question_is_the_prompt(tmp_path: Path) -> None:
    version = ingest(samples_dir() / "decontamination" / "mt_bench_questions.jsonl", tmp_path / "data")
    texts = {row["prompt"][0]["content"] for split in version.splits for row in version.table(split).to_pylist()}
    assert any(text.startswith("Compose an engaging travel blog post") for text in texts)
    assert not any("Rewrite your previous response" in text for text in texts)


def test_the_sample_data_is_looked_for_beside_the_project() -> None:
    assert DEFAULT.parts[-2:] == ("shared", "data")
