"""Versions: wholly there or not at all, never changed, found by name, checked to the byte."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from prefdata import cli, logical, manifests, versions
from prefdata.errors import Unreachable, UserError
from prefdata.storage import Storage
from prefdata.verify import verify
from prefdata.versions import DamagedVersion, ledger_lines
from schemas import pairs
from tests import tiny_world

ROOT = Path(__file__).parent.parent
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
    assert verify(version) == []
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
        staged = sorted(staging.storage.walk())
    assert sorted(staging.storage.walk()) == staged  # they may be those of the version that is there
    assert (tmp_path / "v1" / "manifest.json").read_text() == "{}"


def test_a_manifest_that_was_written_though_the_answer_was_lost_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Storage.create

    def create_twice(storage: Storage, name: str, data: bytes) -> bool:
        """As an object store's client does that asks again after its first request was carried out unheard."""
        made = create(storage, name, data)
        return create(storage, name, data) if name == versions.MANIFEST else made

    monkeypatch.setattr(Storage, "create", create_twice)
    version = publish(tmp_path)
    assert verify(version) == []
    assert [version.name for version in versions.every(str(tmp_path))] == ["v1"]


def test_an_interrupt_right_after_the_manifest_leaves_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Storage.create

    def interrupted(storage: Storage, name: str, data: bytes) -> bool:
        made = create(storage, name, data)
        if name == versions.MANIFEST:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(Storage, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path)
    assert verify(versions.find("v1", root=str(tmp_path))) == []


def test_a_manifest_that_no_reader_would_open_is_not_written(tmp_path: Path) -> None:
    with stage(tmp_path, tiny_world.table(tiny_world.pair_rows(3))) as staging:
        staging.flush()
        with pytest.raises(ValueError, match="round is of type str"):
            staging.publish(staging.manifest(STAGES, fields() | {"round": "1"}))
    assert versions.every(str(tmp_path)) == []


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


def test_a_tag_that_names_an_absent_version_says_which(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags" / "best").write_text("v7\n")
    with pytest.raises(UserError, match=r"the tag 'best' names 'v7'.*versions there: v1"):
        versions.find("best", root=str(tmp_path))


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
    problems = verify(version)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}: ")
    with pytest.raises(DamagedVersion, match=file):
        version.table("train") if file.startswith("train") else version.ledger()


def test_verify_finds_files_that_do_not_belong(tmp_path: Path) -> None:
    version = publish(tmp_path)
    (tmp_path / "v1" / "train" / "extra.parquet").write_bytes(b"x")
    assert verify(version) == ["train/extra.parquet: not in the manifest"]


def _publish_logps(root: Path, change: Callable[[dict[str, Any]], None], **extra: pa.DataType) -> versions.Version:
    """A version of masked and unmasked rows with -1.5 nats per token, the first one changed."""
    rows = tiny_world.pair_rows(3) + tiny_world.pair_rows(2, seed=1, masked=True)
    for row in rows:
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_token_logps"] = [-1.5] * len(row[f"{side}_ids"])
            row[f"ref_{side}_logps"] = -1.5 * row[f"{side}_tokens"]
    change(rows[-1])
    schema = pa.unify_schemas([pairs.BASE, pairs.REFERENCE])
    for name, type_ in extra.items():
        schema = schema.remove(schema.get_field_index(name)) if name in schema.names else schema
        schema = schema.append(pa.field(name, type_))
    with versions.Staging(str(root), schema, "key") as staging:
        staging.add("train", pa.Table.from_pylist(rows, schema=schema))
        names = [row["row_id"] for row in rows]
        staging.ledger(ledger_lines({"row_id": n, "status": "kept", "stage": "publish", "made": [n]} for n in names))
        staging.flush()
        return staging.publish(staging.manifest(STAGES, fields()))


def test_sound_log_probs_are_found_sound(tmp_path: Path) -> None:
    assert verify(_publish_logps(tmp_path, lambda row: None)) == []


BAD_LOGPS = {
    "no log-probs": ({"ref_chosen_token_logps": None}, "ref_chosen_token_logps is null in 1 row"),
    "no sum": ({"ref_rejected_logps": None}, "ref_rejected_logps is null in 1 row"),
    "one is null": ({"ref_chosen_token_logps": lambda old: [None, *old[1:]]}, "not finite"),
    "too few": ({"ref_chosen_token_logps": lambda old: old[1:]}, "not one value per token"),
    "above 0": ({"ref_chosen_token_logps": lambda old: [0.5, *old[1:]]}, "above 0"),
    "sum not finite": ({"ref_chosen_logps": float("-inf")}, "ref_chosen_logps holds values that are not finite"),
    "sum of all tokens": ({"ref_chosen_logps": lambda old: old - 1.5}, "ref_chosen_logps is not the sum"),
    "sum off by rounding to half": (
        {"ref_rejected_logps": lambda old: old * 1.001},
        "ref_rejected_logps is not the sum",
    ),
    "mask too short": ({"chosen_loss_mask": lambda old: old[:-1]}, "chosen_loss_mask is not one value per token"),
    "mask holds a null": ({"chosen_loss_mask": lambda old: [None, *old[1:]]}, "chosen_loss_mask holds nulls"),
}


