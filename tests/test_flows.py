"""Flows: one run on the ephemeral server, one through a real server, `flows.serve` and the bare deployment name."""

import inspect
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest

from prefdata import versions
from prefdata.builds import add_reference, ingest, sapo_negatives
from prefdata.verify import verify
from tests import tiny_world
from tests.test_builds import DIRTY, write_pairs

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
MODULES = {
    "flows.ingest": ingest.Options,
    "flows.add_reference": add_reference.Options,
    "flows.build_sapo_negatives": sapo_negatives.Options,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home of its own, so that no server of this machine is touched."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1", **more}


def flow(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("module", MODULES)
def test_help_names_every_option(home: Path, module: str) -> None:
    shown = flow(home, module, "--help")
    assert shown.returncode == 0
    for knob in fields(MODULES[module]):
        assert knob.name == "source" or f"--{knob.name.replace('_', '-')}" in shown.stdout


@pytest.mark.parametrize("module", MODULES)
def test_flow_parameters_are_the_options(module: str) -> None:
    from importlib import import_module

    name = module.removeprefix("flows.")
    parameters = inspect.signature(getattr(import_module(module), name).fn).parameters
    assert list(parameters) == [*(knob.name for knob in fields(MODULES[module])), "root"]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())


def test_every_deployment_is_served_and_in_prefect_yaml() -> None:
    import flows

    served = [flow.name for flow in flows.all_flows()]
    assert served == list(flows.DEPLOYMENTS)
    text = (ROOT / "prefect.yaml").read_text()
    for name in served:
        python_name = name.replace("-", "_")
        assert f"- name: {name}\n    entrypoint: flows/{python_name}.py:{python_name}\n" in text


@pytest.mark.slow
def test_from_files_to_a_served_run_by_bare_name(home: Path, model: str, tmp_path: Path) -> None:
    """Ingest on the ephemeral server; then a real server, `flows.serve`, and `prefect deployment run` twice."""
    root = tmp_path / "data"
    source = write_pairs(tmp_path / "pairs.jsonl", 40, extra=DIRTY)
    ended = flow(home, "flows.ingest", str(source), "--model", model, "--root", str(root))
    assert ended.returncode == 0, ended.stderr
    assert "v1 is ready" in ended.stdout
    assert (tmp_path / "reports" / "v1.html").exists()
    with server(home) as url, serving(home, url, root):
        for name in ("v2", "v3"):
            asked = subprocess.run(
                [str(BIN / "prefect"), "deployment", "run", "build-sapo-negatives"],
                cwd=ROOT,
                env=environment(home, PREFECT_API_URL=url),
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert asked.returncode == 0, asked.stdout + asked.stderr
            wait_for(lambda name=name: (root / name / "manifest.json").exists(), f"{name} to be published")
    found = versions.every(str(root))
    assert [version.manifest["round"] for version in found] == [0, 1, 2]
    assert [verify(version) for version in found] == [[], [], []]
    assert [version.manifest["parents"][0]["version"] for version in found[1:]] == ["v1", "v2"]


@pytest.mark.slow
def test_what_only_the_flow_finds_is_one_sentence_too(home: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "w1", "chosen": "w2", "rejected": "w2"}\n')
    ended = flow(
        home, "flows.ingest", str(tmp_path / "pairs.jsonl"), "--model", model, "--root", str(tmp_path / "data")
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr + ended.stdout
    said = "ingest: nothing was published: all 1 rows were set aside (identical_sides 1)"
    assert said in ended.stderr.splitlines()
    assert versions.every(str(tmp_path / "data")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("flows.ingest", "nosuch.jsonl", "--model", "MODEL"), "nosuch.jsonl"),
        (("flows.ingest", "PAIRS", "--model", "/no/such/model"), "/no/such/model"),
        (("flows.ingest", "PAIRS", "--model", "MODEL", "--max-length", "500"), "500"),
        (("flows.ingest", "PAIRS", "--model", "MODEL", "--format", "nosuch"), "nosuch"),
        (("flows.build_sapo_negatives", "v99"), "v99"),
        (("flows.add_reference",), "no version"),
    ],
)
def test_bad_input_is_refused_before_prefect_starts(
    home: Path, model: str, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    source = write_pairs(tmp_path / "pairs.jsonl", 3)
    given = [{"MODEL": model, "PAIRS": str(source)}.get(argument, argument) for argument in arguments]
    ended = flow(home, *given, "--root", str(tmp_path / "data"))
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "server" not in ended.stdout


@contextmanager
def server(home: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "prefect"), "server", "start", "--port", str(port), "--no-ui"]
    with running(command, environment(home), home / "server.log"):
        wait_for(lambda: answers(port), "the server")
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def serving(home: Path, url: str, root: Path) -> Iterator[None]:
    log = home / "serve.log"
    command = [sys.executable, "-m", "flows.serve"]
    with running(command, environment(home, PREFECT_API_URL=url, PREFDATA_ROOT=str(root)), log):
        wait_for(lambda: "build-sapo-negatives" in log.read_text(), "flows.serve")
        yield


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        except BaseException:
            print(log.read_text()[-4000:])
            raise
        finally:
            process.terminate()
            process.wait(30)


def answers(port: int) -> bool:
    from flows.prefect_plugin import server_answers

    return server_answers(("127.0.0.1", port))


def wait_for(condition: object, what: str, timeout_s: float = 150) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, f"waited {timeout_s} s for {what}"
        time.sleep(0.5)
