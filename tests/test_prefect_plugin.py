"""The plugin that lets `prefect deployment run` take a bare name."""

import asyncio
import inspect
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import prefect_plugin
from flows.prefect_plugin import full_name, runs_deployment_command, server_answers

ROOT = Path(__file__).parent.parent
PREFECT = Path(sys.executable).parent / "prefect"


def test_the_method_it_wraps_is_where_it_was() -> None:
    from prefect.client.orchestration import PrefectClient

    assert inspect.iscoroutinefunction(PrefectClient.read_deployment_by_name)
    assert list(inspect.signature(PrefectClient.read_deployment_by_name).parameters) == ["self", "name"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/x/bin/prefect", "deployment", "run", "build-sapo-negatives"], True),
        (["/x/bin/prefect", "deployment", "ls"], False),
        (["/x/bin/prefect", "server", "start"], False),
        (["-m"], False),
        (["python", "deployment", "run"], False),
    ],
)
def test_it_is_awake_for_deployment_runs_only(argv: list[str], expected: bool) -> None:
    assert runs_deployment_command(argv) is expected


class Deployments:
    """A client that knows these (flow, deployment) names."""

    def __init__(self, *names: tuple[str, str]) -> None:
        self._names = names

    async def read_deployments(self, *, deployment_filter: object) -> list[SimpleNamespace]:
        wanted = deployment_filter.name.any_  # type: ignore[attr-defined]
        return [SimpleNamespace(name=name, flow_id=flow) for flow, name in self._names if name in wanted]

    async def read_flow(self, flow_id: str) -> SimpleNamespace:
        return SimpleNamespace(name=flow_id)


def test_a_bare_name_is_completed() -> None:
    client = Deployments(("flow-a", "nightly"), ("flow-b", "weekly"))
    assert asyncio.run(full_name(client, "weekly")) == "flow-b/weekly"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((("flow-a", "nightly"), ("flow-b", "nightly")), "flow-a/nightly, flow-b/nightly"),
        ((), "No deployment is called"),
    ],
)
def test_no_or_several_matches_end_with_a_sentence(
    names: tuple[tuple[str, str], ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asyncio.run(full_name(Deployments(*names), "nightly"))
    found = capsys.readouterr()
    assert said in " ".join((found.out + found.err).split())


def test_a_listening_port_is_a_server() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = server.getsockname()
        assert not server_answers(address)
        server.listen()
        assert server_answers(address)


def run_prefect(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    hidden = ("PREFECT_API_URL", "PREFECT_PROFILES_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PREFECT_HOME"] = str(tmp_path)
    return subprocess.run(
        [str(PREFECT), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(server_answers(), reason="a Prefect server runs on this machine")
def test_without_a_server_the_user_is_told_what_to_start(tmp_path: Path) -> None:
    ended = run_prefect(tmp_path, "deployment", "run", "build-sapo-negatives")
    assert ended.returncode == 1
    assert "prefect server start" in ended.stderr
    assert "python -m flows.serve" in ended.stderr


@pytest.mark.skipif(server_answers(), reason="a Prefect server runs on this machine")
def test_serving_without_a_server_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    environment.pop("PREFECT_API_URL", None)
    ended = subprocess.run(
        [sys.executable, "-m", "flows.serve"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "prefect server start" in ended.stderr


def test_the_plugin_is_switched_on_in_this_folder(tmp_path: Path) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["prefect"]["plugins"]["enabled"] is True
    assert project["project"]["entry-points"]["prefect.plugins"] == {"prefdata": prefect_plugin.__name__}
