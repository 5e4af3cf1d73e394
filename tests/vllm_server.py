"""A real vLLM server on the CPU, one for all tests of a session; it can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.prefect_server import wait_for
from tests.required import lacking
from tests.tiny_world import save_model

# as in prefdata.engines.vllm: what is compiled or spread over processes takes longer on a CPU than it saves
ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
OPTIONS = (
    "--dtype float32 --enforce-eager --no-enable-chunked-prefill --generation-config vllm "
    "--logprobs-mode processed_logprobs --distributed-executor-backend uni"
).split()
START_S = 240.0


class VllmServer:
    """Of a tiny random model, at `url`."""

    def __init__(self, folder: Path) -> None:
        self.model = save_model(folder / "tiny", positions=96, head_size=32)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        module = "vllm.entrypoints.openai.api_server"
        command = [
            sys.executable,
            "-m",
            module,
            "--model",
            self.model,
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, *OPTIONS],
                env={**os.environ, **ENVIRONMENT},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(self._answers, "the vLLM server", START_S)

    def kill(self) -> None:
        """It and its engine, at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail("the vLLM server ended: " + self._log.read_text()[-3000:])
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Running; a test that kills it starts it again."""
    if find_spec("vllm") is None:
        lacking("vllm", "vLLM is not installed: make env-vllm")
    server = VllmServer(tmp_path_factory.mktemp("vllm_server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()
