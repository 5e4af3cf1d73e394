"""Models by name: what is loaded, what is recorded, and a sentence for everything that cannot be."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefdata import models
from prefdata.errors import UserError
from tests.tiny_models import POSITIONS, save_tiny_model


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefdata" / "file_hashes.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny_model(tmp_path / "model")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def count_hashing(monkeypatch) -> list[str]:
    hashed: list[str] = []
    genuine = hashlib.file_digest

    def counting(stream, name):
        hashed.append(stream.name)
        return genuine(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return hashed


def test_a_loaded_model_is_in_eval_mode_and_drops_nothing(tmp_path):
    save_tiny_model(tmp_path / "gpt2", "gpt2")  # GPT-2 is configured with a dropout of 0.1
    model = models.load_model(str(tmp_path / "gpt2"), device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    ids = torch.arange(20)[None]
    model.train()
    torch.testing.assert_close(model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


def test_weights_come_in_the_dtype_asked_for(folder):
    assert models.load_model(str(folder), dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    with pytest.raises(UserError, match="float32, bfloat16, float16"):
        models.load_model(str(folder), dtype="int3")


def test_soft_capped_attention_is_loaded_as_the_model_has_it(tmp_path):
    # SDPA, the default, would leave the cap out
    for family, expected in (("gemma2", "eager"), ("llama", "sdpa")):
        folder = save_tiny_model(tmp_path / family, family)
        assert models.load_model(str(folder), device="cpu").config._attn_implementation == expected


def break_nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def break_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("weights")


def break_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_adapter_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def break_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_weights_cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def break_config_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type":')


def break_not_causal(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}')


def break_unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')


def break_needs_code(folder: Path) -> None:
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edit_config(folder, model_type="its-own", auto_map=code)


def break_more_layers_than_weights(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)


def break_other_shapes(folder: Path) -> None:
    edit_config(folder, intermediate_size=80)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_nothing_there, "no such folder"),
        (break_a_file, "is a file"),
        (break_no_config, "no config.json"),
        (break_adapter_only, "LoRA adapter"),
        (break_no_weights, r"no \*.safetensors"),
        (break_only_pickle, "pickle"),
        (break_weights_cut_short, "cannot be loaded"),
        (break_config_json, "JSON"),
        (break_not_causal, "causal"),
        (break_unknown_type, "no-such-type"),
        (break_needs_code, "unless you say --trust-remote-code"),
        (break_more_layers_than_weights, r"lack \d+ weights"),
        (break_other_shapes, r"intermediate_size|lack|shape|size"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words) as raised:
        models.load_model(str(folder))
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_digest_is_over_sorted_names_and_hashes(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", folder / "a.safetensors")
    sha = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    lines = json.dumps([["a.safetensors", sha], ["model.safetensors", sha]], separators=(",", ":"))
    assert models.model_digest(str(folder)) == hashlib.sha256(lines.encode()).hexdigest()
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (moved / "config.json").write_text("{}")
    assert models.model_digest(str(moved)) == models.model_digest(str(folder))
    (moved / "a.safetensors").rename(moved / "b.safetensors")
    assert models.model_digest(str(moved)) != models.model_digest(str(folder))


def test_a_file_is_hashed_once_until_it_changes(folder, monkeypatch):
    hashed = count_hashing(monkeypatch)
    first = models.model_digest(str(folder))
    assert models.model_digest(str(folder)) == first
    assert len(hashed) == 1
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert models.model_digest(str(folder)) != first
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 1}', '{"x": [1, 2]}', "\x00\xff"])
def test_a_damaged_cache_is_an_empty_one(folder, private_cache, content, monkeypatch):
    expected = models.model_digest(str(folder))
    private_cache.write_text(content)
    assert models.model_digest(str(folder)) == expected
    hashed = count_hashing(monkeypatch)
    assert models.model_digest(str(folder)) == expected
    assert hashed == []


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(models.model_digest(str(folder))) == 64


def test_a_description_says_what_the_manifest_needs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = models.describe(str(folder), "bfloat16")
    config_digest = found.pop("config_digest")
    assert len(config_digest) == 64
    assert found == {
        "name": "model",  # relative to the project
        "commit": None,
        "digest": models.model_digest(str(folder)),
        "dtype": "bfloat16",
        "architecture": "LlamaForCausalLM",
        "parameters": models.load_model("model", device="cpu").num_parameters(),
    }


def test_a_folder_outside_the_project_keeps_the_way_it_was_named(folder, tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert models.describe("../model")["name"] == "../model"
    assert models.describe(str(folder))["name"] == str(folder)


def test_the_config_digest_covers_what_changes_the_function(folder):
    plain = models.describe(str(folder))["config_digest"]
    edit_config(folder, transformers_version="0.0", use_cache=False, dtype="bfloat16", some_unset_key=None)
    assert models.describe(str(folder))["config_digest"] == plain
    edit_config(folder, rms_norm_eps=0.1)
    assert models.describe(str(folder))["config_digest"] != plain


@pytest.mark.parametrize("damage", [break_no_config, break_config_json, break_weights_cut_short, break_only_pickle])
def test_what_cannot_be_described_is_one_sentence(folder, damage):
    damage(folder)
    with pytest.raises(UserError):
        models.describe(str(folder))


def test_max_positions(folder, tmp_path):
    assert models.max_positions(str(folder)) == POSITIONS
    assert models.max_positions(str(save_tiny_model(tmp_path / "gpt2", "gpt2"))) == POSITIONS
    (tmp_path / "bloom").mkdir()
    (tmp_path / "bloom" / "config.json").write_text('{"model_type": "bloom"}')
    assert models.max_positions(str(tmp_path / "bloom")) is None


def test_a_hub_model_records_its_commit_and_asks_for_no_pickle(folder, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo, **options):
        asked.append((repo, options))
        return str(shutil.copytree(folder, tmp_path / "hub" / "snapshots" / "abc123", dirs_exist_ok=True))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = models.describe("some-org/some-model@v2")
    assert (found["name"], found["commit"]) == ("some-org/some-model", "abc123")
    assert found["digest"] == models.model_digest(str(folder))
    repo, options = asked[0]
    assert repo == "some-org/some-model"
    assert options["revision"] == "v2"
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in options["allow_patterns"])
    asked.clear()
    assert models.max_positions("some-org/some-model") == POSITIONS
    assert not any("safetensors" in pattern for pattern in asked[0][1]["allow_patterns"])


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*_, **__):
        raise LocalEntryNotFoundError("cannot reach the hub\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"some-org/some-model.*cannot reach the hub") as raised:
        models.load_model("some-org/some-model")
    assert "\n" not in str(raised.value)


def test_importing_it_is_cheap():
    code = "import sys, prefdata.models; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