@pytest.mark.parametrize("name", BAD_LOGPS)
def test_verify_checks_log_probs_against_tokens_and_masks(tmp_path: Path, name: str) -> None:
    changes, said = BAD_LOGPS[name]

    def change(row: dict[str, Any]) -> None:
        row |= {column: new(row[column]) if callable(new) else new for column, new in changes.items()}

    (problem,) = verify(_publish_logps(tmp_path, change))
    assert said in problem


@pytest.mark.parametrize(
    ("column", "type_"), [("ref_chosen_logps", pa.float64()), ("segment_start", pa.int64()), ("ended_early", pa.int8())]
)
def test_verify_checks_the_types_of_columns_that_need_not_be_there(
    tmp_path: Path, column: str, type_: pa.DataType
) -> None:
    (problem,) = verify(_publish_logps(tmp_path, lambda row: None, **{column: type_}))
    assert f"column {column} is {type_}, expected" in problem


def _forge(root: Path, change: object) -> versions.Version:
    path = root / "v1" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)  # type: ignore[operator]
    path.write_bytes(manifests.as_bytes(manifests.sealed(manifest)))
    return versions.find("v1", root=str(root))


def test_verify_adds_up(tmp_path: Path) -> None:
    publish(tmp_path, aside=1)

    def lose_a_row(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["counts"]["rows_in"] -= 1

    assert any("kept + set_aside" in problem for problem in verify(_forge(tmp_path, lose_a_row)))


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

    problems = verify(_forge(tmp_path, accept))
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


REQUIRED = [
    "version",
    "kind",
    "build",
    "build_key",
    "parents",
    "tokenizer",
    "reference",
    "counts",
    "files",
    "created_at",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_manifest_that_lacks_something_is_damaged(tmp_path: Path, key: str) -> None:
    publish(tmp_path)
    with pytest.raises(DamagedVersion, match=f"v1/{versions.MANIFEST}.*: {key} is absent"):
        _forge(tmp_path, lambda manifest: manifest.pop(key))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest["files"][0].pop("sha256"), "files.0.sha256 is absent"),
        (lambda manifest: manifest["counts"]["rows"].update(train="5"), "counts.rows.train is of type str"),
        (lambda manifest: manifest.update(reference=[]), "reference is of type list"),
        (lambda manifest: manifest.update(parents=[{"version": "v1"}]), "parents.0.logical_hash is absent"),
    ],
)
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, change: object, said: str) -> None:
    publish(tmp_path)
    with pytest.raises(DamagedVersion, match=said):
        _forge(tmp_path, change)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "prefdata/99"}', "copied", "a folder", "forbidden"])
def test_a_damaged_version_does_not_stop_work_on_the_others(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path)
    publish(tmp_path)
    if content == "copied":
        shutil.copytree(tmp_path / "v1", tmp_path / "v2")
    elif content == "a folder":
        (tmp_path / "v2" / "manifest.json").mkdir(parents=True)
    else:
        (tmp_path / "v2").mkdir()
        (tmp_path / "v2" / "manifest.json").write_text(content)
    if content == "forbidden":  # to whoever runs this, root too
        _refuse_to_read(tmp_path / "v2" / "manifest.json", errno.EACCES, monkeypatch)
    damaged: list[DamagedVersion] = []
    assert [version.name for version in versions.every(root, damaged=damaged.append)] == ["v1"]
    assert ["/v2" in str(damage) for damage in damaged] == [True]
    assert versions.find("latest", root=root).url == str(tmp_path / "v1")
    assert "passed over" in caplog.text  # whoever asked for the latest is told that there is a later one
    found = versions.find_build("key", root)
    assert found is not None
    assert found.name == "v1"
    with pytest.raises(DamagedVersion):
        versions.find("v2", root=root)


def _refuse_to_read(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read = LocalFileSystem.cat_file

    def refuse(fs: LocalFileSystem, name: str) -> bytes:
        if name == str(path):
            raise OSError(number, os.strerror(number), name)
        return bytes(read(fs, name))

    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)


def test_a_disk_that_fails_for_a_moment_damages_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path)
    _refuse_to_read(tmp_path / "v1" / "manifest.json", errno.ESTALE, monkeypatch)
    with pytest.raises(OSError, match=r"v1/manifest\.json"):
        versions.find_build("key", str(tmp_path))  # passed over, the same build would be made again


def test_a_copied_version_is_opened_by_its_path(tmp_path: Path) -> None:
    publish(tmp_path)
    shutil.copytree(tmp_path / "v1", tmp_path / "v9")
    copy = versions.find(str(tmp_path / "v9"), root=str(tmp_path))
    assert verify(copy) == []
    assert versions.parent_entry(copy, str(tmp_path)).get("url") == str(tmp_path / "v9")


