"""Garbage collection removes what killed builds left, and nothing else whatsoever."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime

import pytest

from prefdata import cli, gc, versions
from prefdata.errors import UserError
from prefdata.storage import Storage
from prefdata.verify import verify
from prefdata.work import Work
from tests.disks import FILLER, mounted
from tests.published import manifest_fields, pair, publish, rows_table

HOUR = 3600.0
OLD = time.time() - 48 * HOUR
UNIT = "ab" + "0" * 62


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def age(path, when=OLD):
    for each in [path, *path.rglob("*")]:
        os.utime(each, (when, when), follow_symlinks=False)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def claimed(root, number, when=OLD, **fields):
    """What a build that was killed while staging leaves."""
    folder = root / f"v{number}"
    (folder / "train").mkdir(parents=True)
    claim = {"host": socket.gethostname(), "pid": dead_pid(), "time": when, "build_key": "key", **fields}
    (folder / "claim").write_text(json.dumps(claim))
    (folder / "train" / "part-00000.parquet").write_bytes(b"x" * 1000)
    (folder / "README.md").write_bytes(b"card")
    (folder / "train" / ".tmp-0123456789abcdef").write_bytes(b"half")
    age(folder, when)
    return folder


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def collect(root, *, hours=24.0, now=None, with_work=False):
    """Run it; what it kept, with the reason."""
    storage = Storage(str(root))
    found = gc.plan(storage, older_than_s=hours * HOUR, now=now or time.time(), with_work=with_work)
    for leftover in found.leftovers:
        assert gc.remove(storage, leftover) == leftover.bytes
    return found.kept


def test_a_stale_claim_goes_whole_and_the_highest_keeps_its_number(root):
    publish(root)
    claimed(root, 2)
    claimed(root, 3)
    assert collect(root) == []
    assert not (root / "v2").exists()
    assert files(root / "v3") == {"claim"}
    assert publish(root).name == "v4"
    age(root / "v3")
    collect(root)
    assert not (root / "v3").exists()  # no longer the highest
    assert [version.name for version in versions.every(str(root))] == ["v1", "v4"]
    assert verify(versions.find("v4", root=str(root))) == []


def test_a_second_run_finds_nothing(root):
    claimed(root, 1)
    claimed(root, 2)
    collect(root)
    left = files(root)
    assert gc.plan(Storage(str(root)), older_than_s=0, now=time.time()) == gc.Plan()
    assert files(root) == left == {"v2/claim"}


@pytest.mark.parametrize("fresh", ["claim time", "claim file", "newest file"])
def test_the_newest_trace_decides(root, fresh):
    folder = claimed(root, 1, **({"time": time.time()} if fresh == "claim time" else {}))
    if fresh != "claim time":
        os.utime(folder / ("claim" if fresh == "claim file" else "train/part-00000.parquet"))
    before = files(root) - {"v1/train/.tmp-0123456789abcdef"}
    collect(root)
    assert files(root) == before


@pytest.mark.parametrize("what", ["claim", "file"])
@pytest.mark.parametrize("hours", [0, 24])
def test_what_is_dated_in_the_future_is_not_stale(root, what, hours):
    tomorrow = time.time() + 24 * HOUR
    folder = claimed(root, 1, **({"time": tomorrow} if what == "claim" else {}))
    if what == "file":
        age(folder, tomorrow)
    staged = files(root) - {"v1/train/.tmp-0123456789abcdef"}
    collect(root, hours=hours)
    assert staged <= files(root)


@pytest.mark.parametrize("what", ["claim", "file"])
def test_what_a_wrong_clock_dated_years_ahead_goes_once_its_process_has_ended(root, what):
    years = time.time() + 10 * 365 * 24 * HOUR
    for number in (1, 2, 3):
        others = {"host": "elsewhere"} if number == 1 else {"pid": os.getpid()} if number == 2 else {}
        folder = claimed(root, number, **({"time": years} if what == "claim" else {}), **others)
        age(folder, years if what == "file" else OLD)
    publish(root)
    kept = [reason for reason in collect(root) if ".tmp-" not in reason]
    assert [reason[:3] for reason in kept] == ["v1:", "v2:"]
    assert "3,650 days ahead of this machine's clock, and host 'elsewhere' claimed it" in kept[0]
    assert f"process {os.getpid()}" in kept[1]
    assert {path.split("/")[0] for path in files(root)} == {"v1", "v2", "v4"}


def test_the_limit_is_exact(root):
    claimed(root, 1, when=OLD)
    storage = Storage(str(root))
    assert gc.plan(storage, older_than_s=HOUR, now=OLD + HOUR - 1).leftovers == []
    assert len(gc.plan(storage, older_than_s=HOUR, now=OLD + HOUR + 1).leftovers) == 1


def test_versions_tags_and_unknown_files_are_never_touched(root):
    version = publish(root)
    versions.tag("best", "v1", str(root))
    (root / "v1" / ".tmp-0123456789abcdef").write_bytes(b"in a version")
    for stranger in ("notes.txt", ".hidden", "v2x/claim", "mine/.tmp-1", "v5/notes", "v06/claim", "V7/claim"):
        (root / stranger).parent.mkdir(parents=True, exist_ok=True)
        (root / stranger).write_text("{}")
    (root / "v8").mkdir()
    (root / "v9").write_text("a file")
    Storage(str(root)).write("v10/manifest.json", b"{damaged")
    Storage(str(root)).write("v10/claim", b"{}")
    age(root)
    before = files(root)
    assert collect(root, hours=0, with_work=True) == []
    assert files(root) == before
    assert versions.find("best", root=str(root)).logical_hash == version.logical_hash


@pytest.mark.parametrize(
    "stranger", ["train/notes.txt", "extra/part-00000.parquet", "train/part-0.parquet", "stats/a/b"]
)
def test_a_claim_with_an_unknown_file_stays_whole_and_is_named(root, stranger):
    folder = claimed(root, 1)
    claimed(root, 2)
    (folder / stranger).parent.mkdir(parents=True, exist_ok=True)
    (folder / stranger).write_text("mine")
    age(folder)
    (kept,) = collect(root)
    assert stranger in kept
    assert {f"v1/{stranger}", "v1/claim", "v1/train/part-00000.parquet"} <= files(root)


@pytest.mark.parametrize(
    "claim", ["", "{", "[]", "null", "{}", '{"time": "x"}', '{"time": NaN}', '{"time": 1e999}', "[" * 100_000]
)
def test_a_claim_that_cannot_be_read_stays(root, claim):
    folder = claimed(root, 1)
    claimed(root, 2)
    (folder / "claim").write_text(claim)
    age(folder)
    assert "can't be read" in collect(root)[0]
    assert "v1/train/part-00000.parquet" in files(root)


@pytest.mark.parametrize("pid", [None, "7", -1, 0, 10**30, 1.5])
def test_a_claim_whose_process_is_nonsense_is_still_stale(root, pid):
    claimed(root, 1, pid=pid)
    claimed(root, 2)
    collect(root)
    assert not (root / "v1").exists()


def test_a_claim_of_a_running_process_stays_on_its_own_machine(root):
    claimed(root, 1, pid=os.getpid())
    claimed(root, 2, pid=os.getpid(), host="elsewhere")
    claimed(root, 3)
    (kept,) = collect(root)
    assert "still running" in kept
    assert "v1/train/part-00000.parquet" in files(root)
    assert not (root / "v2").exists()


def test_a_manifest_that_appears_meanwhile_saves_every_file(root):
    claimed(root, 1)
    claimed(root, 2)
    storage = Storage(str(root))
    found = gc.plan(storage, older_than_s=HOUR, now=time.time())
    (root / "v1" / "manifest.json").write_text("{}")
    before = files(root / "v1")
    assert gc.remove(storage, found.leftovers[0]) == 0
    assert files(root / "v1") == before


def test_links_are_neither_followed_nor_removed(root, tmp_path):
    target = claimed(tmp_path / "elsewhere", 1)
    (target / "part").write_text("x")
    root.mkdir()
    (root / "v1").symlink_to(target)
    (root / "tags").symlink_to(target / "train")
    (root / ".work").symlink_to(target)
    (root / ".tmp-0123456789abcdef").symlink_to(target / "README.md")
    inside = claimed(root, 2)
    (inside / "stats").symlink_to(target / "train")
    claimed(root, 3)
    age(root)
    before, outside = files(root), files(tmp_path / "elsewhere")
    collect(root, hours=0, with_work=True)
    assert files(tmp_path / "elsewhere") == outside
    assert {"v1", "tags", ".work", ".tmp-0123456789abcdef", "v2/stats", "v2/claim"} <= files(root) & before


def test_old_temporary_files_go_and_young_ones_stay(root):
    publish(root)
    Work(str(root)).store(UNIT, {"rows": rows_table("pairs", [])})
    places = [root / ".tmp-1", root / "tags" / ".tmp-2", root / ".work/units/ab/.tmp-3", root / "v5" / ".tmp-4"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"half")
    collect(root)
    collect(root, hours=0)  # it may still be written, whatever the user says
    assert all(place.exists() for place in places)
    for place in places:
        age(place)
    collect(root)
    assert not any(place.exists() for place in places)
    assert Work(str(root)).done(UNIT)


def test_a_lock_is_never_broken(root):
    claimed(root, 1)
    claimed(root, 2)
    locks = [root / "v1" / ".tmp-lock-manifest.json", root / "v3" / ".tmp-lock-claim", root / "tags" / ".tmp-lock-x"]
    for lock in locks:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        age(lock)
    kept = collect(root, hours=0)
    assert all(lock.exists() for lock in locks)
    assert all(any(lock.name in reason and "lock" in reason for reason in kept) for lock in locks)
    assert "v1/train/part-00000.parquet" in files(root)
    assert not (root / "v2").exists()  # v3 has no claim, and its number


def interrupting(monkeypatch, name, before, act):
    """Let something happen once, right before or after a method of Storage."""
    method, done = getattr(Storage, name), []

    def replaced(storage, *given):
        if before and not done:
            done.append(act())
        result = method(storage, *given)
        if not before and not done:
            done.append(act())
        return result

    monkeypatch.setattr(Storage, name, replaced)
    return done


@pytest.fixture(params=["highest", "another is higher"])
def paused(request, root):
    """A publisher that was silent for so long that gc would take its files: the publisher, and what gc would remove."""
    rows = rows_table("pairs", [pair([1, 2], [1, 3])])
    staging = versions.Staging(str(root), rows.schema, "key")
    staging.add("train", rows)
    made = [{"row_id": "in", "status": "kept", "stage": "publish", "made": rows["row_id"].to_pylist()}]
    staging.ledger(versions.ledger_lines(made))
    staging.flush()
    claim = json.loads((root / "v1/claim").read_text())
    claim = json.dumps({**claim, "host": "elsewhere", "time": OLD}).encode()
    (root / "v1/claim").write_bytes(claim)
    staging.files[0] = versions._entry("claim", claim)
    age(root / "v1")
    if request.param != "highest":
        (root / "v2").mkdir()
    (leftover,) = gc.plan(Storage(str(root)), older_than_s=24 * HOUR, now=time.time()).leftovers
    return staging, leftover


def publish_paused(staging):
    with staging:
        return staging.publish(staging.manifest(("publish",), manifest_fields("pairs", True)))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("method", ["rename", "exists", "remove_files"])
def test_a_publisher_that_wakes_while_gc_is_at_it_publishes_all_or_nothing(root, monkeypatch, paused, method, before):
    staging, leftover = paused

    def wake():
        with contextlib.suppress(UserError):
            return publish_paused(staging)

    woken = interrupting(monkeypatch, method, before, wake)
    gc.remove(Storage(str(root)), leftover)
    (version,) = woken
    assert [each.name for each in versions.every(str(root))] == ([version.name] if version else [])
    assert [verify(each) for each in versions.every(str(root))] == ([[]] if version else [])


@pytest.mark.parametrize("before", [True, False])
def test_gc_that_comes_while_a_publisher_writes_its_manifest_takes_all_or_nothing(root, monkeypatch, paused, before):
    staging, leftover = paused
    done = interrupting(monkeypatch, "create", before, lambda: gc.remove(Storage(str(root)), leftover))
    if before:  # the files went between the publisher's look at them and its manifest
        with pytest.raises(UserError, match="lost"):
            publish_paused(staging)
        assert versions.every(str(root)) == []
        assert done == [leftover.bytes]
    else:
        assert verify(publish_paused(staging)) == []
        assert done == [0]


def test_a_builder_that_goes_on_after_the_plan_is_left_alone(root, paused):
    staging, leftover = paused
    staging.text("README.md", "card")
    before = files(root)
    assert gc.remove(Storage(str(root)), leftover) == 0
    assert files(root) == before
    assert verify(publish_paused(staging)) == []


def test_a_temporary_file_that_was_touched_after_the_plan_stays(root):
    root.mkdir()
    (root / ".tmp-1").write_bytes(b"half")
    age(root)
    storage = Storage(str(root))
    (leftover,) = gc.plan(storage, older_than_s=HOUR, now=time.time()).leftovers
    os.utime(root / ".tmp-1")
    assert gc.remove(storage, leftover) == 0
    assert files(root) == {".tmp-1"}


@pytest.mark.parametrize("others", [1, 3])
def test_a_gc_that_was_stopped_half_way_is_run_again(root, monkeypatch, others):
    for number in range(1, others + 1):
        claimed(root, number)
    storage = Storage(str(root))
    leftovers = gc.plan(storage, older_than_s=HOUR, now=time.time()).leftovers
    with monkeypatch.context() as stopped:
        stopped.setattr(Storage, "remove_files", lambda *given: pytest.exit("stopped"))
        with pytest.raises(pytest.exit.Exception):
            gc.remove(storage, leftovers[0])
    assert "v1/train/part-00000.parquet" in files(root)
    assert publish(root).name == f"v{others + 1}"
    collect(root)
    assert {path.split("/")[0] for path in files(root)} == {f"v{others + 1}"}


def test_work_units_go_only_when_asked_for_and_old(root):
    work = Work(str(root))
    work.store(UNIT, {"rows": rows_table("pairs", [])})
    Storage(str(root)).write(".work/units/ab/mine.txt", b"mine")
    collect(root, hours=0)
    collect(root, with_work=True)
    assert work.done(UNIT)
    collect(root, hours=0, now=time.time() + 1, with_work=True)
    assert files(root) == {".work/units/ab/mine.txt"}
    work.store(UNIT, {"rows": rows_table("pairs", [])})
    assert work.done(UNIT)


def test_an_object_store_is_collected_the_same():
    root = f"memory://{uuid.uuid4().hex}"
    storage = Storage(root)
    publish(root)
    for number in (2, 3):
        claim = {"host": "gone", "pid": 1, "time": time.time(), "build_key": "key"}
        storage.write(f"v{number}/claim", json.dumps(claim).encode())
        storage.write(f"v{number}/train/part-00000.parquet", b"x")
    before = sorted(storage.walk())
    collect(root)
    assert sorted(storage.walk()) == before
    collect(root, now=time.time() + 48 * HOUR)
    assert sorted(storage.walk()) == [name for name in before if not name.startswith(("v2/", "v3/train"))]
    assert verify(versions.find("v1", root=root)) == []


@pytest.mark.parametrize("modified", [datetime(2020, 1, 1, tzinfo=UTC), None])
def test_what_a_listing_does_not_date_is_asked_for_and_what_nobody_dates_stays(monkeypatch, modified):
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    storage.write(".tmp-1", b"half")
    ls = type(storage.fs).ls

    def undated(fs, path, **options):
        return [{name: each[name] for name in ("name", "size", "type")} for each in ls(fs, path, **options)]

    def asked(fs, path):
        if modified is None:
            raise NotImplementedError
        return modified

    monkeypatch.setattr(type(storage.fs), "ls", undated)
    monkeypatch.setattr(type(storage.fs), "modified", asked)
    collect(storage.url)
    assert storage.exists(".tmp-1") is (modified is None)


def test_a_full_disk_is_collected(tmp_path):
    with mounted(tmp_path / "disk") as disk:
        claimed(disk.path, 1)
        claimed(disk.path, 2)
        disk.leave(0)
        collect(disk.path)
        assert files(disk.path) == {FILLER, "v2/claim"}
        assert disk.free > 0


def test_no_root_is_nothing_to_collect(root):
    assert collect(root, with_work=True) == []


def test_the_command_says_what_goes_and_how_much_and_a_dry_run_changes_nothing(root, capsys):
    publish(root)
    claimed(root, 2)
    kept = claimed(root, 3)
    (kept / "mine\x1b[2J").write_text("x")
    age(kept)
    before = files(root)
    assert cli.main(["gc", "--dry-run", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert files(root) == before
    size = sum((root / name).stat().st_size for name in before if name.startswith("v2/"))
    assert f"would remove v2: stale claim, {size:,} bytes" in out
    assert r"left v3: it holds mine\x1b[2J" in out
    assert cli.main(["gc", "--root", str(root)]) == 0
    assert capsys.readouterr().out.replace("removed", "would remove") == out
    assert not (root / "v2").exists()


@pytest.mark.parametrize("hours", ["-1", "nan", "inf", "soon", ""])
def test_a_limit_that_is_no_time_is_refused(root, hours):
    claimed(root, 1)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gc", "--older-than", hours, "--root", str(root)])
    assert stopped.value.code == 2
    assert "v1/README.md" in files(root)
