"""Bad days: full and read-only disks, flipped bytes, clocks that jump, parents that are gone.

Each ends in one sentence and leaves every earlier version sound; when the fault is gone, the same command ends as it
would have without it.
"""

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from prefdata import cli, models, versions
from prefdata.builds import add_reference, ingest, sapo_negatives
from prefdata.builds.job import Job, Outcome, Stage, in_order, run
from prefdata.errors import UserError
from prefdata.verify import verify
from prefdata.work import Work
from tests import tiny_world
from tests.disks import PAGE, Disk, mounted
from tests.prefect_server import Server
from tests.test_builds import write_pairs
from tests.test_gc import dead_pid
from trainers import run as trainer

PROJECT = Path(__file__).parent.parent
Prepare = Callable[[Path], Job]


class World:
    """A source, a model, and a root with v1 (ingested) and v2 (segments of v1), made on a good day."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_world.save_model(folder / "model", positions=96)
        self.source = write_pairs(folder / "pairs.jsonl", 40)
        self.root = folder / "data"
        run(self.ingest(self.root))
        run(self.segments(self.root))
        versions.tag("best", "v2", str(self.root))

    def ingest(self, root: Path) -> Job:
        options = ingest.Options(source=(str(self.source),), model=self.model, test_fraction=0.2)
        return ingest.Ingest(options, str(root))

    def segments(self, root: Path, source: str = "v1") -> Job:
        options = sapo_negatives.Options(source=source, unit_rows=16)
        return sapo_negatives.BuildSapoNegatives(options, str(root))

    def copy(self, root: Path, *names: str) -> Path:
        """A root of its own with some of what is in the good one."""
        root.mkdir()
        for name in names:
            shutil.copytree(self.root / name, root / name)
        return root

    def clean(self, name: str) -> versions.Version:
        return versions.find(name, root=str(self.root))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("faults"))


ALL = ("v1", "v2", "tags", ".work")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as found:
        yield found


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[int], str]:
    """What a command that ended so wrote to stderr: one line."""

    def line(status: int) -> str:
        err = capsys.readouterr().err
        assert status == 2, err
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in err
        return err

    return line


def refused(act: Callable[[], Any]) -> str | None:
    """Why something was refused, in one line; None if it was not."""
    try:
        act()
    except UserError as problem:
        return str(problem) if "\n" not in str(problem) else pytest.fail(f"several lines: {problem}")
    return None


def refusal(act: Callable[[], Any]) -> str:
    why = refused(act)
    assert why is not None
    return why


def command(root: Path, *argv: str) -> int:
    return cli.main(["--root", str(root), *argv])


def units(root: Path) -> list[Path]:
    return [path for path in sorted((root / ".work/units").glob("??/*")) if not path.name.startswith(".")]


def same(made: versions.Version, clean: versions.Version) -> None:
    """Equal in every row and every line of the ledger, and sound."""
    assert verify(made) == []
    assert made.logical_hash == clean.logical_hash
    assert made.manifest["counts"] == clean.manifest["counts"]
    assert [made.table(split) for split in made.splits] == [clean.table(split) for split in clean.splits]
    assert made.ledger() == clean.ledger()


def sound(root: Path, *names: str) -> None:
    """These versions are there, whole, and no other is."""
    found = versions.every(str(root))
    assert [version.name for version in found] == list(names)
    assert [verify(version) for version in found] == [[] for _ in names]


# -- disks ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("made", "before"), [("v1", ()), ("v2", ("v1", ".work"))])
def test_a_disk_that_is_full_after_any_page_costs_nothing(
    world: World, disk: Disk, made: str, before: tuple[str, ...]
) -> None:
    """Of v2 only the publishing: its units are there."""
    prepare: Prepare = world.segments if before else world.ingest
    earlier = [name for name in before if name != ".work"]
    full_in: set[str] = set()
    for pages in count():
        root = world.copy(disk.path / "data", *before)
        disk.leave(pages * PAGE)
        why = refused(lambda root=root: run(prepare(root)))  # type: ignore[misc]
        if why is None:
            break
        found = re.fullmatch(rf"stopped by the machine: no space left on device \({root}/?(.*)\)\. .*", why)
        assert found, why
        sound(root, *earlier)
        place = re.sub(r"units/..$", "units", found[1])
        if place not in full_in:
            disk.empty()
            outcome = run(prepare(root))
            same(outcome.version, world.clean(made))
            sound(root, *earlier, outcome.version.name)
        full_in.add(place)
        shutil.rmtree(root)
    published = {f"{made}{part}" for part in ("", "/train", "/test", "/ledger", "/stats")}
    assert full_in == (published if before else published | {".work/units"})


def test_a_disk_that_is_full_in_the_middle_of_the_units_costs_none_that_is_done(world: World, disk: Disk) -> None:
    root = world.copy(disk.path / "data", "v1")
    sizes = sorted(path.stat().st_size for path in units(world.root))
    disk.leave(-(-sizes[-1] // PAGE) * PAGE)  # room for any one
    assert "no space left on device" in refusal(lambda: run(world.segments(root)))
    done = {path: path.stat().st_mtime_ns for path in units(root)}
    assert done
    sound(root, "v1")
    disk.empty()
    outcome = run(world.segments(root))
    assert outcome.reused == len(done)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    same(outcome.version, world.clean("v2"))


@pytest.mark.slow
def test_a_flow_on_a_full_disk_says_so_in_one_line(world: World, disk: Disk, prefect_server: Server) -> None:
    root = disk.path / "data"
    disk.leave(PAGE)
    arguments = ["flows.ingest", str(world.source), "--model", world.model, "--root", str(root)]
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=PROJECT,
        env=prefect_server.environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("ingest: ")]
    assert len(said) == 1
    assert "no space left on device" in said[0]
    disk.empty()
    same(run(world.ingest(root)).version, world.clean("v1"))


def train(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.chdir(folder)
    data = ["--data", "v2", "--root", str(world.root), "--loss", "dpo", "--dtype", "float32"]
    return trainer.main([*data, "--steps", "6", "--save-every", "2", "--batch-size", "4", *more])


@pytest.mark.slow
def test_training_on_a_full_disk_goes_on_where_it_was(
    world: World, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[int], str]
) -> None:
    (tmp_path / "clean").mkdir()
    assert train(world, tmp_path / "clean", monkeypatch) == 0
    clean = models.load_model(str(tmp_path / "clean/runs/v2-dpo-1")).state_dict()
    saved = 0
    for pages in (0, 3, 40, 90):  # room for: nothing; run.json; a part of the first checkpoint; that one alone
        disk.leave(pages * PAGE)
        shown = said(train(world, disk.path, monkeypatch))
        assert re.search("no space left on device|No space left on device|cannot save the model", shown), shown
        saved += "cannot save the model" in shown
        disk.empty()
        if pages == 90:
            assert train(world, disk.path, monkeypatch) == 0
            (folder,) = disk.path.glob("runs/*")
            trained = models.load_model(str(folder)).state_dict()
            assert all((trained[name] == clean[name]).all() for name in clean)
        shutil.rmtree(disk.path / "runs", ignore_errors=True)
    assert saved >= 2


def test_a_root_that_can_only_be_read_is_read_and_nothing_else(
    world: World, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = world.copy(disk.path / "data", *ALL)
    with disk.read_only():
        for prepare in (world.ingest, world.segments):
            assert f"cannot write into {root} (read-only file system)" in refusal(
                lambda prepare=prepare: run(prepare(root))
            )  # type: ignore[misc]
        for act in (["tag", "other", "v1"], ["tag", "--delete", "best"], ["gc", "--older-than", "0", "--work"]):
            assert command(root, *act) == 2
            assert "read-only file system" in capsys.readouterr().err.lower()
        for act in (["verify", "--all"], ["stats", "v2"], ["sql", "from v2"], ["lineage", "best"], ["show", "v1"]):
            assert command(root, *act) == 0
        assert command(root, "diff", "v1", "v2") == 1
        monkeypatch.setenv("PREFDATA_ROOT", str(root))
        assert train(world, tmp_path, monkeypatch, "--steps", "1") == 0
        capsys.readouterr()
        assert train(world, disk.path, monkeypatch) == 2
        assert "cannot make a run folder in runs: Read-only file system" in capsys.readouterr().err
    sound(root, "v1", "v2")
    assert not run(world.segments(root)).published


def test_output_that_cannot_be_written_is_one_sentence(world: World) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "prefdata", "--root", str(world.root), "sql", "from v2"],
            cwd=PROJECT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "no space left on device" in ended.stderr


def test_a_runs_folder_that_is_a_file_is_one_sentence(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[int], str]
) -> None:
    (tmp_path / "runs").write_text("in the way")
    assert "cannot make a run folder in runs" in said(train(world, tmp_path, monkeypatch))
    assert (tmp_path / "runs").read_text() == "in the way"


# -- flipped bytes -------------------------------------------------------------------------------------------------


def flip(path: Path, at: int | None = None, bit: int = 3) -> Callable[[], None]:
    """Flip one bit of a file, by default in its middle; what is returned flips it back."""
    data = path.read_bytes()
    place = len(data) // 2 if at is None else at
    path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
    return lambda: path.write_bytes(data) and None


FILES = {
    "train/part-00000.parquet": ["select count(*) from v2", "from pairs"],
    "test/part-00000.parquet": ["from v2"],
    "ledger/part-00000.parquet": ["from ledger"],
    "stats/lengths.parquet": ["from lengths"],
    "README.md": [],
    "claim": [],
    "manifest.json": ["from v2"],
}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_named_and_never_read(
    name: str,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: Callable[[int], str],
) -> None:
    root = world.copy(tmp_path / "data", *ALL)
    path = root / "v2" / name
    for place in (0, None, path.stat().st_size - 1):
        mend = flip(path, place)
        assert command(root, "verify", "--all") == 1
        shown = capsys.readouterr().out
        assert name in shown
        assert "v1: sound" in shown
        mend()
    flip(path)
    if name.startswith("stats"):
        assert name in said(command(root, "stats", "v2"))
    if name.startswith("ledger"):
        assert name in refusal(versions.find("v2", root=str(root)).ledger)
    for query in FILES[name]:
        assert name in said(command(root, "sql", query))
    if name.startswith(("train", "test", "manifest")):
        assert name in refusal(lambda: run(world.segments(root, "v2")))
        monkeypatch.setattr(world, "root", root)
        assert name in said(train(world, tmp_path, monkeypatch))
        assert not list(tmp_path.glob("runs/*"))
    assert command(root, "sql", "from v1") == 0
    assert run(world.segments(root)).published is (name == "manifest.json")  # others are as good as they were


def test_no_bit_of_a_manifest_or_tag_can_change_unseen(world: World, tmp_path: Path) -> None:
    root = world.copy(tmp_path / "data", "v1", "v2", "tags")
    rng = random.Random(0)
    for path, ref in ((root / "v2/manifest.json", "v2"), (root / "tags/best", "best")):
        last = path.stat().st_size - 1
        drawn = [(rng.randrange(last), rng.randrange(8)) for _ in range(150)]
        as_before = []
        for at, bit in [*drawn, *((last, bit) for bit in range(8))]:
            mend = flip(path, at, bit)
            with suppress(UserError):
                assert versions.find(ref, root=str(root)).manifest == world.clean("v2").manifest
                as_before.append((at, bit))
            mend()
        # no bit turns white space of JSON into other white space; what ends a tag, a line feed, may become another end
        assert as_before == ([] if ref == "v2" else [(last, 0)])


def test_a_flipped_tag_is_named(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = world.copy(tmp_path / "data", *ALL)
    flip(root / "tags" / "best")
    assert command(root, "verify", "--all") == 1
    assert "tags/best: " in capsys.readouterr().out
    assert command(root, "versions") == 0


def test_a_damaged_unit_is_named_and_made_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = world.copy(tmp_path / "data", "v1", ".work")
    rng = random.Random(0)
    for path in units(root):
        flip(path, rng.randrange(path.stat().st_size))
    damaged = units(root)
    assert command(root, "verify", "--all") == 1
    shown = capsys.readouterr().out
    assert all(str(path.relative_to(root)) in shown for path in damaged)
    outcome = run(world.segments(root))
    assert outcome.reused == 0
    same(outcome.version, world.clean("v2"))
    assert [
        unit for unit in units(root) if unit.read_bytes() != (world.root / unit.relative_to(root)).read_bytes()
    ] == [unit for unit in damaged if not Work(str(root)).sound(unit.name)]


def test_a_unit_that_is_damaged_while_the_build_goes_on_is_refused(world: World, tmp_path: Path) -> None:
    root = world.copy(tmp_path / "data", "v1")

    def damaging(stage: Stage, pending: Any, work: Work, watcher: Any) -> None:
        in_order(stage, pending, work, watcher)
        if stage.name == "reference":
            for path in units(root):
                flip(path)

    assert "is gone or damaged since" in refusal(lambda: run(world.segments(root), execute=damaging))
    sound(root, "v1")
    same(run(world.segments(root)).version, world.clean("v2"))


# -- clocks --------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that is years off, another way each time it is read."""

    def __init__(self) -> None:
        self._rng = random.Random(0)
        self.read = 0

    def time(self) -> float:
        self.read += 1
        return self._rng.uniform(0, 4e9)  # 1970 to 2096

    def now(self, zone: Any = None) -> datetime:
        return datetime.fromtimestamp(self.time(), zone)


