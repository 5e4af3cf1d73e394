"""Prefect for tests: a home of its own, so that no server of this machine is touched, and a server that all tests share.

A flow that is given the server's URL starts seconds faster than one that has to start a temporary server.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Server:
    """A running server, and what a process is given to reach it."""

    home: Path
    url: str

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.home, PREFECT_API_URL=self.url)


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of this process, with another Prefect."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for the whole session."""
    from flows.prefect_plugin import server_answers  # imports Prefect, which most tests do without

    home = tmp_path_factory.mktemp("prefect-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "prefect"), "server", "start", "--port", str(port), "--no-ui"]
    with running(command, environment(home), home / "server.log"):
        wait_for(lambda: server_answers(("127.0.0.1", port)), "the server")
        yield Server(home, f"http://127.0.0.1:{port}/api")


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    """A process; what it wrote is shown if what goes on meanwhile fails."""
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


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 150) -> None:
    """Until something is so; fails after `timeout_s`."""
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)
