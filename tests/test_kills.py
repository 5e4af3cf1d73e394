"""SIGKILL at drawn moments of a build; the same command again; and the result of one clean run, bit for bit.

`make torture` kills many more times: PREFDATA_KILLS says how often.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from prefdata import versions
from prefdata.builds import ingest
from prefdata.builds.job import run
from prefdata.verify import verify
from tests import tiny_world
from tests.test_builds import write_pairs

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("PREFDATA_KILLS", "10"))
THROUGH_PREFECT = min(2, KILLS)
UNIT_ROWS = 4
BUILD = """
import sys
from prefdata.builds.job import run
from prefdata.builds.sapo_negatives import BuildSapoNegatives, Options
print(run(BuildSapoNegatives(Options(source="v1", unit_rows=int(sys.argv[2])), sys.argv[1])).sentence())
"""


class World:
    """A root with v1, and what one clean build makes of it elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_world.save_model(folder / "model", positions=96)
        self.source = write_pairs(folder / "pairs.jsonl", 90)
        self.clean = self.start(folder / "clean")
        built = self.build(self.clean)
        assert built.wait(120) == 0
        self.units = len(finished(self.clean))
        self.killed: list[bool] = []

    def start(self, root: Path) -> Path:
        """A root with nothing but v1, and no finished units."""
        run(ingest.Ingest(ingest.Options(source=(str(self.source),), model=self.model), str(root)))
        for unit in finished(root):
            unit.unlink()
        return root

    def build(self, root: Path) -> "subprocess.Popen[str]":
        """The build, in a process of its own."""
        command = [sys.executable, "-c", BUILD, str(root), str(UNIT_ROWS)]
        return self._run(command)

    def build_through_prefect(self, root: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "flows.build_sapo_negatives", "v1", "--root", str(root)]
        return self._run([*command, "--unit-rows", str(UNIT_ROWS)])

    def _run(self, command: list[str]) -> "subprocess.Popen[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        env = {**kept, "OMP_NUM_THREADS": "1", "PREFECT_HOME": str(self.folder / "prefect")}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("kills"))


def finished(root: Path) -> dict[Path, int]:
    """The finished units, and when each was written."""
    found = (root / ".work" / "units").glob("??/*")
    return {unit: unit.stat().st_mtime_ns for unit in found if not unit.name.startswith(".")}


def moment(world: World, root: Path, rng: random.Random) -> Callable[[], bool]:
    """When to kill: at a number of finished units, or at some point of staging and publishing."""
    where = rng.choice(("generate", "score", "stage", "publish"))
    if where == "stage":
        return (root / "v2" / "claim").exists
    if where == "publish":
        return lambda: (root / "v2" / "README.md").exists() or (root / "v2" / "ledger").exists()
    half = world.units // 2
    wanted = rng.randint(1, half - 1) if where == "generate" else rng.randint(half, world.units - 1)
    return lambda: len(finished(root)) >= wanted


def kill(process: "subprocess.Popen[str]", now: Callable[[], bool], delay_s: float) -> None:
    """SIGKILL the process and all it started, as soon as it is time, or let it end if it is faster."""
    while process.poll() is None and not now():
        time.sleep(0.002)
    time.sleep(delay_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_build_loses_and_doubles_nothing(world: World, tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    root = world.start(tmp_path / "data")
    through_prefect = number < THROUGH_PREFECT
    first = (world.build_through_prefect if through_prefect else world.build)(root)
    kill(first, moment(world, root, rng), rng.uniform(0, 0.03))
    world.killed.append(first.returncode == -signal.SIGKILL)
    before = finished(root)
    for version in versions.every(str(root)):  # what is visible is whole
        assert verify(version) == []

    second = world.build(root)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said

    after = finished(root)
    assert {unit: after[unit] for unit in before} == before  # a finished unit is never written again
    assert len(after) == world.units
    clean = versions.find("v2", root=str(world.clean))
    (made,) = (version for version in versions.every(str(root)) if version.manifest["build"] != "ingest")
    assert verify(made) == []
    assert made.logical_hash == clean.logical_hash
    assert made.manifest["counts"] == clean.manifest["counts"]
    assert [made.table(split) for split in made.splits] == [clean.table(split) for split in clean.splits]
    assert made.ledger() == clean.ledger()


@pytest.mark.slow
def test_the_kills_came_before_the_ends(world: World) -> None:
    """Or the tests above would say nothing; one that comes too late now and then is part of drawing the moment."""
    assert sum(world.killed) >= 0.7 * len(world.killed)
