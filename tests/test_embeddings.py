"""Prompt embeddings: mean-pooled hidden states against a plain forward, kept by content, and read by relative_po."""

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefdata import models, versions
from prefdata.builds import add_reference
from prefdata.builds.budget import Budget, BudgetReached
from prefdata.builds.job import Outcome, run
from prefdata.errors import UserError
from prefdata.reference import embeddings
from prefdata.verify import verify
from prefdata.versions import Version
from tests.tiny_world import pair_rows, publish, save_model, table, with_reference
from tests.trainer_world import Talk
from tests.unpaired_world import judged_table
from trainers.contract import check
from trainers.loss import parse
from trainers.options import Options
from trainers.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and another model, whose embeddings are stored."""
    folder = tmp_path_factory.mktemp("embedded")
    save_model(folder / "model")
    save_model(folder / "encoder", seed=3, head_size=32)
    rows = with_reference(table(pair_rows(9)), str(folder / "model"))
    held_out = with_reference(table(pair_rows(4, seed=2)), str(folder / "model"))
    publish(folder / "data", {"train": rows, "test": held_out}, str(folder / "model"))
    return folder


def added(folder: Path, source: str = "v1", budget: Budget | None = None, **options: Any) -> Outcome:
    given = add_reference.Options(source=source, **{"embeddings": str(folder / "encoder"), **options})
    return run(add_reference.AddReference(given, str(folder / "data")), budget=budget)


@pytest.fixture(scope="module")
def version(folder: Path) -> Version:
    return added(folder, model=str(folder / "model")).version


def expected(model: str, text: str) -> np.ndarray[Any, Any]:
    """The text alone, without a batch."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = models.load_model(model)(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    return np.asarray(hidden[0].mean(dim=0))


def test_vectors_are_means_of_the_last_hidden_states(version: Version, folder: Path) -> None:
    assert verify(version) == []
    rows = version.table("train").to_pylist()
    for row in rows[:4]:
        wanted = expected(str(folder / "encoder"), row["prompt"][0]["content"])
        np.testing.assert_allclose(row["prompt_embedding"], wanted, atol=1e-5)
    entry = version.manifest["embeddings"]
    assert entry is not None
    assert (entry["digest"], entry["pooling"]) == (models.model_digest(str(folder / "encoder")), "mean")
    stored = versions.find("v1", root=version.root).table("train")
    assert [row["ref_chosen_logps"] for row in rows] == pytest.approx(stored["ref_chosen_logps"].to_pylist(), abs=1e-4)


def test_long_and_short_texts_in_one_batch_do_not_meet(folder: Path) -> None:
    model = embeddings.load(str(folder / "encoder"))
    texts = ["w1", "w2 w3 w4 w5 w6 w7 w8", "", "w9 w1"]
    found, tokens = model.embed(texts, lambda share: None)
    assert tokens == 10
    assert np.isnan(found[2]).all()  # nothing to read, so no direction
    for place in (0, 1, 3):
        np.testing.assert_allclose(found[place], expected(str(folder / "encoder"), texts[place]), atol=1e-5)
    cut, _ = model.embed(["w1 " * 100], lambda share: None)
    np.testing.assert_allclose(cut[0], expected(str(folder / "encoder"), "w1 " * 64), atol=1e-5)