def test_a_clock_that_jumps_changes_nothing_but_dates(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.time", clock.time)
    monkeypatch.setattr(versions, "datetime", clock)
    root = tmp_path / "data"
    made = [run(world.ingest(root)).version, run(world.segments(root)).version]
    assert clock.read > 2
    for version in made:
        same(version, world.clean(version.name))
    assert not run(world.segments(root)).published
    assert command(root, "sql", "select version, created_at from versions") == 0
    killed = versions.Staging(str(root), made[0].table("train").schema, "killed")
    killed.add("train", made[0].table("train"))
    killed.flush()
    claim = root / killed.name / versions.CLAIM
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "pid": dead_pid()}))
    with versions.Staging(str(root), made[0].table("train").schema, "alive") as alive:
        alive.add("train", made[0].table("train"))
        alive.flush()
        staged = {path: path.read_bytes() for path in (root / alive.name).rglob("*") if path.is_file()}
        for _ in range(5):
            assert command(root, "gc", "--older-than", "0") == 0
        assert {path: path.read_bytes() for path in (root / alive.name).rglob("*") if path.is_file()} == staged
        assert len(staged) == 2
    assert not (root / killed.name).exists()
    sound(root, "v1", "v2")


# -- what is gone --------------------------------------------------------------------------------------------------