def test_a_parent_below_another_root_is_named_with_its_url(tmp_path: Path) -> None:
    parent = publish(tmp_path / "one")
    entry = {"version": "v1", "logical_hash": parent.logical_hash}
    assert versions.parent_entry(parent, str(tmp_path / "one")) == entry
    foreign = versions.parent_entry(parent, str(tmp_path / "two"))
    assert foreign == {**entry, "url": str(tmp_path / "one" / "v1")}
    with stage(tmp_path / "two", tiny_world.table(tiny_world.pair_rows(3))) as staging:
        staging.flush()
        child = staging.publish(staging.manifest(STAGES, fields() | {"parents": [foreign, entry]}))
    assert child.parents == [str(tmp_path / "one" / "v1"), "v1"]
    assert versions.find(child.parents[0], root=str(tmp_path / "two")).logical_hash == parent.logical_hash


def test_a_root_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    versions.writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--root or PREFDATA_ROOT"):
        versions.writable(str(tmp_path / "file"))


def test_reading_starts_no_thread_that_could_abort_the_process_at_its_end(tmp_path: Path) -> None:
    """What pq.read_table starts can still run when the process ends, which then aborts instead of exiting."""
    publish(tmp_path, 300)
    code = f"""
import os
from prefdata import versions
version = versions.find("v1", root={str(tmp_path)!r})
before = set(os.listdir("/proc/self/task"))
version.table("train"), version.ledger(), version.schema
raise SystemExit(len(set(os.listdir("/proc/self/task")) - before))
"""
    started = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode
    assert started == 0


@pytest.mark.parametrize("file", ["claim", "train/part-00000.parquet"])
def test_a_version_that_lost_a_file_while_staged_is_not_published(tmp_path: Path, file: str) -> None:
    with stage(tmp_path, tiny_world.table(tiny_world.pair_rows(3))) as staging:
        staging.flush()
        (tmp_path / "v1" / file).unlink()
        with pytest.raises(UserError, match=f"lost {file}"):
            staging.publish(staging.manifest(STAGES, fields()))
    assert versions.every(str(tmp_path)) == []


@pytest.mark.parametrize("stopped", [TypeError("a bug"), KeyboardInterrupt()])
def test_what_stopped_a_build_is_what_is_told(
    tmp_path: Path, stopped: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(storage: Storage, name: str) -> None:
        raise Unreachable("no answer")

    monkeypatch.setattr(Storage, "remove", fail)

    def leave(problem: BaseException | None) -> None:
        with stage(tmp_path, tiny_world.table(tiny_world.pair_rows(3))) as staging:
            staging.flush()
            if problem is not None:
                raise problem

    with pytest.raises(type(stopped)):
        leave(stopped)
    assert "v1 stays until `prefdata gc`: no answer" in caplog.text
    with pytest.raises(Unreachable):
        leave(None)


def test_the_folders_are_on_the_disk_before_the_manifest_and_it_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves can't be tried here; the order of the calls can be seen."""
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def synced(file: int) -> None:
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{file}"), tmp_path))
        fsync(file)

    def linked(source: str, target: str) -> None:
        done.append(f"link {os.path.basename(target)}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    publish(tmp_path)
    manifest = done.index("link manifest.json")
    assert {".", "v1", "v1/train", "v1/ledger"} <= set(done[done.index("link claim") : manifest])
    assert "v1" in done[manifest:]


def test_only_tags_are_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path)
    publish(tmp_path)
    versions.tag("best", "v1", root)
    versions.tag("going", "v1", root)
    for stranger in (".DS_Store", ".nfs0001", "a b", "~best"):
        (tmp_path / "tags" / stranger).write_bytes(b"\0\xff")
    assert versions.tags(root) == {"best": "v1", "going": "v1"}
    assert cli.main(["--root", root, "verify", "--all"]) == 0
    names = Storage.names

    def then_untagged(storage: Storage, name: str = "") -> list[str]:
        found = names(storage, name)
        (tmp_path / "tags" / "going").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Storage, "names", then_untagged)
    assert versions.tags(root) == {"best": "v1"}


@pytest.mark.parametrize("name", ["漢" * 34, "a" * 101, "best.", "CON", "nul", "aux.txt", "Prn.", "com1", "a/b", "-x"])
def test_a_name_that_not_every_machine_can_keep_is_no_tag(tmp_path: Path, name: str) -> None:
    publish(tmp_path)
    with pytest.raises(UserError, match="can't be a tag"):
        versions.tag(name, "v1", str(tmp_path))
    assert not (tmp_path / "tags").exists()


@pytest.mark.parametrize("name", ["漢" * 33, "a" * 100, "best.1", "console", "nullable"])
def test_a_name_that_any_machine_can_keep_is_a_tag(tmp_path: Path, name: str) -> None:
    publish(tmp_path)
    versions.tag(name, "v1", str(tmp_path))
    assert versions.find(name, root=str(tmp_path)).name == "v1"


def test_verify_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(tmp_path, 9, aside=2)
    read: list[str] = []
    whole = Storage.read
    monkeypatch.setattr(Storage, "read", lambda storage, name: read.append(name) or whole(storage, name))
    assert verify(version) == []
    assert sorted(read) == sorted(version.storage.walk())
