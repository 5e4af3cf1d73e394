"""Serve every deployment from this process: it starts a run when the Prefect server has one.

prefect server start        # in one terminal
python -m flows.serve       # in another
prefect deployment run build-sapo-negatives
"""

import argparse
import os
import sys
from collections.abc import Sequence

from flows.prefect_plugin import LOCAL_API, silent_server


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted. 2 if there is no server to serve for."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=1, help="runs at a time; each loads its own models (default: 1)")
    given = parser.parse_args(argv)
    silent = _find_server()
    if silent:
        print(silent, file=sys.stderr)
        return 2
    _serve(given.limit)
    return 0


def _find_server() -> str | None:
    """Point Prefect at the configured server, or at the one on this machine; what to tell the user if it is silent."""
    from prefect.settings import get_current_settings

    configured = get_current_settings().api.url
    silent = silent_server(configured)
    if silent is None and not configured:
        from prefect.context import refresh_global_settings_context

        os.environ["PREFECT_API_URL"] = LOCAL_API
        refresh_global_settings_context()
    return silent


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
