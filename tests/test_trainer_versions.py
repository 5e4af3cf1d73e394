"""Several versions in one run: what must be alike, which rows are read, and who is named."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from prefdata.errors import UserError
from prefdata.report.of_run import STEP_ZERO
from prefdata.versions import Version
from tests.tiny_world import completion_rows, pair_rows, publish, save_model, table, with_reference
from tests.trainer_world import Talk, stop_after, weights
from trainers import sources
from trainers.loss import parse
from trainers.options import Options
from trainers.overlap import Overlap
from trainers.run import train

Rows = list[dict[str, Any]]
Publish = Callable[..., Version]


@pytest.fixture
def make(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publishes pairs with the policy's log-probs as the next version below the default root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFDATA_ROOT", raising=False)

    def made(train_rows: Rows, test_rows: Rows | None = None, *, reference: str | None = model) -> Version:
        splits = {"train": train_rows} | ({"test": test_rows} if test_rows else {})
        tables = {split: table(rows) for split, rows in splits.items()}
        if reference:
            tables = {split: with_reference(rows, reference) for split, rows in tables.items()}
        return publish(tmp_path / "data", tables, model, reference_model=reference)

    return made


def options(**changes: Any) -> Options:
    short = Options(data="v1,v2", loss="dpo", lr=3e-3, steps=4, batch_size=4, accumulate=2, dtype="float32")
    return replace(short, **changes)


def read(folder: Path, split: str = "train", data: str = "v1,v2") -> tuple[list[str], Overlap]:
    """The ids of the rows that a run would read."""
    objective = parse("dpo", None, ())
    parts, left = sources.rows(sources.find(data, objective, None), split, objective, folder)
    return [rows[place].row_id for rows in parts.values() for place in range(len(rows))], left


def ids(rows: Rows) -> list[str]:
    return [row["row_id"] for row in rows]


# -- which rows ----------------------------------------------------------------------------------------------------


def test_rows_of_all_versions_are_read_in_the_order_they_are_named(make: Publish, tmp_path: Path) -> None:
    first, second = pair_rows(9, seed=1), pair_rows(5, seed=2)
    make(first)
    make(second)
    assert read(tmp_path) == (ids(first) + ids(second), Overlap())
    assert read(tmp_path, data="v2,v1") == (ids(second) + ids(first), Overlap())
    assert read(tmp_path, data="v2") == (ids(second), Overlap())


def test_a_row_of_several_versions_is_read_once(make: Publish, tmp_path: Path) -> None:
    shared, held = pair_rows(6, seed=1), pair_rows(3, seed=9)
    make(shared + pair_rows(3, seed=2), held)
    make(pair_rows(4, seed=3) + shared, held)
    found, left = read(tmp_path)
    assert found == ids(shared) + ids(pair_rows(3, seed=2)) + ids(pair_rows(4, seed=3))
    assert left == Overlap(repeated=6)
    assert read(tmp_path, "test") == (ids(held), Overlap(repeated=3))
    talk = Talk()
    train(options(), say=talk)
    assert "6 train rows stand in more than one version; each is read once" in talk
    assert "3 test rows stand in more than one version; each is read once" in talk
    assert any(line.startswith("13 train rows, 3 held out") for line in talk)


def test_what_one_version_holds_out_is_not_trained_on_in_another(make: Publish, tmp_path: Path) -> None:
    held = pair_rows(4, seed=1)
    make(pair_rows(8, seed=2), held)
    make(held[:3] + pair_rows(5, seed=3))
    found, left = read(tmp_path)
    assert found == ids(pair_rows(8, seed=2)) + ids(pair_rows(5, seed=3))
    assert left == Overlap(held_out=3)
    assert read(tmp_path, "test")[0] == ids(held)
    talk = Talk()
    train(options(), say=talk)
    assert "3 train rows are left out, since another version holds out their prompts" in talk


def test_nothing_left_to_train_on_is_said(make: Publish) -> None:
    held = pair_rows(4, seed=1)
    make(held, pair_rows(3, seed=2))
    make(pair_rows(3, seed=2), held)
    with pytest.raises(UserError, match=r"data version v1\+v2: no train rows are left"):
        train(options(), say=Talk())
    assert not list(Path("runs").iterdir())


def test_versions_with_and_without_a_mask_train_together(make: Publish, model: str) -> None:
    """Equal to one version that holds all the rows."""
    plain, masked = pair_rows(12, seed=1), pair_rows(12, seed=2, masked=True)
    make(plain)
    make(masked)
    make(plain + masked)
    apart, together = (train(options(data=data), say=Talk()).folder for data in ("v1,v2", "v3"))
    for name, value in weights(apart).items():
        assert torch.equal(value, weights(together)[name]), name


def turned(rows: Rows) -> Rows:
    """The same answers to the same prompts, the other one preferred."""
    swap = {"chosen": "rejected", "rejected": "chosen"}
    halves = [name for name in rows[0] if name.startswith("chosen_") and f"rejected_{name[7:]}" in rows[0]]
    pairs = ["chosen", *halves]
    return [
        row
        | {name: row[name.replace("chosen", swap["chosen"], 1)] for name in pairs}
        | {name.replace("chosen", "rejected", 1): row[name] for name in pairs}
        | {"row_id": f"turned {row['row_id']}"}
        for row in rows
    ]


def test_answers_that_two_versions_rank_the_other_way_round_are_counted_and_said(make: Publish, tmp_path: Path) -> None:
    rows = pair_rows(6, seed=1)
    make(rows)
    make(turned(rows[:4]) + pair_rows(3, seed=2))
    for data in ("v1,v2", "v2,v1"):
        found, overlap = read(tmp_path, data=data)
        assert len(found) == 13
        assert overlap == Overlap(contradicting=4)
    talk = Talk()
    train(options(), say=talk)
    assert any(line.startswith("notice: 4 train rows contradict an earlier version, which prefers") for line in talk)
    talk = Talk()
    train(options(loss="sft"), say=talk)  # compares nothing
    assert not any("contradict" in line for line in talk)


@pytest.mark.parametrize("data", ["v1,v2", "v2,v1"])
def test_one_row_with_two_masks_is_refused_whatever_the_order(make: Publish, data: str) -> None:
    make(pair_rows(6, seed=1))
    make(pair_rows(6, seed=1, masked=True))
    first, second = data.split(",")
    said = f"data versions {first} and {second} cannot be trained on together: both hold row 1-0, with other tokens or"
    with pytest.raises(UserError, match=said):
        train(options(data=data), say=Talk())
    assert not list(Path("runs").iterdir())


def test_a_mask_that_keeps_everything_is_no_other_row(make: Publish, tmp_path: Path) -> None:
    rows = pair_rows(6, seed=1)
    make(rows)
    make([row | {"chosen_loss_mask": [True] * len(row["chosen_ids"])} for row in rows])
    assert read(tmp_path) == (ids(rows), Overlap(repeated=6))


# -- who is named --------------------------------------------------------------------------------------------------


def test_folder_run_json_and_step_0_name_every_version(make: Publish) -> None:
    made = [make(pair_rows(9, seed=1), pair_rows(3, seed=9)), make(pair_rows(5, seed=2))]
    talk = Talk()
    stopped = train(options(), say=stop_after(1))
    result = train(options(), say=talk)
    assert result.folder == stopped.folder == Path("runs/v1+v2-dpo-1")
    assert "dpo on v1+v2" in talk[0]
    data = json.loads((result.folder / "run.json").read_text())["config"]["data"]
    assert data["version"] == "v1+v2"
    assert [part["logical_hash"] for part in data["parts"]] == [version.logical_hash for version in made]
    assert train(options(data="v2,v1", steps=1), say=Talk()).folder == Path("runs/v2+v1-dpo-1")


def test_step_0_compares_with_every_reference(make: Publish) -> None:
    make(pair_rows(9, seed=1))
    make(pair_rows(5, seed=2), reference=None)
    talk = Talk()
    train(options(loss="orpo"), say=talk)
    said = [line for line in talk if line.startswith("step 0: ")]
    assert len(said) == 2
    assert said[0].startswith("step 0: v1: the policy is the stored reference")
    assert said[1].startswith("step 0: v2 stores no reference log-probs")


def test_versions_of_one_name_are_told_apart(make: Publish, model: str, tmp_path: Path) -> None:
    for root, seed in (("a", 1), ("b", 2)):
        rows = with_reference(table(pair_rows(9, seed=seed)), model)
        publish(tmp_path / root, {"train": rows}, model, reference_model=model)
    talk = Talk()
    result = train(options(data=f"{tmp_path}/a/v1,{tmp_path}/b/v1"), say=talk)
    said = [line.partition(": the policy")[0] for line in talk if line.startswith("step 0: ")]
    assert said == [f"step 0: {tmp_path}/{root}/v1" for root in "ab"]
    assert list(json.loads((result.folder / STEP_ZERO).read_text())) == [f"{tmp_path}/{root}/v1" for root in "ab"]


def test_which_of_several_references_is_trained_is_said_unless_asked_for(
    make: Publish, model: str, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", seed=1)
    make(pair_rows(9, seed=1))
    make(pair_rows(9, seed=2), reference=other)
    make(pair_rows(9, seed=3))

    def notices(**changes: Any) -> list[str]:
        talk = Talk()
        train(options(loss="orpo", steps=1, **changes), say=talk)
        return [line for line in talk if line.startswith("notice: ")]

    [notice] = notices()
    assert notice.startswith("notice: the versions name several models as their reference (")
    assert "that of v1 is trained: say which with --model" in notice
    assert notices(model=other) == []
    assert notices(data="v1,v3") == []


# -- what must be alike --------------------------------------------------------------------------------------------


def test_another_reference_is_refused_only_where_it_is_read(make: Publish, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=1)
    make(pair_rows(9, seed=1))
    make(pair_rows(9, seed=2), reference=other)
    with pytest.raises(UserError) as refused:
        train(options(), say=Talk())
    text = str(refused.value)
    assert "data versions v1 and v2 cannot be trained on together: --loss dpo reads the reference, which is" in text
    [(module, line)] = re.findall(r"python -m (flows\.\w+) (.*)", text)
    assert module == "flows.add_reference"
    assert shlex.split(line)[0] == "v2"
    assert not Path("runs").exists()
    assert train(options(loss="orpo"), say=Talk()).finished


@pytest.mark.parametrize("changed", [{"dtype": "bfloat16"}, {"config_digest": "0" * 64}, {"digest": "0" * 64}])
def test_a_reference_is_its_weights_settings_and_precision(make: Publish, changed: dict[str, str]) -> None:
    one, other = make(pair_rows(3, seed=1)), make(pair_rows(3, seed=2))
    reference = cast(dict[str, Any], other.manifest["reference"])
    elsewhere = Version(other.storage, cast(Any, other.manifest | {"reference": reference | {"name": "moved"}}))
    sources.check(sources.Sources((one, elsewhere)), parse("dpo", None, ()))
    differs = Version(other.storage, cast(Any, other.manifest | {"reference": reference | changed}))
    with pytest.raises(UserError, match="v1 and v2 cannot be trained on together: --loss dpo reads the reference"):
        sources.check(sources.Sources((one, differs)), parse("dpo", None, ()))
    sources.check(sources.Sources((one, differs)), parse("orpo", None, ()))
    assert sources.Sources((elsewhere,)).describe() != sources.Sources((differs,)).describe()


def test_kinds_and_tokenizers_are_not_mixed(make: Publish, model: str, tmp_path: Path) -> None:
    make(pair_rows(9, seed=1))
    publish(tmp_path / "data", {"train": table(completion_rows(5), "completions")}, model, kind="completions")
    foreign = save_model(tmp_path / "foreign", words=40)
    publish(tmp_path / "data", {"train": table(pair_rows(5))}, foreign)
    with pytest.raises(UserError, match="v1 and v2 cannot be trained on together: v1 holds pairs and v2 completions"):
        train(options(loss="sft"), say=Talk())
    with pytest.raises(
        UserError, match=r"v1 and v3 cannot be trained on together: the tokenizer is .* \(v1 is there, v3 here\)"
    ):
        train(options(loss="sft", data="v1,v3"), say=Talk())


def test_a_version_that_does_not_serve_the_loss_is_named(make: Publish) -> None:
    make(pair_rows(9, seed=1))
    make(pair_rows(9, seed=2), reference=None)
    with pytest.raises(UserError, match="which data version v2 does not have"):
        train(options(), say=Talk())


def test_a_bad_row_is_said_with_its_version(make: Publish, tmp_path: Path) -> None:
    make(pair_rows(9, seed=1))
    bad = pair_rows(5, seed=2)
    bad[3]["chosen_tokens"] += 1
    make(bad)
    with pytest.raises(UserError, match=f"1 rows of data version v2: chosen_tokens .* row {bad[3]['row_id']}"):
        train(options(), say=Talk())


@pytest.mark.parametrize(
    ("data", "said"),
    [("v1,v1", "names version v1 twice"), ("v1,v9", "v9"), ("v1,", "--data v1, has an empty name")],
)
def test_names_that_make_no_sense_are_one_sentence(make: Publish, data: str, said: str) -> None:
    make(pair_rows(9, seed=1))
    with pytest.raises(UserError) as refused:
        train(options(data=data), say=Talk())
    assert said in str(refused.value)
    assert not Path("runs").exists()
