"""Versions: wholly there or not at all, never changed, found by name, checked to the byte."""

import json
import multiprocessing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata import logical, versions
from prefdata.errors import UserError
from prefdata.versions import DamagedVersion, ledger_lines
from schemas import pairs
from tests import tiny_world

STAGES = ("gate", "publish")


def fields(kind: str = "pairs") -> dict[str, object]:
    return {
        "kind": kind,
        "build": "test",
        "build_key": "key",
        "config": {},
        "seeds": {},
        "round": 0,
        "parents": [],
        "sources": [],
        "tokenizer": {},
        "generator": None,
        "reference": None,
    }


def stage(root: Path, rows: pa.Table, *, aside: int = 0) -> versions.Staging:
    staging = versions.Staging(str(root), pairs.BASE, "key")
    staging.add("train", rows)
    names = rows["row_id"].to_pylist()
    staging.ledger(ledger_lines({"row_id": n, "status": "kept", "stage": "publish", "made": [n]} for n in names))
    dropped = [f"aside-{number}" for number in range(aside)]
    staging.ledger(
        ledger_lines({"row_id": n, "status": "set_aside", "stage": "gate", "reason": "chosen_empty"} for n in dropped)
    )
    return staging


def publish(root: Path, count: int = 5, *, aside: int = 0, seed: int = 0) -> versions.Version:
    with stage(root, tiny_world.table(tiny_world.pair_rows(count, seed=seed)), aside=aside) as staging:
        staging.flush()
        return staging.publish(staging.manifest(STAGES, fields()))


def test_what_is_published_is_read_back(tmp_path: Path) -> None:
    rows = tiny_world.table(tiny_world.pair_rows(5))
    version = publish(tmp_path, aside=2)
    assert version.name == "v1"
    assert version.splits == ["train"]
    assert version.table("train") == rows
    assert version.table("train").schema.field("row_id").metadata is not None
    assert versions.verify(version) == []
    counts = version.manifest["counts"]
    assert (counts["rows_in"], counts["kept"], counts["set_aside"]) == (7, 5, 2)
    assert counts["stages"][0] == {"stage": "gate", "rows_in": 7, "kept": 5, "set_aside": {"chosen_empty": 2}}


def test_nothing_is_visible_before_the_manifest(tmp_path: Path) -> None:
    with stage(tmp_path, tiny_world.table(tiny_world.pair_rows(3))) as staging:
        staging.flush()
        assert versions.every(str(tmp_path)) == []
        with pytest.raises(UserError, match="no version"):
            versions.find("latest", root=str(tmp_path))
    assert versions.every(str(tmp_path)) == []
    assert sorted(path.name for path in (tmp_path / "v1").rglob("*") if path.is_file()) == ["claim"]
    assert publish(tmp_path).name == "v2"  # numbers may have gaps, and are never shared


def test_a_version_is_never_written_over(tmp_path: Path) -> None:
    with stage(tmp_path, tiny_world.table(tiny_world.pair_rows(3))) as staging:
        staging.flush()
        (tmp_path / "v1" / "manifest.json").write_text("{}")
        with pytest.raises(UserError, match="another process"):
            staging.publish(staging.manifest(STAGES, fields()))


def _publish_one(root: str, seed: int) -> str:
    return publish(Path(root), seed=seed).name


def test_publishers_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        names = pool.starmap(_publish_one, [(str(tmp_path), seed) for seed in range(8)])
    assert sorted(names) == sorted(f"v{number}" for number in range(1, 9))
    assert all(versions.verify(version) == [] for version in versions.every(str(tmp_path)))


def test_rows_are_cut_into_files_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 4)
    version = publish(tmp_path, 11)
    assert [entry["rows"] for entry in version.files("train")] == [4, 4, 3]
    assert version.table("train") == tiny_world.table(tiny_world.pair_rows(11))
    assert sum(batch.num_rows for batch in version.batches("train", rows=3)) == 11


