"""Storage: whole or absent, and exactly one creator."""

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefdata import gc, object_store, versions
from prefdata import storage as store
from prefdata.errors import Unreachable, UserError, faults_in_words
from prefdata.storage import Storage
from tests import published


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


def test_a_probe_is_content_with_a_store_that_loses_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    create = Storage.create

    def lost(where: Storage, name: str, data: bytes) -> bool:
        """As when the first request was carried out unheard and the client asked again."""
        create(where, name, data)
        return False

    monkeypatch.setattr(Storage, "create", lost)
    storage.probe()
    monkeypatch.setattr(Storage, "create", lambda *given: True)
    with pytest.raises(UserError, match="If-None-Match"):
        storage.probe()


@pytest.mark.parametrize("bug", [TypeError, AttributeError, NameError, KeyError, AssertionError, RecursionError])
def test_a_mistake_in_the_code_is_not_blamed_on_the_store(bug: type[Exception]) -> None:
    with pytest.raises(bug), object_store.in_words("read", "s3://bucket"):
        raise bug("a bug")
    with pytest.raises(Unreachable, match="cannot read s3://bucket"), object_store.in_words("read", "s3://bucket"):
        raise RuntimeError("no answer")


# -- names that read like patterns -----------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "s3"])
def pattern(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A root whose name is a pattern, and another root that the pattern matches."""
    memory = f"memory://{uuid.uuid4().hex}"
    parent = memory if request.param == "memory" else request.getfixturevalue("s3").bucket()
    return f"{parent}/a[1]", f"{parent}/a1"


def abort(root: str) -> None:
    with versions.Staging(root, published.rows_table("pairs", []).schema, "key") as staging:
        staging.text("README.md", "card")


def collect(root: str) -> None:
    storage = Storage(root)
    for leftover in gc.plan(storage, older_than_s=0, now=time.time() + 3600, with_work=True).leftovers:
        gc.remove(storage, leftover)


REMOVALS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "untag": (lambda root: versions.untag("best", root), ["tags/best"]),
    "aborted publish": (abort, ["v1/README.md"]),
    "gc": (collect, [".tmp-1", f".work/units/ab/ab{'0' * 62}", "v1/train/part-00000.parquet"]),
    "probe": (versions.writable, [".tmp-" + "0" * 16]),
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_what_is_removed_is_what_was_named(
    pattern: tuple[str, str], removal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    own, other = (Storage(url) for url in pattern)
    act, names = REMOVALS[removal]
    for name in names:
        other.write(name, b"theirs")
    if removal in ("untag", "gc"):
        for name in names:
            own.write(name, b"v1")
    if removal == "gc":
        own.write("v1/claim", b'{"time": 0}')
    act(own.url)
    assert not set(names) & set(_all(own))
    assert _all(other) == sorted(names)


def _all(storage: Storage) -> list[str]:
    """Every file, temporary ones included."""
    base = storage.path().rstrip("/") + "/"
    return sorted(str(path).removeprefix(base) for path in storage.fs.find(storage.path()))


# -- where a place is ------------------------------------------------------------------------------------------------


def test_a_folder_is_that_folder_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a::b", "x:y", "./s3:bucket"):
        Storage(name).write("file", b"")
        assert (tmp_path / name / "file").exists()
    assert Storage(str(tmp_path / "memory::c")).url == str(tmp_path / "memory::c")


@pytest.mark.parametrize("url", ["s3:bucket/x", "s3:/bucket", "memory:x", "simplecache::s3://b", "s3://b/a::c"])
def test_what_reads_like_a_url_and_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"cannot open .*(URL begins with|must not hold ::)"):
        Storage(url)


def test_a_link_that_was_sent_twice_has_one_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: str, target: str) -> None:
        """As over NFS, when the first request is carried out unheard."""
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert Storage(str(tmp_path)).create("claim", b"mine")
    assert not Storage(str(tmp_path)).create("claim", b"yours")
    (tmp_path / "other").write_bytes(b"theirs")
    monkeypatch.setattr(os.path, "exists", lambda path: False)  # as if it came between the look and the link
    assert not Storage(str(tmp_path)).create("other", b"mine")


# -- faults of the machine -------------------------------------------------------------------------------------------


def _said(problem: OSError, where: str | None = "/data") -> UserError:
    with pytest.raises(UserError) as told, faults_in_words(where):
        raise problem
    return told.value


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE])
def test_a_fault_that_may_pass_is_worth_another_try(number: int) -> None:
    assert isinstance(_said(OSError(number, "")), Unreachable)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_fault_that_stays_is_not_tried_again(number: int) -> None:
    assert not isinstance(_said(OSError(number, "")), Unreachable)


def test_a_fault_names_the_place_only_where_it_is_to_blame() -> None:
    assert "(/data)" in str(_said(OSError(errno.ENOSPC, "")))
    assert "/data" not in str(_said(OSError(errno.EMFILE, "")))
    assert "(/elsewhere)" in str(_said(OSError(errno.EACCES, "", "/elsewhere")))
    assert "(/data)" in str(_said(OSError(errno.EROFS, "", 7)))  # the number of an open file
    assert "(" not in str(_said(OSError(errno.EIO, "", 7)))
