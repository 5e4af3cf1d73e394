"""Who may import whom, and what starts fast."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "prefdata", "flows", "trainers")

# package -> packages of ours that it may import
MAY_IMPORT = {
    "schemas": {"schemas"},
    "prefdata": {"schemas", "prefdata"},
    "flows": {"schemas", "prefdata", "flows"},
    "trainers": {"schemas", "prefdata", "trainers"},
}
# library -> where it may be imported
ONLY_IN = {
    "prefect": ("flows/",),
    "vllm": ("prefdata/engines/vllm_worker.py",),
    "torch": (
        "trainers/",
        "prefdata/logprobs/",
        "prefdata/engines/",
        "prefdata/scorers/",
        "prefdata/reference/",
    ),
}


def files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize("path", list(files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = imports(path) & set(PACKAGES)
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", list(files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for library, rooms in ONLY_IN.items():
        if library in imports(path):
            assert name.startswith(rooms), f"{library} is imported in {name}"


HEAVY = ("torch", "transformers", "datasets", "polars", "duckdb", "vllm", "prefect")


@pytest.mark.parametrize("module", ["prefdata", "prefdata.cli", "prefdata.versions"])
def test_starting_is_light(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    started = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert started.stdout.strip() == "[]"


def test_help_takes_under_a_second() -> None:
    """The best of three, since this is about what is imported and not about the machine's load."""
    command = [sys.executable, "-m", "prefdata", "--help"]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    assert min(times) < 1.0


def test_nothing_is_unpickled() -> None:
    for path in files():
        assert not imports(path) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, path
