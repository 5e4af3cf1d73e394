"""The README stays true: its commands parse, its tables match the code, its files exist."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def commands() -> Iterator[str]:
    """Indented lines that start a program, without their comments."""
    for line in TEXT.splitlines():
        command = line.strip().split("  #")[0].strip()
        if line.startswith("    ") and command.startswith(("make ", "python -m ", "prefdata ", "prefect ")):
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


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("prefdata ")])
def test_prefdata_commands_parse(command: str) -> None:
    from prefdata import cli

    cli.parser().parse_args(shlex.split(command)[1:])


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
    for path in re.findall(r"`((?:trainers|prefdata|flows|schemas|docs)/[\w./-]*)`", TEXT):
        assert (ROOT / path).exists(), path


def test_the_views_it_names_exist(tmp_path: Path) -> None:
    from prefdata import query
    from tests.published import publish

    publish(tmp_path)
    shown = {row[0] for row in query.connect(str(tmp_path)).sql("show tables").fetchall()}
    assert {"versions", "v1", "pairs", "completions", "ledger", "lengths", "reference"} <= shown
