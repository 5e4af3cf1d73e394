"""Prefect flows and deployments: order, fan-out, retries, progress, artifacts. No arithmetic."""

from importlib import import_module
from typing import Any

# one file a deployment; the flow in it has the deployment's name with underscores
DEPLOYMENTS = ("ingest", "build-sapo-negatives", "add-reference")


def all_flows() -> list[Any]:
    """The flows of all deployments; importing them imports Prefect."""
    names = [name.replace("-", "_") for name in DEPLOYMENTS]
    return [getattr(import_module(f"flows.{name}"), name) for name in names]
