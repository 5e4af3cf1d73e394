"""A version that does not serve a loss is refused in words, with the command that helps."""

import importlib
import math
import re
import shlex
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from prefdata.errors import UserError
from prefdata.storage import Storage
from prefdata.versions import Version
from schemas.manifest import Manifest
from schemas.pairs import BASE, REFERENCE
from tests.tiny_world import completion_rows, pair_rows, publish, table, with_reference
from trainers import contract
from trainers.contract import MissingColumns, check, check_rows
from trainers.loss import Reading, parse

SIDES = Reading(("chosen", "rejected"), {})
V7 = Version(Storage("data/v7"), cast(Manifest, {"version": "v7"}))  # what a refusal of its rows says of it


@pytest.fixture(scope="module")
def plain(model: str, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Pairs without a reference."""
    return publish(tmp_path_factory.mktemp("plain"), {"train": table(pair_rows(4))}, model)


@pytest.fixture(scope="module")
def demonstrations(model: str, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return publish(
        tmp_path_factory.mktemp("demo"), {"train": table(completion_rows(4), "completions")}, model, kind="completions"
    )


def test_missing_columns_name_the_flow_and_what_can_be_trained_as_is(
    plain: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFDATA_ROOT", plain.root)
    with pytest.raises(MissingColumns) as refused:
        check(plain, parse("dpo", None, ()))
    assert str(refused.value) == (
        "--loss dpo reads ref_chosen_logps and ref_rejected_logps, which data version v1 does not have.\n"
        "Add them:  python -m flows.add_reference v1\n"
        "Or train v1 as it is with one of: alphapo, cpo, orpo, reward, sft, simpo, slic"
    )


@pytest.mark.parametrize("loss", ["alphapo", "cpo", "orpo", "sft", "simpo", "slic"])
def test_losses_without_a_reference_need_none(plain: Version, loss: str) -> None:
    check(plain, parse(loss, None, ()))


def test_a_pair_loss_on_unpaired_rows_names_what_makes_pairs(demonstrations: Version) -> None:
    check(demonstrations, parse("sft", None, ()))
    with pytest.raises(MissingColumns) as refused:
        check(demonstrations, parse("orpo", None, ()))
    assert "holds completions" in str(refused.value)
    assert "python -m flows.build_sapo_negatives v1" in str(refused.value)
    assert str(refused.value).endswith("one of: sft")  # rrhf reads scores, and these rows have none


def test_a_loss_is_named_where_every_train_row_has_what_it_reads(model: str, tmp_path: Path) -> None:
    rows = [row | {"score": 1.0} for row in completion_rows(4)]
    held_out = {"test": table(completion_rows(2, seed=1), "completions")}
    for name, train, told in (("full", rows, "rrhf, sft"), ("gap", [*rows, completion_rows(5)[4]], "sft")):
        splits = {"train": table(train, "completions"), **held_out}
        version = publish(tmp_path / name, splits, model, kind="completions")
        with pytest.raises(MissingColumns, match=f"one of: {told}$"):
            check(version, parse("orpo", None, ()))


def test_a_reference_without_a_name_is_refused_only_where_it_is_read(model: str, tmp_path: Path) -> None:
    version = publish(tmp_path, {"train": with_reference(table(pair_rows(3)), model)}, model, reference_model=None)
    check(version, parse("orpo", None, ()))
    with pytest.raises(MissingColumns, match="does not say which model"):
        check(version, parse("dpo", None, ()))


def test_a_version_without_train_rows_is_refused(model: str, tmp_path: Path) -> None:
    version = publish(tmp_path, {"test": table(pair_rows(2))}, model)
    with pytest.raises(UserError, match="no train rows; it holds: test"):
        check(version, parse("sft", None, ()))


def row(**changes: Any) -> Any:
    """One good row with reference, changed."""
    good = pair_rows(1)[0]
    chosen, rejected = len(good["chosen_ids"]), len(good["rejected_ids"])
    reference = {
        "ref_chosen_token_logps": [-1.0] * chosen,
        "ref_rejected_token_logps": [-1.0] * rejected,
        "ref_chosen_logps": -float(chosen),
        "ref_rejected_logps": -float(rejected),
    }
    return pa.Table.from_pylist([good | reference | changes], schema=pa.unify_schemas([BASE, REFERENCE]))


def test_a_good_row_passes() -> None:
    check_rows(row(), SIDES, V7)
    check_rows(row(ref_chosen_logps=5e-5), SIDES, V7)  # rounding of a certain answer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ref_chosen_logps": float("nan")}, "ref_chosen_logps holds nan"),
        ({"ref_rejected_logps": float("-inf")}, "ref_rejected_logps holds -inf"),
        ({"ref_chosen_logps": 0.01}, "ref_chosen_logps holds 0.01"),
        ({"ref_chosen_logps": None}, "ref_chosen_logps is missing"),
        ({"ref_rejected_token_logps": None}, "ref_rejected_token_logps is missing"),
        ({"ref_chosen_token_logps": [-1.0]}, "ref_chosen_token_logps has not one value per token"),
        ({"prompt_ids": []}, "prompt_ids is empty"),
        ({"chosen_ids": [], "chosen_tokens": 0}, "chosen has no scored token"),
        ({"rejected_tokens": 1}, "rejected_tokens is not the number of scored tokens"),
        ({"chosen_loss_mask": [True]}, "chosen_loss_mask and chosen_ids differ in length"),
    ],
)
def test_a_bad_row_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        check_rows(row(**changes), SIDES, V7)
    assert said in str(refused.value)
    assert "v7" in str(refused.value)
    assert row()["row_id"][0].as_py() in str(refused.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2e-4])
def test_one_bad_token_among_good_ones_is_found(bad: float) -> None:
    good = table(pair_rows(1))
    logps = [-1.0] * (good["rejected_tokens"][0].as_py() - 1) + [bad]
    with pytest.raises(UserError, match="ref_rejected_token_logps holds"):
        check_rows(row(ref_rejected_token_logps=logps), SIDES, V7)


def test_a_mask_that_keeps_nothing_is_refused_even_if_the_count_agrees() -> None:
    length = len(pair_rows(1)[0]["chosen_ids"])
    with pytest.raises(UserError, match="chosen has no scored token"):
        check_rows(row(chosen_loss_mask=[False] * length, chosen_tokens=0), SIDES, V7)


def test_masks_are_counted_row_by_row() -> None:
    check_rows(table(pair_rows(5, masked=True) + pair_rows(5, seed=1)), SIDES, V7)


def test_another_tokenizer_is_said_with_the_flow(plain: Version) -> None:
    contract.check_tokenizer(plain, [], "m")
    with pytest.raises(UserError) as refused:
        contract.check_tokenizer(plain, ["the tokenizer is a there and b here"], "some/model")
    assert "the tokenizer is a there and b here" in str(refused.value)
    assert "python -m flows.ingest" in str(refused.value)


def test_rows_longer_than_the_model_are_refused(plain: Version) -> None:
    contract.check_lengths(plain, 64, 64, "m")
    contract.check_lengths(plain, 10**6, None, "m")
    with pytest.raises(UserError, match="65 tokens, and m has positions for 64"):
        contract.check_lengths(plain, 65, 64, "m")


def test_the_commands_that_errors_give_are_commands(plain: Version, demonstrations: Version) -> None:
    """Each is parsed by the flow that it names."""
    said = []
    for refuse in (
        lambda: check(plain, parse("dpo", None, ())),
        lambda: check(demonstrations, parse("orpo", None, ())),
        lambda: check_rows(row(ref_chosen_logps=None), SIDES, V7),
        lambda: contract.check_tokenizer(plain, ["a difference"], "org/model"),
        lambda: contract.check_lengths(plain, 65, 64, "org/model"),
    ):
        with pytest.raises(UserError) as refused:
            refuse()
        said.append(str(refused.value))
    commands = [match for text in said for match in re.findall(r"python -m (flows\.\w+) (.*)", text)]
    assert len(commands) == len(said)
    for module, arguments in commands:
        importlib.import_module(module).deployable.parser().parse_args(shlex.split(arguments))


def test_the_commands_that_errors_give_find_a_version_below_another_root(model: str, tmp_path: Path) -> None:
    root = tmp_path / "other data"  # a shell must read it as one word
    version = publish(root, {"train": table(pair_rows(2))}, model)
    unscored = version.table("train").append_column("ref_chosen_logps", pa.nulls(2, pa.float32()))
    for refuse in (
        lambda: check(version, parse("dpo", None, ())),
        lambda: check_rows(unscored, SIDES, version),
        lambda: contract.check_tokenizer(version, ["a difference"], "org/model"),
        lambda: contract.check_lengths(version, 65, 64, "org/model"),
    ):
        with pytest.raises(UserError) as refused:
            refuse()
        [(module, arguments)] = re.findall(r"python -m (flows\.\w+) (.*)", str(refused.value))
        given = importlib.import_module(module).deployable.parser().parse_args(shlex.split(arguments))
        assert given.root == str(root)


def test_the_default_root_is_not_spelt_out(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFDATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    version = publish(tmp_path / "data", {"train": table(pair_rows(2))}, model)
    with pytest.raises(MissingColumns, match="add_reference v1\n"):
        check(version, parse("dpo", None, ()))
