"""Serve every deployment from this process: it starts a run when the Prefect server has one.

prefect server start        # in one terminal
python -m flows.serve       # in another
prefect deployment run build-sapo-negatives
"""

import argparse
import os
import sys
from collections.abc import Sequence

from flows.prefect_plugin import LOCAL_API, server_answers

START = (
    "No Prefect server is configured, and none answers on port 4200. Start one in another terminal:\n"
    "    prefect server start\n"
    "or name one with PREFECT_API_URL."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted. 2 if there is no server to serve for."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=1, help="runs at a time; each loads its own models (default: 1)")
    given = parser.parse_args(argv)
    if not _find_server():
        print(START, file=sys.stderr)
        return 2
    _serve(given.limit)
    return 0


def _find_server() -> bool:
    """Point Prefect at the configured server, or at the one on this machine. Before Prefect is imported."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return True
    if server_answers():
        os.environ["PREFECT_API_URL"] = LOCAL_API
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
        return True
    return False


def _serve(limit: int) -> None:
    from prefect import serve
    from prefect.types.entrypoint import EntrypointType

    from flows import all_flows

    deployments = [
        flow.to_deployment(name=flow.name, entrypoint_type=EntrypointType.MODULE_PATH, description=flow.description)
        for flow in all_flows()
    ]
    serve(*deployments, limit=limit)


if __name__ == "__main__":
    sys.exit(main())
