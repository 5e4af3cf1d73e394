"""Storage: whole or absent, and exactly one creator."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefdata.errors import UserError
from prefdata.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    assert storage.size("a/b.bin") == 3
    assert storage.folders() == ["a"]
    assert storage.names("a") == ["b.bin"]
    assert list(storage.walk()) == ["a/b.bin"]


def test_create_refuses_a_name_that_is_taken(storage: Storage) -> None:
    assert storage.create("v1/claim", b"mine")
    assert not storage.create("v1/claim", b"yours")
    assert storage.read("v1/claim") == b"mine"


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
