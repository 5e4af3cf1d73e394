"""Licence and origin: said of each source, written into rows, manifest and card, and told down the lineage."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefdata import cli, lineage, sources, versions
from prefdata.builds import add_reference
from prefdata.builds.ingest_options import Options
from prefdata.builds.job import run
from prefdata.errors import UserError
from prefdata.sources import hub
from tests import tiny_world
from tests.test_builds import all_rows, sapo
from tests.test_ingest import do


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def write(path: Path, *prompts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": text, "chosen": f"{text} w30 w31", "rejected": f"{text} w40"} for text in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stated(version: versions.Version) -> list[tuple[str, Any, Any]]:
    return [(each["name"], each["license"], each["origin"]) for each in version.manifest["sources"]]


def by_source(version: versions.Version) -> set[tuple[str, str | None]]:
    return {(row["source"], row["license"]) for row in all_rows(version)}


def test_each_source_has_its_licence_in_rows_and_manifest_down_the_lineage(
    tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "berries"
    files = [
        write(tmp_path / "apples.jsonl", "w1", "w2"),
        write(folder / "a.jsonl", "w3"),
        write(folder / "b.jsonl", "w4"),
    ]
    said = {"license": "mit, cc-by-4.0", "origin": "https://apples.example,https://berries.example"}
    do(root, files[0], folder, model=model, split="train", **said)
    sapo(Path(root))
    scored = run(add_reference.AddReference(add_reference.Options(source="v2", model=model), root)).version
    expected = [
        ("apples", "mit", "https://apples.example"),
        ("berries", "cc-by-4.0", "https://berries.example"),
        ("berries", "cc-by-4.0", "https://berries.example"),
    ]
    found = versions.every(root)
    assert [version.manifest["build"] for version in found][:2] == ["ingest", "build-sapo-negatives"]
    for version in {version.name: version for version in [*found, scored]}.values():
        assert stated(version) == expected
        assert by_source(version) == {("apples", "mit"), ("berries", "cc-by-4.0")}
        card = version.storage.read("README.md").decode()
        assert 'license: ["mit", "cc-by-4.0"]' in card
        assert "https://berries.example" in card
    drawn = "\n".join(lineage.ancestors(found[-1]))
    assert "source apples  explicit  2 rows  https://apples.example  licence: mit" in drawn
    assert drawn.count("https://berries.example  licence: cc-by-4.0") == 2
    monkeypatch.setenv("PREFDATA_ROOT", root)
    assert cli.main(["lineage", found[-1].name]) == 0
    assert capsys.readouterr().out.rstrip() == drawn


def test_a_version_of_a_version_keeps_them_with_other_log_probs(tmp_path: Path, root: str, model: str) -> None:
    do(root, write(tmp_path / "x.jsonl", "w1"), model=model, split="train", license="mit", origin="here")
    scored = run(add_reference.AddReference(add_reference.Options(source="v1"), root)).version
    assert stated(scored) == [("x", "mit", "here")]
    assert by_source(scored) == {("x", "mit")}


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("mit", ["mit", "mit"]),
        ("mit,apache-2.0", ["mit", "apache-2.0"]),
        (" mit , ", ["mit", None]),
        (None, [None, None]),
    ],
)
def test_one_licence_is_of_all_sources_and_as_many_as_sources_are_of_each(
    license: str | None, expected: list[str | None], tmp_path: Path, root: str, model: str
) -> None:
    files = [write(tmp_path / f"{name}.jsonl", f"w{n}") for n, name in enumerate("ab")]
    version = do(root, *files, model=model, split="train", license=license).version
    assert [each[1] for each in stated(version)] == expected
    assert by_source(version) == set(zip("ab", expected, strict=True))


def test_a_licence_with_a_comma_is_one_where_there_is_one_source(tmp_path: Path, root: str, model: str) -> None:
    version = do(
        root, write(tmp_path / "x.jsonl", "w1"), model=model, split="train", license="MIT, see LICENSE"
    ).version
    assert stated(version)[0][1] == "MIT, see LICENSE"


@pytest.mark.parametrize("what", ["license", "origin"])
def test_another_number_of_licences_than_of_sources_is_refused(
    what: str, tmp_path: Path, root: str, model: str
) -> None:
    files = [write(tmp_path / f"{name}.jsonl", f"w{n}") for n, name in enumerate("abc")]
    with pytest.raises(UserError, match=f"{what}: 2 are given .* for 3 sources"):
        do(root, *files, model=model, **{what: "one,two"})
    assert not versions.every(root)


def test_what_the_user_says_goes_before_what_the_hub_says(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}]

    def splits(name: str, options: hub.Options) -> list[hub.HubSplit]:
        return [hub.HubSplit(rows, name, "train", "abc", "mit", False)]

    monkeypatch.setattr(hub, "splits", splits)
    reading = sources.read(["a/one", "a/two"], license=[None, "other"], origin=["somewhere", None])
    assert [record.license for _, record in reading if hasattr(record, "license")] == ["mit", "other"]
    assert [(each["license"], each["origin"]) for each in reading.sources] == [
        ("mit", "somewhere"),
        ("other", "https://huggingface.co/datasets/a/two@abc"),
    ]


def test_the_next_ingest_of_the_same_sources_says_the_same_of_them(tmp_path: Path, root: str, model: str) -> None:
    files = [write(tmp_path / f"{name}.jsonl", f"w{n}") for n, name in enumerate("ab")]
    first = do(root, *files, model=model, split="train", license="mit,odc-by", origin="x,y").version
    write(files[0], "w7")
    again = do(root).version
    assert again.name != first.name
    assert stated(again) == stated(first)


def test_the_options_say_so() -> None:
    for name in ("license", "origin"):
        assert "one for each source" in Options.__dataclass_fields__[name].metadata["help"]
