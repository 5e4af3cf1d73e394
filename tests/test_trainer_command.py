"""The command line: what it prints, what it returns, how quick it is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer_world import arguments
from trainers import contract, run
from trainers.objectives import OBJECTIVES, Pair, ReferencedPair
from trainers.options import Options

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def command(options: Options) -> list[str]:
    return ["--data", options.data, "--lr", "3e-3", "--steps", "2", "--batch-size", "4", "--accumulate", "1"]


def test_the_command_line_trains_and_sums_up(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*command, "--loss", "orpo", "--set", "lam=0.2"]) == 0
    said = capsys.readouterr().out
    assert "done: 2 steps" in said
    assert "tensorboard --logdir runs/v1-orpo-1/tensorboard" in said
    content = json.loads(Path("runs/v1-orpo-1/run.json").read_text())
    assert content["config"]["knobs"] == {"lam": 0.2}


def test_a_refusal_is_one_sentence_on_stderr_and_exit_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*command, "--loss", "rpo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "3 meanings" in captured.err


def test_the_list_says_of_every_loss_what_it_reads_its_source_and_its_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, objective in OBJECTIVES.items():
        block = next(part for part in said.split("\n\n") if part.startswith(f"{name}\n"))
        assert f"  reads   {objective.batch.reads}\n" in block
        assert f"  source  {objective.source}\n" in block
        for knob in objective.options.values():
            told = f"{knob.name}  {knob.kind}, {knob.default} unless set"
            assert told + (f", {knob.allowed}" if knob.allowed else "") in block
    dpo = next(part for part in said.split("\n\n") if part.startswith("dpo\n"))
    assert "knobs   beta  a number, 0.1 unless set, above 0\n" in dpo
    assert "        label_smoothing  a number, 0.0 unless set, at least 0 and below 0.5\n" in dpo


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, trainers.run; trainers.run.parser().format_help(); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_and_command_line_agree_on_every_default() -> None:
    given = vars(run.parser().parse_args(["--data", "v1", "--loss", "sft"]))
    given.pop("list")
    assert Options(**{**given, "set": tuple(given["set"])}) == Options(data="v1", loss="sft")


def test_contract_columns_are_columns_of_the_schema() -> None:
    from prefdata import logical
    from schemas import pairs

    for objective in OBJECTIVES.values():
        for kind in objective.batch.sides:
            known = [group[kind].names for group in (logical.SELECTED, logical.REFERENCE)]
            known.append(logical.reference_of(kind, objective.batch.columns).names)
            assert set(objective.batch.columns) <= {name for names in known for name in names}
    assert contract.usable_losses("pairs", pairs.BASE.names) == sorted(
        name for name, one in OBJECTIVES.items() if not one.batch.columns and "pairs" in one.batch.sides
    )
    assert issubclass(ReferencedPair, Pair)


def test_help_says_defaults_where_there_are_some() -> None:
    text = " ".join(run.parser().format_help().split())
    for said in ("(default: 8)", "(default: 0.1)", "keeps policy and reference comparable (default: 0.0)"):
        assert said in text
    for unsaid in ("None)", "False)", "[])"):
        assert f"(default: {unsaid}" not in text
    options = [action for action in run.parser()._actions if action.default is None]
    silent = [
        action.dest
        for action in options
        if "unset: " not in str(action.help) and action.dest not in ("data", "loss", "steps", "early_stop")
    ]
    assert silent == []


def test_the_command_line_of_options_is_read_back_as_those_options(options: Options) -> None:
    everything = replace(
        options,
        set=("beta=0.2", "label_smoothing=0.1"),
        lora_rank=4,
        lora_alpha=2.5,
        lora_targets="q_proj,v_proj",
        merge=True,
        gradient_checkpointing=True,
        early_stop=3,
        fresh=True,
    )
    given = vars(run.parser().parse_args(arguments(everything)))
    given.pop("list")
    assert Options(**{**given, "set": tuple(given["set"])}) == everything


def test_the_command_line_knows_adapters_and_early_stopping(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*command, "--loss", "dpo", "--lora-rank", "2", "--merge", "--early-stop", "1", "--eval-every", "1"]
    assert run.main([*line, "--gradient-checkpointing"]) == 0
    said = capsys.readouterr().out
    assert "LoRA of rank 2, alpha 4: " in said
    assert "kept step " in said
    folder = Path("runs/v1-dpo-1")
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "adapter"}
    config = json.loads((folder / "run.json").read_text())["config"]
    assert (config["early_stop"], config["merge"], config["gradient_checkpointing"]) == (1, True, True)