def test_the_logical_hash_knows_neither_order_nor_files_nor_log_probs(tmp_path: Path) -> None:
    rows = tiny_world.table(tiny_world.pair_rows(9))

    def total(*tables: pa.Table) -> str:
        found = logical.LogicalHash()
        for table in tables:
            found.add("train", table)
        return found.hexdigest()

    whole = total(rows)
    assert total(rows.slice(4), rows.slice(0, 4)) == whole
    assert total(rows.append_column("ref_chosen_logps", pa.array([-1.0] * 9, pa.float32()))) == whole
    changed = rows.to_pylist()
    changed[3]["rejected_ids"][0] += 1
    assert total(tiny_world.table(changed)) != whole
    labelled = rows.to_pylist()
    labelled[3]["preference"] = 0.5
    assert total(tiny_world.table(labelled)) != whole


@pytest.mark.parametrize("name", ["vN", "latest", "path", "tag"])
def test_a_version_is_found(tmp_path: Path, name: str) -> None:
    publish(tmp_path)
    second = publish(tmp_path, seed=1)
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags" / "good").write_text("v2\n")
    ref = {"vN": "v2", "latest": "latest", "path": str(tmp_path / "v2"), "tag": "good"}[name]
    assert versions.find(ref, root=str(tmp_path)).logical_hash == second.logical_hash


@pytest.mark.parametrize("ref", ["v9", "nosuch", "latest", "./nowhere"])
def test_an_absent_version_is_a_sentence(tmp_path: Path, ref: str) -> None:
    with pytest.raises(UserError) as refused:
        versions.find(ref, root=str(tmp_path))
    assert "\n" not in str(refused.value)


def test_latest_is_of_a_kind_that_is_read(tmp_path: Path) -> None:
    publish(tmp_path)
    assert versions.find("latest", root=str(tmp_path), kinds=("pairs",)).name == "v1"
    with pytest.raises(UserError, match="no version of kind unpaired"):
        versions.find("latest", root=str(tmp_path), kinds=("unpaired",))
    with pytest.raises(UserError, match="holds pairs"):
        versions.find("v1", root=str(tmp_path), kinds=("completions",))


@pytest.mark.parametrize("file", ["train/part-00000.parquet", "ledger/part-00000.parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_named_and_refused(tmp_path: Path, file: str, damage: str) -> None:
    version = publish(tmp_path)
    path = tmp_path / "v1" / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-10])
    else:
        path.unlink()
    problems = versions.verify(version)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}: ")
    with pytest.raises(DamagedVersion, match=file):
        version.table("train") if file.startswith("train") else version.ledger()


def test_verify_finds_files_that_do_not_belong(tmp_path: Path) -> None:
    version = publish(tmp_path)
    (tmp_path / "v1" / "train" / "extra.parquet").write_bytes(b"x")
    assert versions.verify(version) == ["train/extra.parquet: not in the manifest"]


def _forge(root: Path, change: object) -> versions.Version:
    path = root / "v1" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)  # type: ignore[operator]
    path.write_text(json.dumps(manifest))
    return versions.find("v1", root=str(root))


def test_verify_adds_up(tmp_path: Path) -> None:
    publish(tmp_path, aside=1)

    def lose_a_row(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["counts"]["rows_in"] -= 1

    assert any("kept + set_aside" in problem for problem in versions.verify(_forge(tmp_path, lose_a_row)))


def test_verify_compares_rows_with_the_ledger_and_the_hash(tmp_path: Path) -> None:
    publish(tmp_path)
    path = tmp_path / "v1" / "train" / "part-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["row_id"] = "0" * 64
    pq.write_table(tiny_world.table(rows), path)
    from prefdata.storage import sha256

    def accept(manifest: dict) -> None:  # type: ignore[type-arg]
        entry = next(entry for entry in manifest["files"] if entry["path"].startswith("train"))
        entry["sha256"], entry["bytes"] = sha256(path.read_bytes()), path.stat().st_size

    problems = versions.verify(_forge(tmp_path, accept))
    assert any("logical hash" in problem for problem in problems)
    assert any("ledger says were made" in problem for problem in problems)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(UserError, match="prefdata/99"):
        _forge(tmp_path, lambda manifest: manifest.update(format="prefdata/99"))


def test_a_folder_named_like_a_version_is_none_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "v7").mkdir()
    assert versions.every(str(tmp_path)) == []
    assert publish(tmp_path).name == "v8"