def test_log_probs_that_are_there_stay_and_no_reference_is_loaded(
    folder: Path, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*given: Any, **more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load_model", no_model)
    monkeypatch.setattr(models, "load_encoder", no_model)
    assert not added(folder, version.name).published  # it has them already


def test_prompts_are_embedded_once_whatever_rows_they_are_of(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder / "data", tmp_path / "data")
    for name in ("model", "encoder"):
        shutil.copytree(folder / name, tmp_path / name)
    first = run(
        add_reference.AddReference(
            add_reference.Options(source="v1", model=str(tmp_path / "model")), str(tmp_path / "data")
        )
    ).version
    spent = Budget()
    second = added(tmp_path, first.name, spent)
    assert second.computed == 0  # the same texts were embedded for another version
    assert spent.spent == 0
    assert second.version.manifest["reference"] == first.manifest["reference"]


def test_tokens_count_against_a_budget(tmp_path: Path, folder: Path) -> None:
    splits = {"train": table(pair_rows(5, seed=8)), "test": table(pair_rows(2, seed=9))}
    publish(tmp_path / "data", splits, str(folder / "model"))
    budget = Budget(max_tokens=1)
    given = add_reference.Options(source="v1", model=str(folder / "model"), embeddings=str(folder / "encoder"))
    with pytest.raises(BudgetReached, match="tokens were computed"):
        run(add_reference.AddReference(given, str(tmp_path / "data")), budget=budget)
    assert run(add_reference.AddReference(given, str(tmp_path / "data"))).published


def test_prompts_without_a_direction_are_set_aside(tmp_path: Path, folder: Path) -> None:
    rows = pair_rows(3)
    rows[1]["prompt"] = [{"role": "user", "content": ""}]
    publish(tmp_path / "data", {"train": table(rows)}, str(folder / "model"))
    given = add_reference.Options(source="v1", model=str(folder / "model"), embeddings=str(folder / "encoder"))
    version = run(add_reference.AddReference(given, str(tmp_path / "data"))).version
    assert verify(version) == []
    assert version.table("train")["row_id"].to_pylist() == [rows[0]["row_id"], rows[2]["row_id"]]
    assert [line["reason"] for line in version.ledger().to_pylist()] == [None, "not_finite", None]


# -- which model ---------------------------------------------------------------------------------------------------


def test_a_model_that_pools_otherwise_needs_its_library(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "encoder", tmp_path / "own")
    (tmp_path / "own" / "modules.json").write_text("[]")
    assert embeddings.describe(str(tmp_path / "own"))["pooling"] == "mean"
    (tmp_path / "own" / "1_Pooling").mkdir()
    (tmp_path / "own" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        embeddings.describe(str(tmp_path / "own"))


def test_sentence_transformers_reads_its_own_models_where_it_is_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "encoder", tmp_path / "own")
    (tmp_path / "own" / "modules.json").write_text("[]")

    class Model:
        """Stands in for the library's."""

        def __init__(self, name: str, **options: Any) -> None:
            assert name == str(tmp_path / "own")

        def encode(self, texts: list[str], **options: Any) -> np.ndarray[Any, Any]:
            return np.asarray([[len(text), 1.0] for text in texts])

        def tokenizer(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [0] * len(text.split())}

    library = types.ModuleType(embeddings.LIBRARY)
    library.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, embeddings.LIBRARY, library)
    monkeypatch.setattr(embeddings, "find_spec", lambda name: True)
    monkeypatch.setattr(embeddings.metadata, "version", lambda name: "9.9")
    assert embeddings.describe(str(tmp_path / "own"))["pooling"] == "sentence-transformers 9.9"
    vectors, tokens = embeddings.load(str(tmp_path / "own")).embed(["w1 w2", "w3"], lambda share: None)
    assert (vectors.tolist(), vectors.dtype, tokens) == ([[5.0, 1.0], [2.0, 1.0]], np.float32, 3)


# -- training ------------------------------------------------------------------------------------------------------


def test_relative_po_needs_embeddings_and_says_how_to_add_them(folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        check(versions.find("v1", root=str(folder / "data")), parse("relative_po", None, ()))
    assert "reads prompt_embedding" in str(refused.value)
    assert "python -m flows.add_reference v1 --embeddings MODEL" in str(refused.value)


def run_options(version: Version, loss: str, folder: Path) -> Options:
    return Options(
        data=version.url,
        loss=loss,
        lr=3e-3,
        set=("beta=2",),
        steps=5,
        batch_size=8,
        accumulate=1,
        dtype="float32",
        out=str(folder / "run"),
    )


def test_relative_po_trains_on_stored_embeddings(version: Version, tmp_path: Path) -> None:
    result = train(run_options(version, "relative_po", tmp_path), say=Talk())
    assert result.before["loss"] == pytest.approx(float(np.log(2)), abs=1e-4)
    assert result.train["loss"] < float(np.log(2)) - 1e-3


def test_relative_po_unpaired_trains_on_stored_embeddings(folder: Path, tmp_path: Path) -> None:
    model = str(folder / "model")
    rows = judged_table(12, model, seed=1, partners=False)
    publish(tmp_path / "data", {"train": rows}, model, kind="unpaired", reference_model=model)
    given = add_reference.Options(source="v1", embeddings=str(folder / "encoder"))
    version = run(add_reference.AddReference(given, str(tmp_path / "data"))).version
    said = Talk()
    result = train(run_options(version, "relative_po_unpaired", tmp_path), say=said)
    assert result.train["loss"] < float(np.log(2)) - 1e-3


def test_embeddings_of_two_models_are_not_compared(folder: Path, version: Version, tmp_path: Path) -> None:
    other = added(folder, "v1", model=str(folder / "model"), embeddings=str(folder / "model")).version
    both = Options(
        data=f"{version.url},{other.url}", loss="relative_po", steps=1, dtype="float32", out=str(tmp_path / "run")
    )
    with pytest.raises(UserError, match="compares prompt embeddings"):
        train(both, say=Talk())
