"""Storage: whole or absent, and exactly one creator."""

import errno
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefdata import storage as store
from prefdata.errors import UserError
from prefdata.storage import Storage


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(f"{request.getfixturevalue('s3').bucket()}/root")
    return Storage(str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    assert storage.folders() == ["a"]
    assert storage.names("a") == ["b.bin"]
    assert list(storage.walk()) == ["a/b.bin"]


def test_create_refuses_a_name_that_is_taken(storage: Storage) -> None:
    assert storage.create("v1/claim", b"mine")
    assert not storage.create("v1/claim", b"yours")
    assert storage.read("v1/claim") == b"mine"


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("without_links")
def test_exactly_one_of_many_creates_wins_without_hard_links(tmp_path: Path) -> None:
    test_exactly_one_of_many_creates_wins(tmp_path)
    assert not Storage(str(tmp_path)).create("claim", b"late")
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]  # neither a lock nor a temporary file is left


@pytest.mark.usefixtures("without_links")
def test_a_lock_that_was_left_is_said_and_never_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_LOCK_PATIENCE_S", 0.05)
    (tmp_path / ".tmp-lock-claim").touch()
    with pytest.raises(UserError, match="tmp-lock-claim was left"):
        Storage(str(tmp_path)).create("claim", b"mine")
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-lock-claim"]


def test_an_error_of_a_link_that_says_nothing_of_links_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="full"):
        Storage(str(tmp_path)).create("claim", b"mine")
    assert list(tmp_path.iterdir()) == []


def test_exactly_one_of_many_creates_wins(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    gate = threading.Barrier(16)

    def attempt(number: int) -> bool:
        gate.wait()
        return storage.create("claim", str(number).encode())

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(16))) == 1
    assert list(storage.walk()) == ["claim"]  # no temporary file is left


def test_absent_things_are_absent(storage: Storage) -> None:
    assert not storage.exists("nothing")
    assert storage.names("nothing") == storage.folders("nothing") == []
    storage.remove("nothing")
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")


def test_remove_takes_a_folder_with_all_it_holds(storage: Storage) -> None:
    storage.write("a/b/c", b"")
    storage.write("a/d", b"")
    storage.remove("a")
    assert list(storage.walk()) == []


def test_a_storage_below_another_sees_the_same_files(storage: Storage) -> None:
    storage.at("x").write("y", b"z")
    assert storage.read("x/y") == b"z"
    assert Storage(storage.at("x").url).read("y") == b"z"


def test_an_unknown_protocol_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="nosuchthing"):
        Storage("nosuchthing://bucket")


def test_a_place_that_is_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    storage = Storage(str(tmp_path / "file"))
    for act in (lambda: storage.read("v1/claim"), lambda: storage.write("a", b""), lambda: storage.create("v1/a", b"")):
        with pytest.raises(UserError, match=r"not a directory|file exists"):
            act()
    assert storage.folders() == storage.names() == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc, where no folder can be made")
def test_a_place_that_cannot_be_made_is_refused_in_words() -> None:
    storage = Storage("/proc/nothing/data")
    for act in (lambda: storage.write("a", b""), lambda: storage.create("v1/claim", b""), storage.probe):
        with pytest.raises(UserError, match=r"cannot make /proc/nothing/data.*--root"):
            act()


def test_a_probe_leaves_nothing(storage: Storage) -> None:
    storage.write("a", b"")
    storage.probe()
    assert [entry["name"] for entry in storage.fs.ls(storage.path(), detail=True)] == [storage.path("a")]


@pytest.mark.parametrize("problem", [PermissionError("denied"), OSError("full"), RuntimeError("no credentials")])
def test_a_probe_says_why_it_failed(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage("memory://probe")

    def fail(*given: object, **options: object) -> None:
        raise problem

    monkeypatch.setattr(type(storage.fs), "pipe_file", fail)
    with pytest.raises(UserError, match=rf"cannot write into memory:///?probe \({problem}\)"):
        storage.probe()
