import re

import pyarrow as pa
import pytest
import yaml

from prefdata import card
from schemas import pairs
from schemas.ledger import LEDGER
from tests.published import STAGES, pair, publish

KEPT = {"rows_in": 3, "kept": 2, "set_aside": 1, "rows": {"train": 2, "test": 0}, "stages": []}


def card_of(version):
    return version.storage.read("README.md").decode()


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def manifest(tmp_path, **changed):
    return {**publish(tmp_path).manifest, **changed}


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def version(tmp_path):
    return publish(
        tmp_path, train=[pair([1, 2], [1, 3]), pair([4], [5], prompt="q")], test=[pair([6], [7], prompt="r")]
    )


@pytest.mark.parametrize("number", range(4))
def test_the_code_of_the_card_runs_and_finds_the_rows(number, version, monkeypatch):
    blocks = code_blocks(card_of(version))
    assert len(blocks) == 4
    monkeypatch.chdir(version.root)
    monkeypatch.setenv("HF_HOME", f"{version.root}/hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {}
    exec(blocks[number], names)
    assert len(names["rows"]) == 2
    if "ledger" in names:
        assert len(names["ledger"]) == 4


def test_only_splits_with_rows_are_listed(tmp_path):
    version = publish(tmp_path, train=[pair([1], [2])], test=[])
    default, ledger = front_matter(card_of(version))["configs"]
    assert default == {
        "config_name": "default",
        "default": True,
        "data_files": [{"split": "train", "path": "train/*.parquet"}],
    }
    assert ledger["config_name"] == "ledger"


def test_the_card_of_a_version_without_rows_names_no_split(tmp_path):
    empty = manifest(tmp_path, counts={**KEPT, "rows": {"train": 0}})
    text = card.text(empty, pairs.BASE)
    assert [config["config_name"] for config in front_matter(text)["configs"]] == ["ledger"]
    assert code_blocks(text) == []


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([], {"license": "unknown"}),
        ([None], {"license": "unknown"}),
        (["MIT"], {"license": "mit"}),
        (["MIT", "Apache-2.0", "MIT"], {"license": ["mit", "apache-2.0"]}),
        (["MIT", 'ours: "ask"'], {"license": "other", "license_name": 'MIT; ours: "ask"'}),
    ],
)
def test_licenses_in_the_hubs_words(stated, expected, tmp_path):
    sources = [{"name": "x", "license": license_} for license_ in stated]
    head = front_matter(card.text(manifest(tmp_path, sources=sources), pairs.BASE))
    assert {key: head[key] for key in ("license", "license_name") if key in head} == expected


def test_a_source_without_a_licence_is_counted_beside_those_with_one(tmp_path):
    sources = [{"name": "x", "license": "MIT"}, {"name": "y", "license": None}]
    assert "1 of 2 sources state none" in card.text(manifest(tmp_path, sources=sources), pairs.BASE)


def test_every_column_stands_there_with_its_meaning(version):
    text = card_of(version)
    for field in [*version.schema, *LEDGER]:
        assert f"| `{field.name}` |" in text
        assert field.metadata[b"meaning"].decode() in text


def test_every_stage_and_reason_is_counted_with_its_meaning(version):
    text = card_of(version)
    for stage in STAGES:
        assert f"| {stage} |" in text
    assert "| gate | chosen_empty | 1 | the chosen answer is empty |" in text


def test_the_chat_template_itself_is_left_out(version):
    assert "a page long" not in card_of(version)


def test_text_from_outside_cannot_break_a_table(tmp_path):
    sources = [{"name": "a|b\nc", "license": None}]
    text = card.text(manifest(tmp_path, sources=sources), pairs.BASE)
    assert "| a\\|b c |" in text


def test_many_sources_are_cut_short_and_counted(tmp_path):
    sources = [{"name": f"part {n}", "license": None} for n in range(card.MOST_SOURCES + 7)]
    text = card.text(manifest(tmp_path, sources=sources), pairs.BASE)
    assert text.count("| part ") == card.MOST_SOURCES
    assert "and 7 more" in text


def test_nested_types_are_named_for_people():
    schema = pa.schema([pairs.BASE.field("prompt"), pairs.BASE.field("chosen_ids")])
    assert "list of message" in card._columns(schema)
    assert "list of int32" in card._columns(schema)
