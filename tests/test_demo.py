"""The demo as `make demo` runs it, from nothing to its table, with its versions in a folder and in an object store."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prefdata import query, versions
from prefdata.verify import verify
from tests.s3_server import S3Server

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world and its model, which are made once."""
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
def test_the_demo_does_its_main_job(home: Path, tmp_path: Path) -> None:
    run_demo(home, str(tmp_path / "data"), tmp_path / "runs", steps=20)


@pytest.mark.slow
def test_the_demo_does_its_main_job_in_an_object_store(home: Path, tmp_path: Path, s3: S3Server) -> None:
    run_demo(home, f"{s3.bucket()}/some/prefix", tmp_path / "runs", steps=4)
    assert not (ROOT / "s3:").exists()  # a URL taken for a path


def run_demo(home: Path, root: str, runs: Path, steps: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PREFDATA_"))}
    arguments = ["--home", str(home), "--runs", str(runs)]
    ended = subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments, "--steps", str(steps)],
        cwd=ROOT,
        env={**environment, "PREFDATA_ROOT": root},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    made = versions.every(root)
    assert [version.name for version in made] == ["v1", "v2", "v3"]
    assert [verify(version) for version in made] == [[], [], []]
    counts = [version.manifest["counts"] for version in made]
    assert counts[0]["rows_in"] == 2000 + 20 + 300
    assert counts[0]["rows"] == {"train": 2000, "test": 300}
    assert counts[0]["set_aside"] == 20
    assert counts[2]["rows_in"] == 2300
    assert made[2].manifest["parents"][0]["version"] == "v1"
    total = query.sql("select count(*) as n from v3", root).to_pylist()[0]["n"]
    assert total == counts[2]["kept"]
    before, orpo, dpo = (shares(ended.stdout, name) for name in ("before", "orpo", "dpo"))
    assert len(before) == len(orpo) == len(dpo) == 2 + 8
    assert 20 <= before[1] <= 80  # checked answers of the untouched model
    assert sum(share > 10 for share in before[2:]) >= 3  # kinds of instruction
    assert "Where to look next" in ended.stdout


def shares(output: str, name: str) -> list[float]:
    """The percentages in a line of the table."""
    line = re.search(rf"^ *{name} .*%$", output, re.MULTILINE)
    assert line is not None, output
    return [float(share) for share in re.findall(r"([\d.]+) %", line[0])]
