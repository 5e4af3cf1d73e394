"""The README stays true: its commands parse and run, its tables match the code, its files exist.

Every command on versions runs as it stands, and so does training, on three small versions. The block with names of the
hub runs as it stands too, in a folder where these names are folders. Deployments, which need a server, are only parsed;
tests/test_flows.py runs them.
"""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests import tiny_world

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def commands() -> Iterator[str]:
    """Indented lines that start a program, without their comments."""
    for line in TEXT.splitlines():
        command = line.strip().split("  #")[0].strip()
        if line.startswith("    ") and command.startswith(("make ", "python -", "prefdata ", "prefect ")):
            yield command
    yield from re.findall(r"`((?:python -m|prefdata|prefect) [^`]+)`", TEXT)


def is_example(command: str) -> bool:
    return "NAME" not in command and command.split()[-1] not in ("sql",)


COMMANDS = sorted({command for command in commands() if is_example(command)})


def test_the_commands_were_found() -> None:
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m flows.")])
def test_flow_commands_parse(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    found = import_module(module)
    if module == "flows.serve":
        assert arguments == []
        return
    found.deployable.parser().parse_args(arguments)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m trainers.run")])
def test_trainer_commands_parse(command: str) -> None:
    from trainers import run
    from trainers.objectives import OBJECTIVES

    given = run.parser().parse_args(shlex.split(command)[3:])
    assert given.list or given.loss in OBJECTIVES


@pytest.mark.parametrize(
    "command",
    [each for each in COMMANDS if each.startswith(("python -m trainers.suggest", "python -m trainers.compare"))],
)
def test_commands_beside_training_parse(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    import_module(module).parser().parse_args(arguments)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("prefdata ")])
def test_prefdata_commands_parse(command: str) -> None:
    from prefdata import cli

    name = shlex.split(command)[1]
    assert cli.parser().parse_args(shlex.split(command)[1:]).run.__name__.removesuffix("_") == name


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What a command prints where `data` holds v1 (pairs), v2 (with log-probs), v3 (segments), as after the demo."""
    from prefdata.builds import add_reference, ingest, sapo_negatives
    from prefdata.builds.job import run

    folder = tmp_path_factory.mktemp("readme")
    root = str(folder / "data")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    model = tiny_world.save_model(folder / "model", positions=96)
    rng = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(tiny_world.WORDS)}" for _ in range(rng.randint(least, most)))

    rows = [{"prompt": text(3, 9), "chosen": text(4, 12), "rejected": text(4, 12)} for _ in range(40)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = (str(folder / "pairs.jsonl"),)
    run(ingest.Ingest(ingest.Options(source=source, model=model, test_fraction=0.2), root))
    run(add_reference.AddReference(add_reference.Options(source="v1"), root))
    run(sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(source="v1"), root))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "PREFDATA_ROOT": root,
        "HF_HUB_OFFLINE": "1",
    }

    def printed(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return printed


READING = [command for command in COMMANDS if command.startswith(("prefdata ", "python -c "))]
DIFFERING = "prefdata diff v1 v3"  # exits with 1, since they differ


@pytest.mark.parametrize("command", READING)
def test_commands_on_versions_run_as_they_stand(command: str, shell: Callable[[str], str]) -> None:
    assert shell(f"{command} || test $? = 1" if command == DIFFERING else command).strip()


def test_all_kinds_of_commands_on_versions_are_run() -> None:
    first_words = {" ".join(command.split()[:2]) for command in READING}
    assert first_words == {
        *(
            f"prefdata {name}"
            for name in (
                "sql",
                "stats",
                "show",
                "versions",
                "verify",
                "lineage",
                "tag",
                "gc",
                "diff",
                "report",
                "export",
                "build",
            )
        ),
        "python -c",
    }


HUB_MODEL, HUB_DATA = "Qwen/Qwen2.5-0.5B-Instruct", "Anthropic/hh-rlhf"


def hub_block() -> list[str]:
    """The lines of the block that names a model and a data set of the hub."""
    block = next(part for part in TEXT.split("\n\n") if HUB_DATA in part and HUB_MODEL in part)
    return [line.strip().split("  #")[0].strip() for line in block.splitlines() if line.startswith("    ")]


@pytest.mark.slow
def test_the_block_with_names_of_the_hub_runs_where_they_are_folders(tmp_path: Path) -> None:
    """One process runs the modules one after the other, so that their imports and the server's start cost once."""
    tiny_world.save_model(tmp_path / HUB_MODEL, positions=96)
    rng = random.Random(0)
    (tmp_path / HUB_DATA).mkdir(parents=True)
    with (tmp_path / HUB_DATA / "train.jsonl").open("w") as file:
        for _ in range(40):
            asked, *answers = (" ".join(f"w{rng.randrange(tiny_world.WORDS)}" for _ in range(6)) for _ in range(3))
            sides = (f"\n\nHuman: {asked}\n\nAssistant: {answer}" for answer in answers)
            file.write(json.dumps(dict(zip(("chosen", "rejected"), sides, strict=True))) + "\n")
    assert hub_block()[0].startswith("export ")
    run = """
import shlex, sys
from importlib import import_module
for line in sys.stdin.read().splitlines():
    program, *words = shlex.split(line)
    print("$", line, flush=True)
    if program == "prefdata":
        from prefdata.cli import main
        code = main(words)
    else:
        module = import_module(words[1])
        code = module.deployable.main(words[2:]) if hasattr(module, "deployable") else module.main(words[2:])
    if code:
        sys.exit(f"{line} ended with {code}")
"""
    variable, value = hub_block()[0].removeprefix("export ").split("=")
    kept = {name: each for name, each in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", run],
        input="\n".join(hub_block()[1:]),
        cwd=tmp_path,
        env={
            **kept,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            variable: value,
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("$ ") == len(hub_block()) - 1
    assert "v3: sound" in done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 3


TRAINING = [command for command in COMMANDS if command.startswith("python -m trainers.run --data")]


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_training_runs_as_it_stands(command: str, shell: Callable[[str], str]) -> None:
    assert "\ndone: 1 steps" in shell(f"{command} --steps 1")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("prefect deployment run")])
def test_deployments_exist(command: str) -> None:
    import flows

    assert command.split()[-1] in flows.DEPLOYMENTS


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def table(first_column: str) -> dict[str, str]:
    """name -> second cell of the table whose first column has that heading."""
    rows = TEXT.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0].strip("`"): row[1] for row in cells}


def test_the_table_of_losses_is_the_registry() -> None:
    from trainers.objectives import OBJECTIVES

    assert table("loss") == {name: one.batch.reads for name, one in OBJECTIVES.items()}


def test_the_table_of_flows_is_the_deployments() -> None:
    import flows

    assert set(table("flow")) == set(flows.DEPLOYMENTS)


def test_the_paths_it_names_exist() -> None:
    for path in re.findall(r"`((?:trainers|prefdata|flows|schemas|docs|recipes)/[\w./-]*)`", TEXT):
        assert (ROOT / path).exists(), path


def test_the_views_it_names_exist(tmp_path: Path) -> None:
    from prefdata import query
    from tests.published import publish

    publish(tmp_path)
    shown = {row[0] for row in query.connect(str(tmp_path)).sql("show tables").fetchall()}
    assert {"versions", "v1", "pairs", "completions", "ledger", "lengths", "reference"} <= shown
