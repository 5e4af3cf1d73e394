"""Fixtures that several files of tests share: one server for all of them, and one policy with its version."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import one_thread  # noqa: F401  # before anything that imports torch
from tests.prefect_server import prefect_server
from tests.s3_server import s3, s3_server
from tests.vllm_server import vllm_server

if TYPE_CHECKING:
    from prefdata.versions import Version
    from tests.export_world import World as ChatWorld
    from tests.trainer_world import World
    from trainers.options import Options

# files that take minutes: begun first, or one process works on the last of them while the others have nothing to do
LONG = (
    "test_demo",
    "test_vllm",
    "test_kills",
    "test_real_data",
    "test_readme",
    "test_flows",
    "test_vllm_server",
    "test_trainer",
)

__all__ = [
    "chat_world",
    "model",
    "options",
    "prefect_server",
    "s3",
    "s3_server",
    "small_world",
    "version",
    "vllm_server",
    "world",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; a file's own tests stay in their order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """What tests of the trainer read and none of them changes."""
    from tests.trainer_world import make_world  # imports torch, which most tests do without

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """For runs that are killed or wait for each other at every step: an epoch is steps of 8, 8 and 5 rows."""
    from tests.trainer_world import make_world

    return make_world(tmp_path_factory.mktemp("small_world"), plain=16, masked=5, held_out=5)


@pytest.fixture(scope="session")
def chat_world(tmp_path_factory: pytest.TempPathFactory) -> "ChatWorld":
    """A version of each kind, ingested for a model with a chat template."""
    from tests.export_world import make_world

    return make_world(tmp_path_factory.mktemp("chat_world"))


@pytest.fixture(scope="session")
def model(world: "World") -> str:
    return world.model


@pytest.fixture(scope="session")
def version(world: "World") -> "Version":
    return world.version


@pytest.fixture
def options(world: "World", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Options":
    """A run of a few steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return world.options
