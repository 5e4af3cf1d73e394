"""SIGKILL at drawn moments of every stage of a build, Ctrl-C in each stage; the same command again; and the result of one clean run.

A float32 build on the CPU ends bit for bit where a clean one does. Others (bfloat16, vLLM) promise the same rows, counts
and cuts, and that no unit is half of one draw and half of another. `make torture` kills many more times:
PREFDATA_KILLS says how often, and where PREFDATA_REQUIRE names `kills`, fewer than ten are a failure.
"""

import multiprocessing
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from prefdata import versions
from prefdata.builds import ingest
from prefdata.builds.job import run
from prefdata.identity import tokens_id
from prefdata.verify import verify
from prefdata.work import Work
from tests import tiny_world
from tests.prefect_server import ROOT, Server, environment
from tests.required import lacking, required
from tests.test_builds import write_pairs

KILLS = int(os.environ.get("PREFDATA_KILLS", "10"))
THROUGH_PREFECT = min(2, KILLS)
OF_OTHER_KINDS = max(1, KILLS // 10)
ENOUGH_KILLS = 10
LATEST_S = 0.03  # after the moment
TRIES = 6  # at a moment after which the build was faster than the signal
UNIT_ROWS = 4
STAGES = ("generate", "score", "stage", "publish")
PATIENCE_S = 240  # vLLM alone takes a minute to start where others use the machine too
# what a build imports: it is forked from a process that has done so, which takes seconds, and has done nothing else
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "tests.test_kills",
        "prefdata.engines.transformers",
        "prefdata.logprobs",
        "transformers.models.llama.modeling_llama",
    ]
)


