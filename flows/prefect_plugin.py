"""Lets `prefect deployment run NAME` take a deployment's bare name, and finds the local server.

Prefect loads this file in the folder whose pyproject.toml enables plugins, at every `import prefect`, so it must stay
light: for anything but a `prefect deployment` command it does nothing.

It wraps a method of Prefect's client; `tests/test_prefect_plugin.py` fails the day that method moves.
"""

import os
import socket
import sys
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from prefect.plugins import HookContext, SetupResult, register_hook

LOCAL_SERVER = ("127.0.0.1", 4200)
LOCAL_API = "http://127.0.0.1:4200/api"
NO_SERVER = "No Prefect server is configured, and none answers on port 4200, so this run would never start.\n"
START = (
    "Start one, and something that runs deployments, each in a terminal of its own:\n"
    "    prefect server start\n"
    "    python -m flows.serve"
)


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Prefect's startup hook."""
    if not runs_deployment_command(sys.argv):
        return None
    _accept_bare_names()
    silent = silent_server(ctx.api_url)
    if silent:
        print(silent, file=sys.stderr)
        raise SystemExit(1)
    if ctx.api_url:
        return None
    return SetupResult(env={"PREFECT_API_URL": LOCAL_API}, note="the server on this machine")


def runs_deployment_command(argv: list[str]) -> bool:
    """Whether this process is `prefect deployment run ...`, where a name is looked up on a server."""
    is_prefect = os.path.basename(argv[0]) in ("prefect", "prefect.exe")
    return is_prefect and ("deployment", "run") in pairwise(argv[1:])


def silent_server(api_url: str | None) -> str | None:
    """What to tell the user if the server that would be asked does not answer; None if it does, or is elsewhere."""
    if not api_url:
        return None if server_answers() else NO_SERVER + START
    parts = urlsplit(api_url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1") or server_answers((parts.hostname, parts.port or 80)):
        return None
    return f"No Prefect server answers at {api_url}, so this run would never start.\n{START}"


def server_answers(address: tuple[str, int] = LOCAL_SERVER, timeout_s: float = 0.5) -> bool:
    """Whether something listens where `prefect server start` puts the server."""
    try:
        with socket.create_connection(address, timeout=timeout_s):
            return True
    except OSError:
        return False


def _accept_bare_names() -> None:
    from prefect.client.orchestration import PrefectClient

    named = PrefectClient.read_deployment_by_name

    async def read_deployment_by_name(self: Any, name: str) -> Any:
        return await named(self, name if "/" in name else await full_name(self, name))

    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign]


async def full_name(client: Any, name: str) -> str:
    """FLOW/DEPLOYMENT for a bare name that exactly one deployment has; otherwise the process ends with a sentence."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    found = [
        f"{(await client.read_flow(deployment.flow_id)).name}/{deployment.name}"
        for deployment in await client.read_deployments(deployment_filter=wanted)
    ]
    if len(found) == 1:
        return found[0]
    _refuse(name, found)
    raise AssertionError


def _refuse(name: str, found: list[str]) -> None:
    from prefect.cli._utilities import exit_with_error

    if found:
        exit_with_error(f"Several deployments are called {name!r}; name one in full: {', '.join(sorted(found))}")
    exit_with_error(
        f"No deployment is called {name!r}. Is `python -m flows.serve` running? `prefect deployment ls` lists them."
    )
