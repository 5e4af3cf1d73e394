"""Twenty processes publish at once, on a local disk and in an object store, while somebody reads."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prefdata import versions
from prefdata.storage import Storage
from prefdata.verify import verify
from schemas.ledger import KEPT
from schemas.manifest import Manifest
from tests import published
from tests.s3_server import S3Server

ROOT = Path(__file__).parent.parent
PUBLISHERS = 20
STEP_S = 0.02  # what a publisher waits at most between two files, so that much of the time versions are half there


def rows_of(publisher: int) -> list[dict[str, Any]]:
    """Rows that no other publisher has."""
    return [published.pair([1, 2], [1, 3], prompt=f"publisher {publisher}, row {row}") for row in range(3)]


def publish_slowly(root: str, publisher: int) -> str:
    """A version made file by file; its name."""
    pause = random.Random(publisher)
    rows = published.rows_table("pairs", rows_of(publisher))
    ids = rows["row_id"].to_pylist()
    lines = [{"row_id": f"in-{name}", "status": KEPT, "stage": "publish", "made": [name]} for name in ids]
    with versions.Staging(root, rows.schema, f"publisher {publisher}") as staging:
        for split, some in (("train", rows[:2]), ("test", rows[2:])):
            time.sleep(pause.uniform(0, STEP_S))
            staging.add(split, some)
            staging.flush()
        staging.ledger(versions.ledger_lines(lines))
        staging.flush()
        time.sleep(pause.uniform(0, STEP_S))
        return staging.publish(staging.manifest(["publish"], published.manifest_fields("pairs", reference=True))).name


def publish_together(root: str, told: Path) -> int:
    """Processes forked from one that has imported all they need, so that they begin at the same moment.

    Each leaves a file in the folder `told`: its number, its process and the version that it made.
    """
    import multiprocessing
    from importlib import import_module

    if "://" in root:
        import_module("s3fs")  # a second for each of them otherwise
    forking = multiprocessing.get_context("fork")
    gate = forking.Barrier(PUBLISHERS)

    def one(publisher: int) -> None:
        gate.wait()
        (told / str(publisher)).write_text(f"{os.getpid()} {publish_slowly(root, publisher)}")

    processes = [forking.Process(target=one, args=(publisher,)) for publisher in range(PUBLISHERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sum(process.exitcode != 0 for process in processes)


@dataclass
class Reader:
    """Looks at a root again and again; every version must be whole when it is first seen."""

    root: str
    seen: dict[str, Manifest] = field(default_factory=dict)
    half_there: int = 0  # looks at which some number was taken and no version yet

    def look_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.look()
            time.sleep(0.005)

    def look(self) -> None:
        taken = versions.numbers(Storage(self.root))
        found = versions.every(self.root, damaged=_refuse)
        self.half_there += len(taken) > len(found)
        for version in found:
            if version.name not in self.seen:
                assert verify(version) == []
                self.seen[version.name] = version.manifest
            assert version.manifest == self.seen[version.name]


def _refuse(damage: versions.DamagedVersion) -> None:
    raise damage


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "data")
    else:
        server: S3Server = request.getfixturevalue("s3")
        yield f"{server.bucket()}/data"


def test_publishers_at_once_get_a_number_each_and_readers_see_whole_versions(root: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.mkdir()
    command = [sys.executable, "-m", "tests.test_publishers", root, str(told)]
    reader = Reader(root)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as publishers:
        reader.look_until(lambda: publishers.poll() is not None)
        said = publishers.communicate()[0]
    assert publishers.returncode == 0, said
    assert reader.half_there > 0  # it was there while they were at it
    reader.look()

    made = {int(file.name): file.read_text().split() for file in told.iterdir()}
    assert sorted(made) == list(range(PUBLISHERS))
    assert len({process for process, _ in made.values()}) == PUBLISHERS
    assert len({name for _, name in made.values()}) == PUBLISHERS
    assert sorted(reader.seen) == sorted(name for _, name in made.values())
    for publisher, (_, name) in made.items():
        version = versions.find(name, root=root)
        rows = [row for split in version.splits for row in version.table(split, ["row_id"])["row_id"].to_pylist()]
        assert rows == [row["row_id"] for row in rows_of(publisher)]
    assert set(Storage(root).folders()) == set(reader.seen)  # no number was taken in vain


if __name__ == "__main__":
    sys.exit(publish_together(sys.argv[1], Path(sys.argv[2])))
