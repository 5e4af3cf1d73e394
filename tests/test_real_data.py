"""Real transcripts and a real trained model: ingest, segments, reference log-probs, training, queries."""

import math
from pathlib import Path

import pytest

from prefdata import query, versions
from prefdata.builds import add_reference, ingest, sapo_negatives
from prefdata.builds.job import run
from prefdata.verify import verify
from tests.samples import samples_dir

ROWS = {"train": 60, "test": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """v1 from the first HH rows, v2 its segments, v3 v1 with reference log-probs."""
    samples = samples_dir()
    folder = tmp_path_factory.mktemp("real")
    (folder / "hh").mkdir()
    for split, count in ROWS.items():
        lines = (samples / "hh_helpful" / f"{split}.jsonl").read_text().split("\n")[:count]
        (folder / "hh" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    root = str(folder / "data")
    model = str(samples / "models" / "stories260k")
    options = ingest.Options(source=(str(folder / "hh"),), model=model, license="MIT")
    run(ingest.Ingest(options, root))
    run(sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(source="v1"), root))
    run(add_reference.AddReference(add_reference.Options(source="v1"), root))
    return root


def test_every_transcript_is_accounted_for(root: str) -> None:
    found = versions.every(root)
    assert [version.manifest["build"] for version in found] == ["ingest", "build-sapo-negatives", "add-reference"]
    assert [verify(version) for version in found] == [[], [], []]
    assert found[0].manifest["counts"]["rows_in"] == sum(ROWS.values())
    assert found[0].manifest["config"]["format"] == "hh"
    assert found[1].manifest["sources"][0]["license"] == "MIT"  # travels down the lineage


def test_a_regenerated_segment_is_likelier_under_its_writer(root: str) -> None:
    """The model wrote B' and not B, so its own log-probs must prefer most rejected sides."""
    rows = query.sql("select avg((ref_rejected_logps > ref_chosen_logps)::int) as share from v2", root).to_pylist()
    assert rows[0]["share"] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("data", "loss"), [("v1", "sft"), ("v2", "dpo"), ("v2", "orpo"), ("v3", "dpo")])
def test_training_starts_where_the_reference_is_and_learns(root: str, tmp_path: Path, data: str, loss: str) -> None:
    from transformers import AutoModelForCausalLM

    from trainers.run import Options, train

    said: list[str] = []
    options = Options(
        data=data, loss=loss, root=root, out=str(tmp_path / "run"), steps=6, lr=1e-3, batch_size=4, accumulate=1
    )
    result = train(options, say=said.append)
    assert result.finished
    if loss == "dpo":
        assert result.before["loss"] == pytest.approx(math.log(2), abs=1e-4)
        step_0 = next(line for line in said if line.startswith("step 0: the policy is the stored reference"))
        assert float(step_0.split(" nats per token")[0].rsplit(" ", 1)[1]) < 1e-4
    if data == "v2":
        assert result.after["loss"] < result.before["loss"]
    AutoModelForCausalLM.from_pretrained(result.folder)


def test_the_version_opens_in_other_tools(root: str) -> None:
    import duckdb
    import polars as pl
    from datasets import load_dataset

    folder = Path(versions.find("v2", root=root).url)
    rows = versions.find("v2", root=root).manifest["counts"]["rows"]
    assert duckdb.sql(f"select count(*) from '{folder}/train/*.parquet'").fetchall() == [(rows["train"],)]
    assert pl.scan_parquet(f"{folder}/train/*.parquet").select(pl.len()).collect().item() == rows["train"]
    assert {split: len(part) for split, part in load_dataset(str(folder)).items()} == rows
