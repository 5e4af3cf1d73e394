"""Pairs that a loss can't be trained on are refused in one sentence, with what helps."""

import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prefdata.errors import UserError
from prefdata.versions import Version
from tests.tiny_world import pair_rows, publish, scored, table, with_reference
from trainers import data
from trainers.contract import MissingColumns, check
from trainers.loss import parse


def version_of(model: str, folder: Path, *changes: dict[str, Any]) -> Version:
    """Four scored pairs with a reference; the first ones changed."""
    rows = scored(pair_rows(4))
    for row, changed in zip(rows, changes, strict=False):
        row |= changed
    return publish(folder, {"train": with_reference(table(rows), model)}, model, reference_model=model)


def read(version: Version, loss: str, folder: Path, *settings: str) -> data.Rows:
    """The rows as the loss reads them, checked."""
    chosen = parse(loss, None, settings)
    check(version, chosen)
    return data.load(version, "train", chosen.reading("pairs"), folder)


@pytest.mark.parametrize(
    ("loss", "settings", "change", "said"),
    [
        ("odpo", (), {"chosen_score": None}, "chosen_score is missing"),
        ("sppo", (), {"rejected_score": None}, "rejected_score is missing"),
        ("sppo", (), {"chosen_score": float("nan")}, "chosen_score is not finite"),
        ("odpo", (), {"chosen_score": -1.0}, "chosen_score is below rejected_score"),
        ("odpo", ("offset_of=difference",), {"chosen_score": -1.0}, "chosen_score is below rejected_score"),
        ("odpo", (), {"chosen_score": 0.0}, "train with --set offset_of=difference, or leave ties out"),
        ("psi_po", (), {"preference": 1.2}, "preference is not between 0 and 1"),
        ("psi_po", (), {"preference": -0.1}, "preference is not between 0 and 1"),
        ("psi_po", ("psi=logit",), {"preference": 1.0}, "train with --set psi=identity"),
        ("psi_po", ("psi=logit",), {"preference": 0.0}, "preference is 0 or 1"),
        ("psi_po", ("psi=logit",), {"preference": None}, "or not stated, which is 1"),
    ],
)
def test_a_row_that_does_not_serve_is_named(
    model: str, tmp_path: Path, loss: str, settings: tuple[str, ...], change: dict[str, Any], said: str
) -> None:
    version = version_of(model, tmp_path / "data", change)
    with pytest.raises(UserError) as refused:
        read(version, loss, tmp_path, *settings)
    assert said in str(refused.value)
    assert "1 rows of data version v1" in str(refused.value)
    assert "\n" not in str(refused.value)
    if command := str(refused.value).partition("python -m ")[2]:
        module, *arguments = shlex.split(command)
        import_module(module).deployable.parser().parse_args(arguments)


@pytest.mark.parametrize(
    ("loss", "settings", "change"),
    [
        ("odpo", ("offset_of=difference",), {"chosen_score": 0.0}),  # a tie has no offset
        ("sppo", (), {"chosen_score": -1.0}),  # an inversion turns its targets round
        ("sppo", (), {"chosen_score": 0.0}),
        ("psi_po", (), {"preference": None}),
        ("psi_po", (), {"preference": 0.0}),
        ("dpo", (), {"chosen_score": None, "preference": 7.0}),  # which it does not read
    ],
)
def test_what_a_loss_can_use_is_let_through(
    model: str, tmp_path: Path, loss: str, settings: tuple[str, ...], change: dict[str, Any]
) -> None:
    assert len(read(version_of(model, tmp_path / "data", change), loss, tmp_path, *settings)) == 4


def test_a_version_without_preferences_is_sure_of_all(model: str, tmp_path: Path) -> None:
    rows = with_reference(table(pair_rows(3)), model).drop_columns(["preference"])
    version = publish(tmp_path / "data", {"train": rows}, model, reference_model=model)
    assert [row["preference"] for row in (read(version, "psi_po", tmp_path)[n].values for n in range(3))] == [1.0] * 3
    with pytest.raises(UserError, match="3 rows of data version v1: preference is 0 or 1, or not stated"):
        read(version, "psi_po", tmp_path, "psi=logit")


def test_sums_alone_do_not_serve_a_loss_that_cuts_sides(model: str, tmp_path: Path) -> None:
    rows = with_reference(table(pair_rows(3)), model).drop_columns(["ref_chosen_token_logps"])
    version = publish(tmp_path / "data", {"train": rows}, model, reference_model=model)
    with pytest.raises(
        MissingColumns, match=r"ldpo reads ref_chosen_token_logps, .*\nAdd them:  python -m flows.add_ref"
    ):
        read(version, "ldpo", tmp_path)
    assert len(read(version, "dpo", tmp_path)) == 3