def test_a_parent_that_is_gone_is_missed_by_nobody_who_does_not_ask_for_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = world.copy(tmp_path / "data", "v2")
    assert command(root, "lineage", "v2") == 0
    shown = capsys.readouterr().out
    assert "v1  cannot be opened: there is no version" in shown
    assert "source pairs" in shown
    for asked in (["diff", "v1", "v2"], ["show", "v1"], ["verify", "v1"], ["tag", "old", "v1"]):
        assert command(root, *asked) == 2
        assert "there is no version or tag 'v1'" in capsys.readouterr().err
    for prepare in (world.segments, lambda root: add_reference.AddReference(add_reference.Options("v1"), str(root))):
        assert "there is no version or tag 'v1'" in refusal(lambda prepare=prepare: prepare(root))  # type: ignore[misc]
    sound(root, "v2")
    again: Outcome = run(world.segments(root, "v2"))
    assert again.published
    assert verify(again.version) == []
    assert not run(add_reference.AddReference(add_reference.Options("v2"), str(root))).published
    monkeypatch.setattr(world, "root", root)
    assert train(world, tmp_path, monkeypatch, "--steps", "1") == 0


def test_a_model_that_is_gone_is_asked_for_by_everyone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = world.copy(tmp_path / "data", "v1", "v2")
    moved = tmp_path / "moved"
    shutil.move(world.model, moved)
    try:
        reference = add_reference.Options("v1")
        for prepare in (world.segments, lambda root: add_reference.AddReference(reference, str(root))):
            found = refusal(lambda prepare=prepare: prepare(root))  # type: ignore[misc]
            assert world.model in found
            assert "--model" in found
        monkeypatch.chdir(tmp_path)
        assert trainer.main(["--data", "v2", "--root", str(root), "--loss", "dpo"]) == 2
        err = capsys.readouterr().err
        assert "made with a model that is not there now" in err
        assert "Traceback" not in err
    finally:
        shutil.move(moved, world.model)
