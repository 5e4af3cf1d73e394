"""Flows: one run on the ephemeral server, one through a real server, `flows.serve` and the bare deployment name."""

import errno
import inspect
import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Failed

from flows import deployable, interrupts
from flows import running as running_flows
from flows.deployable import Deployable
from prefdata import versions
from prefdata.builds import (
    add_reference,
    clean,
    generate,
    greedy_baselines,
    ingest,
    paired,
    rejection,
    sapo_negatives,
    score_rewards,
    unpaired,
)
from prefdata.errors import UserError
from prefdata.verify import verify
from tests import tiny_world
from tests.prefect_server import BIN, ROOT, Server, environment, running, wait_for
from tests.test_builds import DIRTY, write_pairs

MODULES = {
    "flows.ingest": ingest.Options,
    "flows.clean": clean.Options,
    "flows.add_reference": add_reference.Options,
    "flows.generate": generate.Options,
    "flows.score_rewards": score_rewards.Options,
    "flows.build_paired": paired.Options,
    "flows.build_unpaired": unpaired.Options,
    "flows.build_rejection_samples": rejection.Options,
    "flows.build_greedy_baselines": greedy_baselines.Options,
    "flows.build_sapo_negatives": sapo_negatives.Options,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home of its own, so that no server of this machine is touched."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


def flow(env: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("module", MODULES)
def test_help_names_every_option(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module(module).deployable.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for knob in fields(MODULES[module]):
        assert knob.name == "source" or f"--{knob.name.replace('_', '-')}" in shown


@pytest.mark.parametrize("module", MODULES)
def test_flow_parameters_are_the_options(module: str) -> None:
    name = module.removeprefix("flows.")
    parameters = inspect.signature(getattr(import_module(module), name).fn).parameters
    assert list(parameters) == [*(knob.name for knob in fields(MODULES[module])), "root"]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())


def test_every_deployment_is_served_and_in_prefect_yaml() -> None:
    import flows

    served = [flow.name for flow in flows.all_flows()]
    assert served == list(flows.DEPLOYMENTS)
    text = (ROOT / "prefect.yaml").read_text()
    for name in served:
        python_name = name.replace("-", "_")
        assert f"- name: {name}\n    entrypoint: flows/{python_name}.py:{python_name}\n" in text


@pytest.mark.slow
def test_from_files_to_a_served_run_by_bare_name(
    home: Path, model: str, tmp_path: Path, prefect_server: Server
) -> None:
    """Ingest on the ephemeral server; then a real server, `flows.serve`, and `prefect deployment run` twice."""
    root = tmp_path / "data"
    source = write_pairs(tmp_path / "pairs.jsonl", 40, extra=DIRTY)
    ended = flow(environment(home), "flows.ingest", str(source), "--model", model, "--root", str(root))
    assert ended.returncode == 0, ended.stderr
    assert "v1 is ready" in ended.stdout
    assert (tmp_path / "reports" / "data" / "v1.html").exists()
    with serving(prefect_server, root):
        for name in ("v2", "v3"):
            asked = subprocess.run(
                [str(BIN / "prefect"), "deployment", "run", "build-sapo-negatives"],
                cwd=ROOT,
                env=prefect_server.environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert asked.returncode == 0, asked.stdout + asked.stderr
            wait_for(lambda name=name: (root / name / "manifest.json").exists(), f"{name} to be published")
    found = versions.every(str(root))
    assert [version.manifest["round"] for version in found] == [0, 1, 2]
    assert [verify(version) for version in found] == [[], [], []]
    assert [version.manifest["parents"][0]["version"] for version in found[1:]] == ["v1", "v2"]


@pytest.mark.slow
def test_what_only_the_flow_finds_is_one_sentence_too(model: str, tmp_path: Path, prefect_server: Server) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "w1", "chosen": "w2", "rejected": "w2"}\n')
    arguments = ["flows.ingest", str(tmp_path / "pairs.jsonl"), "--model", model, "--root", str(tmp_path / "data")]
    ended = flow(prefect_server.environment, *arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr + ended.stdout
    said = "ingest: nothing was published: all 1 rows were set aside (identical_sides 1)"
    assert said in ended.stderr.splitlines()
    assert versions.every(str(tmp_path / "data")) == []


REFUSED = [
    (("flows.ingest", "nosuch.jsonl", "--model", "MODEL"), "nosuch.jsonl"),
    (("flows.ingest", "PAIRS", "--model", "/no/such/model"), "/no/such/model"),
    (("flows.ingest", "PAIRS", "--model", "MODEL", "--max-length", "500"), "500"),
    (("flows.ingest", "PAIRS", "--model", "MODEL", "--format", "nosuch"), "nosuch"),
    (("flows.build_sapo_negatives", "v99"), "v99"),
    (("flows.add_reference",), "no version"),
]
ONE_BY_ONE = """
import json, sys
from importlib import import_module
for module, *given in json.loads(sys.argv[1]):
    status = import_module(module).deployable.main(given)
    print(status, end="\\0", flush=True)
    print(end="\\0", file=sys.stderr, flush=True)
"""


def test_bad_input_is_refused_before_prefect_starts(home: Path, model: str, tmp_path: Path) -> None:
    """All in one process, which takes longer to start than to refuse."""
    known = {"MODEL": model, "PAIRS": str(write_pairs(tmp_path / "pairs.jsonl", 3))}
    given = [
        [*(known.get(argument, argument) for argument in arguments), "--root", str(tmp_path / "data")]
        for arguments, _ in REFUSED
    ]
    command = [sys.executable, "-c", ONE_BY_ONE, json.dumps(given)]
    ended = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=240)
    assert ended.stdout == "2\0" * len(REFUSED)
    errors = ended.stderr.removesuffix("\0").split("\0")
    for (arguments, said), error in zip(REFUSED, errors, strict=True):
        assert said in error, arguments
        assert len(error.strip().splitlines()) == 1


def test_an_interrupt_that_comes_out_as_bad_input_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hidden(self: Deployable, **given: Any) -> str:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise UserError("the data set cannot be read") from None
        raise AssertionError

    monkeypatch.setattr(Deployable, "run", hidden)
    assert import_module("flows.ingest").deployable.main(["pairs.jsonl", "--seed", "3"]) == 130
    said = capsys.readouterr().err
    assert "the same command goes on: python -m flows.ingest pairs.jsonl --seed 3" in said


def test_what_an_interrupt_hits_in_prefect_is_said_without_its_traceback() -> None:
    logger, heard = logging.getLogger("prefect.task_runs"), io.StringIO()
    handler = logging.StreamHandler(heard)
    logger.addHandler(handler)
    try:
        with interrupts.noticed() as pressed:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert pressed.is_set()
            logger.error("crashed", exc_info=ValueError("of Prefect"))
        logger.error("later", exc_info=ValueError("of its own"))
    finally:
        logger.removeHandler(handler)
    during, after = heard.getvalue().split("later")
    assert during == "crashed\n"
    assert "of its own" in after


def test_a_job_that_prefect_never_took_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**given: Any) -> Any:
        assert len(deployable._READY) == 1
        raise ConnectionError("no server")

    ready = import_module("flows.add_reference").deployable
    monkeypatch.setattr(Deployable, "flow", lambda self: fails)
    monkeypatch.setattr(Deployable, "_job", lambda self, given: object())
    with pytest.raises(ConnectionError):
        ready.run(source="v1")
    assert deployable._READY == {}


@pytest.mark.parametrize(
    ("problem", "again"),
    [
        (OSError(errno.EIO, "it is said once"), True),
        (OSError(errno.EMFILE, "too many"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (UserError("bad input"), False),
        (RuntimeError("a dying engine"), True),
    ],
)
def test_what_may_pass_is_tried_again(problem: Exception, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> bool:
        raise problem

    monkeypatch.setattr(running_flows, "run_unit", fails)
    monkeypatch.setitem(running_flows._UNDER_WAY, "key", (None, None, None, None))  # type: ignore[arg-type]
    try:
        state = running_flows.work_unit.fn("stage", 0, "key")
    except Exception as raised:
        state = Failed(data=raised)
    assert running_flows._worth_retrying(None, None, state) is again


@contextmanager
def serving(server: Server, root: Path) -> Iterator[None]:
    """`flows.serve`, which asks the server every second whether there is something to run."""
    log = server.home / "serve.log"
    env = {**server.environment, "PREFDATA_ROOT": str(root), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with running([sys.executable, "-m", "flows.serve"], env, log):
        wait_for(lambda: "build-sapo-negatives" in log.read_text(), "flows.serve")
        yield


def test_an_option_of_several_values_takes_them_together_or_one_by_one() -> None:
    parser = import_module("flows.generate").deployable.parser()
    assert parser.parse_args(["v1", "--server", "a", "b", "--server", "c"]).server == ["a", "b", "c"]
    assert parser.parse_args(["v1", "--server", "a"]).server == ["a"]
    assert parser.parse_args(["v1"]).server == []