class Build:
    """A build in a process of its own, with what is used here of Popen's ways."""

    def __init__(self, root: Path, options: dict[str, Any]) -> None:
        self._log = root.with_name(f"{root.name}-{secrets.token_hex(4)}.log")
        self._process = FORKING.Process(target=_build, args=(root, options, self._log))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """What it has said, once it has ended."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"it goes on after {timeout} s"
        return self._log.read_text() if self._log.exists() else "", None


def _build(root: Path, options: dict[str, Any], log: Path) -> None:
    from prefdata.builds.sapo_negatives import BuildSapoNegatives, Options

    os.setsid()
    said = os.open(log, os.O_CREAT | os.O_WRONLY, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    run(BuildSapoNegatives(Options(**options), str(root)))


Process = Build | subprocess.Popen[str]


class World:
    """A root with v1, and what one clean build makes of it elsewhere."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.options = {"source": "v1", "unit_rows": UNIT_ROWS, **options}
        self.model = tiny_world.save_model(folder / "model", positions=96, head_size=32)  # vLLM has no smaller heads
        self.source = write_pairs(folder / "pairs.jsonl", 90)
        self.clean = self.start(folder / "clean")
        built = self.build(self.clean)
        said, _ = built.communicate(timeout=PATIENCE_S)
        assert built.returncode == 0, said
        self.units = len(finished(self.clean))

    def start(self, root: Path) -> Path:
        """A root with nothing but v1, and no finished units."""
        run(ingest.Ingest(ingest.Options(source=(str(self.source),), model=self.model), str(root)))
        for unit in finished(root):
            unit.unlink()
        return root

    def build(self, root: Path) -> Build:
        """The build, in a process of its own."""
        return Build(root, self.options)

    def build_through_prefect(self, root: Path, server: Server | None) -> "subprocess.Popen[str]":
        """The same as a flow, on this server or else on a temporary one that it starts itself."""
        given = [f"--{name.replace('_', '-')}={value}" for name, value in self.options.items() if name != "source"]
        return subprocess.Popen(
            [sys.executable, "-m", "flows.build_sapo_negatives", "v1", "--root", str(root), *given],
            cwd=ROOT,
            env=server.environment if server else environment(self.folder / "prefect"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def resumed(self, root: Path) -> versions.Version:
        """What the same build makes of a root that another was stopped in; what that one had finished stays as it is."""
        before = finished(root)
        for version in versions.every(str(root)):  # what is visible is whole
            assert verify(version) == []
        second = self.build(root)
        said, _ = second.communicate(timeout=PATIENCE_S)
        assert second.returncode == 0, said
        after = finished(root)
        assert {unit: after[unit] for unit in before} == before  # a finished unit is never written again
        assert len(after) == self.units
        (made,) = (version for version in versions.every(str(root)) if version.manifest["build"] != "ingest")
        assert verify(made) == []
        return made


@pytest.fixture(scope="module", autouse=True)
def killed() -> Iterator[list[str]]:
    """The stages in which float32 builds were killed, each kill before the build's end."""
    stages: list[str] = []
    yield stages
    if required("kills"):
        assert len(stages) >= ENOUGH_KILLS, f"builds were killed {len(stages)} times"
        assert set(stages) == set(STAGES)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def world_in_bf16(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("bf16"), dtype="bfloat16")


@pytest.fixture(scope="module")
def world_with_vllm(tmp_path_factory: pytest.TempPathFactory) -> World:
    if find_spec("vllm") is None:
        lacking("vllm", "vLLM is not installed: make env-vllm")
    return World(tmp_path_factory.mktemp("vllm"), engine="vllm")


def finished(root: Path) -> dict[Path, int]:
    """The finished units, and when each was written."""
    found = (root / ".work" / "units").glob("??/*")
    return {unit: unit.stat().st_mtime_ns for unit in found if not unit.name.startswith(".")}


def moment(world: World, root: Path, rng: random.Random, where: str) -> Callable[[], bool]:
    """When to stop: at a number of finished units, or at some point of staging and publishing."""
    if where == "stage":
        return (root / "v2" / "claim").exists
    if where == "publish":
        return lambda: (root / "v2" / "README.md").exists() or (root / "v2" / "ledger").exists()
    half = world.units // 2
    wanted = rng.randint(1, half - 1) if where == "generate" else rng.randint(half, world.units - 1)
    return lambda: len(finished(root)) >= wanted


def stop(process: Process, how: signal.Signals, now: Callable[[], bool], delay_s: float) -> str:
    """Signal the process and its group as soon as it is time, or let it end if it is faster. What it has said.

    Nothing that it has started outlives it, in that group or not.
    """
    while process.poll() is None and not now():
        time.sleep(0.002)
    time.sleep(delay_s)
    started: list[psutil.Process] = []
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, how)
    said, _ = process.communicate(timeout=PATIENCE_S)
    _, left = psutil.wait_procs(started, timeout=30)
    assert not [one for one in left if one.status() != psutil.STATUS_ZOMBIE]
    return said


def stage_of(number: int) -> str:
    """Where the kill with this number falls: they take turns, so that four of them are one in every stage."""
    return STAGES[number % len(STAGES)]


def killed_and_resumed(
    world: World, folder: Path, number: int, start: Callable[[Path], Process] | None = None
) -> versions.Version:
    """What comes of a build (or of what `start` starts) that is killed in the stage and at the moment that `number`
    stands for, and started again. One that ends before the signal is none, and the next one gets it sooner.
    """
    rng = random.Random(number)
    for attempt in range(TRIES):
        root = world.start(folder / f"data{attempt}")
        first = (start or world.build)(root)
        said = stop(
            first, signal.SIGKILL, moment(world, root, rng, stage_of(number)), rng.uniform(0, LATEST_S / 2**attempt)
        )
        if first.returncode == -signal.SIGKILL:
            return world.resumed(root)
        assert first.returncode == 0, said
    pytest.fail(f"{TRIES} builds ended before they could be killed")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(THROUGH_PREFECT))
def test_a_killed_flow_loses_and_doubles_nothing(
    world: World, tmp_path: Path, number: int, killed: list[str], request: pytest.FixtureRequest
) -> None:
    """The first with a temporary server, which is killed too."""
    server = request.getfixturevalue("prefect_server") if number else None
    made = killed_and_resumed(world, tmp_path, number, lambda root: world.build_through_prefect(root, server))
    killed.append(stage_of(number))
    assert_same_bits(made, versions.find("v2", root=str(world.clean)))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(THROUGH_PREFECT, KILLS))
