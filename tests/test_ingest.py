"""Ingest: what is not said comes from the last one, what is said is done, and equal prompts stay in one split."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefdata import sources, versions
from prefdata.builds import ingest_options
from prefdata.builds.ingest import Ingest, Options
from prefdata.builds.job import Outcome, run
from prefdata.errors import UserError
from prefdata.sources import hub
from tests import tiny_world
from tests.test_builds import all_rows, write_pairs

TEMPLATE = (
    "{% for m in messages %}{{ (opening or 'w0') if m.role == 'user' else 'w1' }} {{ m.content }} "
    "{% if m.role == 'assistant' %}</s> {% endif %}{% endfor %}{% if add_generation_prompt %}w1 {% endif %}"
)
W0, W1, W2 = 3, 4, 5  # ids of the words


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def do(root: str, *source: Path | str, **options: Any) -> Outcome:
    return run(Ingest(Options(source=tuple(map(str, source)), **options), root))


def write_rows(path: Path, *prompts: str, start: int = 0) -> Path:
    rows = [{"prompt": text, "chosen": f"w3 w{n}", "rejected": f"w4 w{n}"} for n, text in enumerate(prompts, start)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first_ids(version: versions.Version) -> set[int]:
    return {row["prompt_ids"][0] for row in all_rows(version)}


# --- what the last ingest hands on ---


@pytest.fixture
def template(tmp_path: Path) -> str:
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE)
    return str(path)


def test_a_template_is_used_with_the_model_of_the_last_ingest(
    tmp_path: Path, root: str, model: str, template: str
) -> None:
    source = write_rows(tmp_path / "x.jsonl", "w7 w8", "w9")
    do(root, source, model=model)
    written = do(root, source, chat_template=template).version
    assert first_ids(written) == {W0}
    assert not written.manifest["tokenizer"]["plain"]
    opened = do(root, source, template_args='{"opening": "w2"}').version  # and keeps the template
    assert first_ids(opened) == {W2}
    assert opened.manifest["config"]["chat_template"] == template
    kept = do(root, write_rows(tmp_path / "y.jsonl", "w5"), test_fraction=0.0).version
    assert first_ids(kept) == {W2}
    plain = do(root, source, chat_template="plain").version
    assert plain.manifest["tokenizer"]["plain"]
    assert plain.manifest["config"]["template_args"] is None
    with pytest.raises(UserError, match="plain template takes no arguments"):
        do(root, source, template_args='{"opening": "w2"}')


def test_a_bare_ingest_is_the_last_one_again(tmp_path: Path, root: str, model: str, template: str) -> None:
    source = write_pairs(tmp_path / "x.jsonl", 20)
    said: dict[str, Any] = {
        "format": "explicit",
        "split": "train",
        "test_fraction": 0.2,
        "name": "fruit",
        "license": "mit",
        "chat_template": template,
        "template_args": '{"opening": "w2"}',
        "max_length": 22,
        "max_prompt_length": 12,
        "min_answer_tokens": 2,
        "overflow": "set_aside",
        "seed": 7,
    }
    first = do(root, source, model=model, **said).version
    assert first.manifest["config"].items() >= said.items()
    Path(template).unlink()  # its text is in the manifest
    bare = do(root)
    assert (bare.version.name, bare.published) == ("v1", False)
    write_pairs(source, 25)
    grown = do(root).version
    assert grown.manifest["config"] == first.manifest["config"]
    assert grown.manifest["tokenizer"] == first.manifest["tokenizer"]
    changed = do(root, overflow="truncate", seed=0).version.manifest["config"]
    assert changed == {**first.manifest["config"], "overflow": "truncate", "seed": 0}


def test_another_source_keeps_the_tokenizer_and_no_setting(tmp_path: Path, root: str, model: str) -> None:
    do(root, write_pairs(tmp_path / "x.jsonl", 20), model=model, max_length=40, name="fruit", split="train", seed=3)
    config = do(root, write_pairs(tmp_path / "y.jsonl", 20)).version.manifest["config"]
    found = {name: config[name] for name in ("model", "max_length", "name", "split", "seed", "test_fraction")}
    assert found == {
        "model": model,
        "max_length": None,
        "name": None,
        "split": None,
        "seed": ingest_options.SEED,
        "test_fraction": ingest_options.TEST_FRACTION,
    }


def test_another_model_keeps_source_and_settings(tmp_path: Path, root: str, model: str, template: str) -> None:
    do(root, write_pairs(tmp_path / "x.jsonl", 20), model=model, seed=3, chat_template=template)
    other = tiny_world.save_model(tmp_path / "other", positions=80)
    Path(template).unlink()
    manifest = do(root, model=other).version.manifest
    assert (manifest["config"]["seed"], manifest["config"]["model"]) == (3, other)
    assert (manifest["tokenizer"]["max_length"], manifest["tokenizer"]["template"]) == (80, TEMPLATE)


def test_permission_to_run_code_is_not_handed_on(
    tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(root, write_pairs(tmp_path / "x.jsonl", 5), model=model, trust_remote_code=True)
    assert not Ingest(Options(), root).options.trust_remote_code


# --- splits ---


def test_prompts_of_equal_tokens_are_held_out_together(tmp_path: Path, root: str, model: str) -> None:
    """White space is nothing to this tokenizer, so each prompt is written in two ways."""
    prompts = [f"w{n // 30} w{n % 30}" for n in range(60)]
    source = write_rows(tmp_path / "x.jsonl", *prompts, *(text.replace(" ", "  ") for text in prompts))
    version = do(root, source, model=model, test_fraction=0.5).version
    train, test = ({tuple(ids) for ids in version.table(s)["prompt_ids"].to_pylist()} for s in ("train", "test"))
    assert len({row["prompt_id"] for row in all_rows(version)}) == 120
    assert min(len(train), len(test)) > 10
    assert not train & test


def test_a_train_prompt_whose_tokens_are_in_the_test_split_is_set_aside(tmp_path: Path, root: str, model: str) -> None:
    write_rows(tmp_path / "source" / "test.jsonl", "w1 w2")
    write_rows(tmp_path / "source" / "train.jsonl", "w1  w2", "w2 w1", start=1)
    version = do(root, tmp_path / "source", model=model).version
    assert [line["reason"] for line in version.ledger().to_pylist()] == [None, "prompt_in_test", None]
    assert version.table("train")["prompt_ids"].to_pylist() == [[W2, W1]]


# --- what a person is told ---


def test_the_format_and_the_split_of_each_input_are_told(tmp_path: Path, root: str, model: str) -> None:
    for number, name in enumerate(("train.jsonl", "test.jsonl", "my-eval-pairs.jsonl")):
        write_rows(tmp_path / "source" / name, f"w{number}", start=number)
    folder = tmp_path / "source"
    job = Ingest(Options(source=(str(folder),), model=model), root)
    assert job.notices == [
        f"format: {job.reading.why}",
        f"{folder}/my-eval-pairs.jsonl: no split named: 5 % of prompts are held out",
        f"{folder}/test.jsonl -> test",
        f"{folder}/train.jsonl -> train",
    ]
    run(job)
    assert "those of v1" in Ingest(Options(), root).notices[0]
    stated = Ingest(Options(source=(f"{folder}/my-eval-pairs.jsonl",), split="train"), root).notices
    assert "those of v1" in stated[0]
    assert stated[-1] == f"{folder}/my-eval-pairs.jsonl -> train"


def test_many_inputs_are_told_in_few_lines(tmp_path: Path, root: str, model: str) -> None:
    for number in range(40):
        write_rows(tmp_path / "source" / f"train-{number:05}-of-00040.jsonl", f"w{number}")
    job = Ingest(Options(source=(str(tmp_path / "source"),), model=model), root)
    assert len(job.notices) == ingest_options.MOST_NAMED + 2
    assert job.notices[-1] == "28 more inputs -> train"


# --- hub data sets ---


def test_what_a_data_set_is_asked_for_reaches_it_and_the_build_key(
    root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    rows = [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}]

    def splits(name: str, options: hub.Options) -> list[hub.HubSplit]:
        asked.append(options)
        return [hub.HubSplit(rows, name, "train_prefs", "abc", "mit", False)]

    monkeypatch.setattr(hub, "splits", splits)
    said = {"config": "de", "revision": "v2", "splits": "train_prefs, test_prefs"}
    version = do(root, "someone/fruit", model=model, **said).version
    assert asked == [hub.Options("de", "v2", ("train_prefs", "test_prefs"))]
    assert version.manifest["config"].items() >= said.items()
    keys = {version.manifest["build_key"]}
    for name in said:
        keys.add(Ingest(Options(source=("someone/fruit",), **{**said, name: None}), root).build_key)
    assert len(keys) == 4
    assert Ingest(Options(), root).build_key == version.manifest["build_key"]
    with pytest.raises(UserError, match="names none"):
        Ingest(Options(source=("someone/fruit",), splits=" , "), root)


# --- what can be refused is refused before a row is read ---


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 20, "max_prompt_length": 20},
        {"max_length": 20, "max_prompt_length": 15, "min_answer_tokens": 6},
        {"test_fraction": 1.0},
        {"test_fraction": -0.1},
        {"overflow": "drop"},
        {"template_args": "[1]"},
        {"splits": ","},
        {"config": "de"},
    ],
)
def test_options_that_cannot_be_met_are_refused_in_a_sentence(
    options: dict[str, Any], tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.Reading, "__iter__", lambda _: pytest.fail("read rows"))
    with pytest.raises(UserError) as refused:
        do(root, write_rows(tmp_path / "x.jsonl", "w1"), model=model, **options)
    assert "\n" not in str(refused.value)
    assert next(iter(options)) in str(refused.value)
