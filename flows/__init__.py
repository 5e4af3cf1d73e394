"""Prefect flows and deployments: order, fan-out, retries, progress, artifacts. No arithmetic."""

import os
from importlib import import_module
from typing import Any

# Before Prefect is imported: its temporary server takes longer than the usual 20 s to start on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

# one file a deployment; the flow in it has the deployment's name with underscores
DEPLOYMENTS = (
    "ingest",
    "clean",
    "generate",
    "score-rewards",
    "build-paired",
    "build-unpaired",
    "build-rejection-samples",
    "build-greedy-baselines",
    "build-sapo-negatives",
    "add-reference",
)


def all_flows() -> list[Any]:
    """The flows of all deployments; importing them imports Prefect."""
    names = [name.replace("-", "_") for name in DEPLOYMENTS]
    return [getattr(import_module(f"flows.{name}"), name) for name in names]
