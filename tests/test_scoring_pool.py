"""Scoring in several processes: here two on the CPU, where a machine with GPUs has one for each."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from prefdata import logprobs, models
from prefdata.builds import scoring
from prefdata.engines import EngineDied
from prefdata.logprobs import pool as pool_module
from prefdata.logprobs.pool import Pool, deal
from tests import tiny_world
from tests.test_logprobs import random_trees

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def loading(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"name": tiny_world.save_model(tmp_path_factory.mktemp("pool") / "model"), "dtype": "float32"}


@pytest.fixture(scope="module")
def pool(loading: dict[str, Any]) -> Iterator[Pool]:
    made = Pool(loading, ["cpu", "cpu"])
    yield made
    made.close()


def test_trees_are_dealt_once_each_and_by_tokens() -> None:
    trees = random_trees(40)
    dealt = list(deal(trees, 60))
    assert sorted(number for run in dealt for number in run) == list(range(40))
    tokens = [len(tree.trunk) + sum(map(len, tree.branches)) for tree in trees]
    assert all(len(run) == 1 or sum(tokens[number] for number in run) <= 60 for run in dealt)


def test_equals_one_process(pool: Pool, loading: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_DEALT_BUDGETS", 0.05)
    trees, told = random_trees(60), []
    found = pool.score(trees, tell=told.append)
    assert len(told) > 4
    assert told[-1] == 1
    expected = logprobs.score(models.load_model(**loading), trees)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_process_that_ends_is_an_engine_that_died_and_the_next_call_works(pool: Pool) -> None:
    pool.score(random_trees(2))
    assert pool._processes is not None
    victim = next(iter(pool._processes._processes))
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(EngineDied, match="ended"):
        pool.score(random_trees(3000, longest=24))
    pool._devices = ["cpu"]  # one is enough, and faster to start
    assert len(pool.score(random_trees(2))) == 2


def test_the_reference_stage_takes_one_process_for_each_of_several_gpus(
    loading: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "gpus", lambda: ["cpu", "cpu"])
    stage = scoring.ReferenceStage(lambda: (), {"fingerprint": "x"}, loading)
    assert isinstance(stage._load(), Pool)
    stage.close()
    monkeypatch.setattr(logprobs, "gpus", lambda: ["cpu"])
    assert not isinstance(stage._load(), Pool)


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from prefdata.logprobs.pool import _end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('fork').Process(target=_end_with_parent).start()\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
    )
    started = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)}
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "started\n"
    children = psutil.Process(started.pid).children(recursive=True)
    assert children
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