def test_a_killed_build_loses_and_doubles_nothing(world: World, tmp_path: Path, number: int, killed: list[str]) -> None:
    made = killed_and_resumed(world, tmp_path, number)
    killed.append(stage_of(number))
    assert_same_bits(made, versions.find("v2", root=str(world.clean)))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(OF_OTHER_KINDS))
@pytest.mark.parametrize("kind", ["world_in_bf16", "world_with_vllm"])
def test_a_killed_build_whose_draws_are_not_promised_makes_the_same_rows(
    kind: str, tmp_path: Path, number: int, request: pytest.FixtureRequest
) -> None:
    world: World = request.getfixturevalue(kind)
    made = killed_and_resumed(world, tmp_path, number)
    assert made.manifest["generator"]["batch_invariant"] is False
    assert_same_rows(made, versions.find("v2", root=str(world.clean)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["generate", "score", "stage"])
def test_ctrl_c_says_how_to_go_on(world: World, tmp_path: Path, stage: str, request: pytest.FixtureRequest) -> None:
    """Once with a temporary server, which must not hear it."""
    server = request.getfixturevalue("prefect_server") if stage != "generate" else None
    root = world.start(tmp_path / "data")
    made = interrupted_and_resumed(world, root, stage, server)
    assert_same_bits(made, versions.find("v2", root=str(world.clean)))


@pytest.mark.slow
def test_ctrl_c_with_vllm_says_how_to_go_on(world_with_vllm: World, tmp_path: Path) -> None:
    root = world_with_vllm.start(tmp_path / "data")
    made = interrupted_and_resumed(world_with_vllm, root, "generate", None)
    assert_same_rows(made, versions.find("v2", root=str(world_with_vllm.clean)))


def interrupted_and_resumed(world: World, root: Path, stage: str, server: Server | None) -> versions.Version:
    """What comes of a flow that is interrupted in a stage as a terminal does it, and started again."""
    flow = world.build_through_prefect(root, server)
    said = stop(flow, signal.SIGINT, moment(world, root, random.Random(0), stage), 0.0)
    assert flow.returncode == 130, said
    (last,) = [line for line in said.splitlines() if line.startswith("Interrupted.")]
    assert f"the same command goes on: python -m flows.build_sapo_negatives v1 --root {root}" in last
    assert "Traceback" not in said
    return world.resumed(root)


def assert_same_bits(made: versions.Version, clean: versions.Version) -> None:
    """Every row, in its place, with every number."""
    assert made.logical_hash == clean.logical_hash
    assert made.manifest["counts"] == clean.manifest["counts"]
    assert [made.table(split) for split in made.splits] == [clean.table(split) for split in clean.splits]
    assert made.ledger() == clean.ledger()


def assert_same_rows(made: versions.Version, clean: versions.Version) -> None:
    """Negatives of the same answers, cut in the same places; each is what its own finished unit drew."""
    assert made.manifest["counts"] == clean.manifest["counts"]
    assert cuts(made) == cuts(clean)
    drawn: dict[str, list[int]] = {}
    work = Work(made.root)
    for key in work.keys():  # noqa: SIM118  not a dict
        tables = work.load(key)
        assert tables is not None
        for draw in tables["draws"].to_pylist() if "draws" in tables else []:
            assert draw["answer_id"] not in drawn
            drawn[draw["answer_id"]] = draw["ids"]
    rows = all_rows(made)
    assert rows
    assert all(row["rejected_ids"] == drawn[tokens_id(row["prompt_ids"], row["chosen_ids"])] for row in rows)


def cuts(version: versions.Version) -> dict[tuple[str, int], tuple[int, int]]:
    """Where the segment of every negative begins, and where that which it stands for ends."""
    rows = all_rows(version)
    found = {
        (row["parent_row_id"], row["sample_index"]): (row["segment_start"], row["segment_source_end"]) for row in rows
    }
    assert len(found) == len(rows)
    return found


def all_rows(version: versions.Version) -> list[dict[str, Any]]:
    return [row for split in version.splits for row in version.table(split).to_pylist()]
