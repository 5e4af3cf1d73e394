"""Exports: what each target is given, what comes back from it, what is left out, and that none is there by half."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata import cli, exports, versions
from prefdata.errors import UserError
from prefdata.exports import folder, push, registry
from prefdata.records import Comparison, Judged, Message
from prefdata.verify import verify
from prefdata.versions import Version
from schemas.export import LEFT_OUT, MANIFEST
from schemas.reasons import REASONS
from tests import fake_hub
from tests.export_world import CALL, DATE, QUESTION, RESULT, TOOLS, World, ingested
from tests.published import message, pair, publish

KINDS = ("pairs", "unpaired", "completions")


@pytest.fixture
def world(chat_world: World) -> World:
    return chat_world


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / MANIFEST).read_text())
    return found


def rows(version: Version, split: str = "train") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = version.table(split).to_pylist()
    return found


def by_id(version: Version, split: str = "train") -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in rows(version, split)}


def calls_tools(row: dict[str, Any]) -> bool:
    turns = [turn for name in ("prompt", "chosen", "rejected", "completion") for turn in row.get(name) or ()]
    return any(turn["tool_calls"] for turn in turns)


def ids(version: Version, *, with_calls: bool = True) -> set[tuple[str, str, str]]:
    return {
        (split, row["row_id"], row["prompt_id"])
        for split in version.splits
        for row in rows(version, split)
        if with_calls or not calls_tools(row)
    }


# -- what comes back ------------------------------------------------------------------------------------------------

# a target that spells tool calls its own way gives back the ids of rows without any
READ_AGAIN = [
    *[("jsonl", kind, True) for kind in KINDS],
    *[("hf", kind, True) for kind in KINDS],
    *[("trl", kind, False) for kind in KINDS],
    *[("llama-factory", kind, False) for kind in KINDS],
    ("openai", "completions", False),
]


@pytest.mark.parametrize(("target", "kind", "with_calls"), READ_AGAIN)
def test_what_is_read_again_has_the_same_ids(
    target: str, kind: str, with_calls: bool, world: World, tmp_path: Path
) -> None:
    version: Version = getattr(world, kind)
    made = exports.export(version, target, out=str(tmp_path / "out"))
    again = ingested(tmp_path / "data", made.folder, model=world.model, template_args=json.dumps(DATE))
    assert again.kind == kind
    assert ids(again, with_calls=with_calls) == ids(version, with_calls=with_calls)
    assert {row["row_id"] for split in again.splits for row in rows(again, split) if not calls_tools(row)}


@pytest.mark.parametrize("kind", KINDS)
def test_jsonl_loses_nothing(kind: str, world: World, tmp_path: Path) -> None:
    version: Version = getattr(world, kind)
    place = exports.export(version, "jsonl", out=str(tmp_path / "out")).folder
    for split in version.splits:
        there = version.table(split)
        assert pa.Table.from_pylist(lines(place / f"{split}.jsonl"), schema=there.schema).equals(there)
    assert manifest(place)["columns_left_out"] == {}
    columns = json.loads((place / "_schema.json").read_text())
    assert [column["name"] for column in columns] == version.schema.names
    assert all(column["meaning"] for column in columns)


def test_jsonl_has_no_null_keys_in_messages(world: World, tmp_path: Path) -> None:
    place = exports.export(world.pairs, "jsonl", out=str(tmp_path / "out")).folder
    found = [turn for row in lines(place / "train.jsonl") for turn in row["prompt"] + row["chosen"]]
    assert found
    assert all(None not in turn.values() for turn in found)


@pytest.mark.parametrize("kind", KINDS)
def test_hf_is_the_version(kind: str, world: World, tmp_path: Path) -> None:
    import datasets

    version: Version = getattr(world, kind)
    place = exports.export(version, "hf", out=str(tmp_path / "out")).folder
    copy = versions.find(str(place))
    assert verify(copy) == []
    assert copy.manifest == version.manifest
    loaded = datasets.load_dataset(str(place), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == {
        split: version.table(split).num_rows for split in version.splits
    }
    assert 'license: "mit"' in (place / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_trl_is_opened_by_datasets(kind: str, world: World, tmp_path: Path) -> None:
    import datasets

    version: Version = getattr(world, kind)
    place = exports.export(version, "trl", out=str(tmp_path / "out")).folder
    loaded = datasets.load_dataset(str(place), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded) == sorted(version.splits)
    for split in version.splits:
        for found, stored in zip(loaded[split], rows(version, split), strict=True):
            assert found["row_id"] == stored["row_id"]
            assert found["chat_template_kwargs"] == DATE
            assert found["tools"] == stored["tools"]
            check_trl(kind, found, stored)


def check_trl(kind: str, found: dict[str, Any], stored: dict[str, Any]) -> None:
    names = {"pairs": ("prompt", "chosen", "rejected"), "unpaired": ("prompt", "completion")}.get(kind, ())
    for name in names:
        assert [turn["role"] for turn in found[name]] == [turn["role"] for turn in stored[name]]
        assert all(None not in turn.values() for turn in found[name])
    if kind == "completions":
        whole = stored["prompt"] + stored["completion"]
        assert [turn["content"] for turn in found["messages"]] == [turn["content"] for turn in whole]
        assert found["input_ids"] == stored["prompt_ids"] + stored["completion_ids"]
        assert found["labels"] == [-100] * len(stored["prompt_ids"]) + stored["completion_ids"]
    else:
        same = [name for name in stored if name in found and name not in names]
        assert {name: found[name] for name in same} == {name: stored[name] for name in same}
        assert {f"ref_{side}_logps" for side in names[1:]} <= {*same}
        assert {f"{name}_ids" for name in names} <= {*same}


def test_labels_leave_out_what_the_loss_mask_does(tmp_path: Path) -> None:
    from prefdata.exports import trl
    from tests.published import completion, rows_table

    masks = [[True, False, True], None, [False, True]]
    made = [completion([7, 8, 9], completion_loss_mask=masks[0]), completion([5], completion_loss_mask=None)]
    made.append(completion([3, 4], completion_loss_mask=masks[2]))
    version = publish(tmp_path, "completions", train=made)
    table = trl.demonstrations(version).map(rows_table("completions", made).slice(0, 3)).rows
    assert table["labels"].to_pylist() == [[-100, 7, -100, 9], [-100, 5], [-100, -100, 4]]
    assert trl.demonstrations(version).map(rows_table("completions", made).slice(1)).rows.equals(table.slice(1))


def test_tool_calls_have_arguments_as_objects_for_templates(world: World, tmp_path: Path) -> None:
    import datasets

    place = exports.export(world.pairs, "trl", out=str(tmp_path / "out")).folder
    found = datasets.load_dataset(str(place), split="train+test", cache_dir=str(tmp_path / "cache"))
    turns = [turn for row in found for turn in row["prompt"] + row["chosen"] if "tool_calls" in turn]
    arguments = [call["function"]["arguments"] for turn in turns for call in turn["tool_calls"]]
    assert {"word": "été", "n": [1, None]} in arguments
    assert {"word": "sea"} in arguments


# -- each target's own layout ---------------------------------------------------------------------------------------


def messages(*turns: dict[str, Any]) -> tuple[Message, ...]:
    """As a source's reader makes them."""
    return tuple(
        Message(
            turn["role"],
            turn.get("content") or "",
            tool_calls=json.dumps(turn["tool_calls"]) if "tool_calls" in turn else None,
            tool_call_id=turn.get("tool_call_id"),
        )
        for turn in turns
    )


def text(content: str, role: str = "assistant") -> tuple[Message, ...]:
    return (Message(role, content),)


def test_openai_pairs() -> None:
    from prefdata.exports.openai import preference

    record = Comparison(messages(QUESTION, CALL, RESULT), text("42"), text("41"), json.dumps(TOOLS))
    assert preference(record) == {
        "input": {
            "messages": [QUESTION, {key: CALL[key] for key in ("role", "tool_calls")}, RESULT],
            "tools": TOOLS,
        },
        "preferred_output": [{"role": "assistant", "content": "42"}],
        "non_preferred_output": [{"role": "assistant", "content": "41"}],
    }


def test_openai_wants_arguments_as_text() -> None:
    from prefdata.exports.openai import preference

    function = {"name": "look_up", "arguments": {"a": [1, None]}}
    answer = messages({"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]})
    side = preference(Comparison(messages(QUESTION), answer, text("no")))["preferred_output"][0]
    assert "content" not in side
    assert json.loads(side["tool_calls"][0]["function"]["arguments"]) == function["arguments"]


def test_openai_chats_train_the_last_turn_alone(world: World, tmp_path: Path) -> None:
    place = exports.export(world.completions, "openai", out=str(tmp_path / "out")).folder
    chats = [row["messages"] for split in world.completions.splits for row in lines(place / f"{split}.jsonl")]
    weights = [[turn.get("weight") for turn in chat if turn["role"] == "assistant"] for chat in chats]
    assert sorted(weights, key=len) == [[None]] * (len(chats) - 1) + [[0, None]]


def test_llama_factory_pairs(world: World, tmp_path: Path) -> None:
    place = exports.export(world.pairs, "llama-factory", out=str(tmp_path / "out")).folder
    info = json.loads((place / "dataset_info.json").read_text())
    assert sorted(info) == ["v1_test", "v1_train"]
    for name, told in info.items():
        assert (told["formatting"], told["ranking"]) == ("sharegpt", True)
        found = lines(place / told["file_name"])
        stored = by_id(world.pairs, name.removeprefix("v1_"))
        assert {row["row_id"] for row in found} == {*stored}
        for row in found:
            assert set(told["columns"].values()) <= row.keys()
            taken = [("human", "observation"), ("gpt", "function_call")] * len(row["conversations"])
            assert all(turn["from"] in which for turn, which in zip(row["conversations"], taken, strict=False))
            assert len(row["conversations"]) % 2 == 1
            has_system = stored[row["row_id"]]["prompt"][0]["role"] == "system"
            assert bool(row["system"]) == has_system


def test_llama_factory_kto_tags_are_the_labels(world: World, tmp_path: Path) -> None:
    place = exports.export(world.unpaired, "llama-factory", out=str(tmp_path / "out")).folder
    info = json.loads((place / "dataset_info.json").read_text())["v2_train"]
    assert info["columns"]["kto_tag"] == "kto_tag"
    assert "ranking" not in info
    stored = by_id(world.unpaired)
    found = {row["row_id"]: row["kto_tag"] for row in lines(place / "train.jsonl")}
    assert found == {row_id: row["label"] for row_id, row in stored.items()}
    assert set(found.values()) == {True, False}


def test_llama_factory_function_calls() -> None:
    from prefdata.exports.llama_factory import ranking

    row = ranking(Comparison(messages(QUESTION, CALL, RESULT), text("42"), messages(CALL), json.dumps(TOOLS)))
    called = [{"name": "look_up", "arguments": {"word": "été", "n": [1, None]}}]
    assert [turn["from"] for turn in row["conversations"]] == ["human", "function_call", "observation"]
    assert json.loads(row["conversations"][1]["value"]) == called
    assert row["conversations"][2]["value"] == RESULT["content"]
    assert row["rejected"]["from"] == "function_call"
    assert json.loads(row["tools"]) == TOOLS


# -- what is left out -----------------------------------------------------------------------------------------------

NO_ID = {**CALL, "tool_calls": [{"name": "look_up", "arguments": {}}]}
NO_NAME = {**CALL, "tool_calls": [{"id": "c", "function": {"arguments": "{}"}}]}
NO_JSON = {**CALL, "tool_calls": [{"id": "c", "function": {"name": "look_up", "arguments": "{"}}]}
UNFIT: list[tuple[str, str, tuple[Message, ...], tuple[Message, ...]]] = [
    ("openai", "role_not_taken", text("x", "developer"), text("a")),
    ("openai", "several_messages", messages(QUESTION), text("a") + text("b", "tool")),
    ("openai", "several_messages", messages(QUESTION), text("a") + text("b")),
    ("openai", "tool_call_unfit", messages(QUESTION), messages(NO_ID)),
    ("openai", "tool_call_unfit", messages(QUESTION), messages(NO_NAME)),
    ("openai", "tool_call_unfit", messages(QUESTION, CALL, {"role": "tool", "content": "42"}), text("a")),
    ("openai", "wrong_type", messages(QUESTION), (Message("assistant", "", tool_calls="{"),)),
    ("openai", "wrong_type", messages(QUESTION), (Message("assistant", "", tool_calls="{}"),)),
    ("llama-factory", "role_not_taken", text("x", "developer"), text("a")),
    ("llama-factory", "role_not_taken", messages(QUESTION) + text("x", "system"), text("a")),
    ("llama-factory", "roles_out_of_order", messages(QUESTION, QUESTION, QUESTION), text("a")),
    ("llama-factory", "roles_out_of_order", messages(QUESTION, CALL, RESULT, RESULT), text("a")),
    ("llama-factory", "roles_out_of_order", text("x", "system"), text("a")),
    ("llama-factory", "roles_out_of_order", text("x"), text("a")),
    ("llama-factory", "several_messages", messages(QUESTION), text("a") + text("b")),
    ("llama-factory", "text_beside_tool_calls", messages(QUESTION), messages({**CALL, "content": "I look it up."})),
    ("llama-factory", "tool_call_unfit", messages(QUESTION), messages(NO_JSON)),
    ("trl", "wrong_type", messages(QUESTION), (Message("assistant", "", tool_calls="{"),)),
]


@pytest.mark.parametrize(("target", "reason", "prompt", "chosen"), UNFIT)
def test_what_a_target_cannot_hold_is_counted_and_listed(
    target: str, reason: str, prompt: tuple[Message, ...], chosen: tuple[Message, ...], tmp_path: Path
) -> None:
    turns = {"prompt": [turn.as_dict() for turn in prompt], "chosen": [turn.as_dict() for turn in chosen]}
    good, bad = pair([1, 2], [1, 3]), pair([4, 2], [4, 3]) | turns
    version = publish(tmp_path / "data", train=[good, bad, pair([5, 2], [5, 3])], test=[pair([6], [7])])
    made = exports.export(version, target, out=str(tmp_path / "out"))
    assert made.rows == {"train": 2, "test": 1}
    assert made.left_out == {reason: 1}
    assert reason in REASONS
    counts = manifest(made.folder)["splits"]
    assert counts["train"] == {"rows": 3, "exported": 2, "left_out": {reason: 1}}
    assert counts["test"] == {"rows": 1, "exported": 1, "left_out": {}}
    (line,) = lines(made.folder / LEFT_OUT)
    assert (line["row_id"], line["split"], line["reason"]) == (bad["row_id"], "train", reason)
    assert line["detail"]
    assert f"| {reason} | 1 |" in (made.folder / "README.md").read_text()


def test_a_judged_answer_without_text_would_change_its_label_in_llama_factory() -> None:
    from prefdata.exports.llama_factory import feedback
    from prefdata.exports.target import CannotHold

    with pytest.raises(CannotHold, match="completion_empty"):
        feedback(Judged(messages(QUESTION), text(""), True))


def test_nothing_is_written_of_a_version_that_the_target_can_hold_nothing_of(tmp_path: Path) -> None:
    version = publish(tmp_path / "data", train=[pair([1, 2], [1, 3]) | {"prompt": [message("developer", "x")]}])
    with pytest.raises(UserError, match=r"openai can hold none of the rows of v1 \(role_not_taken 1\)"):
        exports.export(version, "openai", out=str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_columns_without_a_place_are_told_where_they_hold_something(tmp_path: Path) -> None:
    masked = pair([4, 2], [4, 3], chosen_loss_mask=[False, True], chosen_tokens=1)
    version = publish(tmp_path / "data", train=[pair([1, 2], [1, 3]), masked])
    left_out = manifest(exports.export(version, "openai", out=str(tmp_path / "o")).folder)["columns_left_out"]
    assert left_out["chosen_loss_mask"] == 1
    assert left_out["chosen_ids"] == left_out["ref_chosen_logps"] == 2
    assert "preference" not in left_out  # no row holds one
    assert not {"prompt", "chosen", "rejected"} & left_out.keys()


@pytest.mark.parametrize("target", ["trl", "jsonl"])
def test_an_export_says_what_it_is(target: str, world: World, tmp_path: Path) -> None:
    place = exports.export(world.pairs, target, out=str(tmp_path / "out")).folder
    found = manifest(place)
    assert found["version"]["logical_hash"] == world.pairs.logical_hash
    assert [source["license"] for source in found["sources"]] == ["mit"]
    assert found["reference"] == world.pairs.manifest["reference"]
    assert "template" not in found["tokenizer"]
    held = {entry["path"]: entry.get("rows") for entry in found["files"]}
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert held.keys() == there - {MANIFEST}
    assert sum(n for path, n in held.items() if path.startswith("train") and n) == world.pairs.table("train").num_rows
    assert 'license: "mit"' in (place / "README.md").read_text()


# -- whole or not at all --------------------------------------------------------------------------------------------


def many(root: Path | str, count: int = 30) -> Version:
    return publish(root, train=[pair([n, 1], [n, 2], prompt=f"p{n}") for n in range(count)], test=[pair([1], [2])])


@pytest.mark.parametrize("target", registry.TARGETS)
def test_the_same_export_again_is_found(target: str, tmp_path: Path) -> None:
    version = many(tmp_path / "data")
    made = exports.export(version, target)
    assert made.folder == tmp_path / "exports" / "data" / f"v1-{target}"
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = exports.export(version, target)
    assert (made.was_there, again.was_there) == (False, True)
    assert (again.rows, again.left_out) == (made.rows, made.left_out)
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before
    elsewhere = exports.export(version, target, out=str(tmp_path / "elsewhere")).folder
    for path in before:
        if path.is_file():
            assert (elsewhere / path.relative_to(made.folder)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("target", registry.TARGETS)
def test_a_folder_with_anything_else_is_refused(target: str, tmp_path: Path) -> None:
    version, other = many(tmp_path / "data"), many(tmp_path / "data", 5)
    exports.export(version, target, out=str(tmp_path / "out"))
    others = "jsonl" if target != "jsonl" else "openai"
    namesake = many(tmp_path / "elsewhere", 5)
    for another in (other, namesake):
        with pytest.raises(UserError, match=f"is there and is not {another.url} "):
            exports.export(another, target, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match=f"is there and is not .*/v1 .* for {others}"):
        exports.export(version, others, out=str(tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is there and is not"):
        exports.export(version, target, out=str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert not exports.export(version, target, out=str(tmp_path / "empty")).was_there


@pytest.mark.parametrize("target", registry.TARGETS)
@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_an_export_that_was_changed_since_is_not_passed_off_as_it(target: str, harm: str, tmp_path: Path) -> None:
    version = many(tmp_path / "data")
    place = exports.export(version, target, out=str(tmp_path / "out")).folder
    readme = place / "README.md"
    if harm == "remove":
        readme.unlink()
    else:
        (readme if harm == "change" else place / "more.jsonl").write_text("x")
    with pytest.raises(UserError, match=r"(README\.md|more\.jsonl) was changed since"):
        exports.export(version, target, out=str(tmp_path / "out"))


@pytest.mark.parametrize("target", registry.TARGETS)
def test_an_export_that_fails_leaves_nothing(target: str, tmp_path: Path) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exports.export(many(tmp_path / "data"), target, out=str(tmp_path / "out"), progress=interrupted)
    assert not list(tmp_path.glob("out*"))


def test_a_killed_export_is_none_and_the_next_one_clears_up(tmp_path: Path) -> None:
    version = many(tmp_path / "data")
    code = (
        "import os, signal, sys; from prefdata import exports, versions\n"
        "exports.export(versions.find(sys.argv[1]), 'jsonl', out=sys.argv[2],"
        " progress=lambda rows: os.kill(os.getpid(), signal.SIGKILL))"
    )
    killed = subprocess.run([sys.executable, "-c", code, version.url, str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("out*")
    assert left.name.startswith(f"out{folder.PART}")
    assert not (left / MANIFEST).exists()
    under_way = ExitStack()
    live = under_way.enter_context(folder.filled(tmp_path / "out"))  # another export, which is not to be cleared up
    made = exports.export(version, "jsonl", out=str(tmp_path / "out"))
    assert sorted(tmp_path.glob("out*")) == sorted([made.folder, live])
    with pytest.raises(folder.Taken):
        under_way.close()
    assert list(tmp_path.glob("out*")) == [made.folder]
    assert exports.export(version, "jsonl", out=str(tmp_path / "out")).was_there


def test_two_exports_at_once_are_one(tmp_path: Path) -> None:
    """The second ends while the first is written."""
    version = many(tmp_path / "data")
    others: list[exports.Exported] = []

    def meanwhile(_: int) -> None:
        if not others:
            others.append(exports.export(version, "openai", out=str(tmp_path / "out")))

    made = exports.export(version, "openai", out=str(tmp_path / "out"), progress=meanwhile)
    assert (made.was_there, others[0].was_there) == (True, False)
    assert not list(tmp_path.glob("out.*"))


def test_a_version_is_read_and_written_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 8)
    version = many(tmp_path / "data")
    told: list[str] = []
    content = Version.content
    with monkeypatch.context() as watched:
        watched.setattr(Version, "content", lambda self, entry: told.append("read") or content(self, entry))
        registry.TARGETS["trl"].write(tmp_path, version, version.splits, lambda rows: told.append(str(rows)))
    assert told[-10:] == ["read", "8"] * 3 + ["read", "6", "read", "1"]
    parts = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert parts == [f"part-{n:05d}.parquet" for n in range(4)]
    found = pa.concat_tables([pq.read_table(tmp_path / "train" / part, columns=["row_id"]) for part in parts])
    assert found.equals(version.table("train", ["row_id"]).cast(found.schema))


def test_a_version_in_an_object_store_is_exported_to_a_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    version = many(f"memory://{tmp_path.name}/data")
    for target in registry.TARGETS:
        made = exports.export(version, target)
        assert made.folder == Path("exports", "memory", tmp_path.name, "data", f"v1-{target}")
        assert made.rows == {"train": 30, "test": 1}
    assert verify(versions.find(f"{tmp_path}/{Path('exports', 'memory', tmp_path.name, 'data', 'v1-hf')}")) == []


def test_a_damaged_version_is_not_exported(tmp_path: Path) -> None:
    version = many(tmp_path / "data")
    path = version.paths("train")[0]
    data = Path(path).read_bytes()
    for target in registry.TARGETS:
        Path(path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(versions.DamagedVersion):
            exports.export(version, target, out=str(tmp_path / "out"))
        assert not list(tmp_path.glob("out*"))


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    version = many(tmp_path / "data")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is there and is not"):
        exports.export(version, "jsonl", out=str(tmp_path / "file"))
    with pytest.raises(UserError, match="file is a file"):
        exports.export(version, "jsonl", out=str(tmp_path / "file" / "out"))
    with pytest.raises(UserError, match="an export is a local folder"):
        exports.export(version, "jsonl", out="s3://bucket/out")


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFDATA_ROOT", raising=False)
    many(tmp_path / "data")
    return str(tmp_path / "data")


def test_the_command_says_what_it_wrote(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "v1", "--to", "openai"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("exports/data/v1-openai: train 30, test 1\n")
    assert err == ""
    assert cli.main(["export", "v1", "--to", "openai"]) == 0
    assert capsys.readouterr().out.endswith("v1-openai: train 30, test 1, already there\n")
    assert cli.main(["export", "v1", "--to", "openai", "--split", "test"]) == 0
    out, _ = capsys.readouterr()
    assert out.endswith("v1-openai-test: test 1\n")
    assert sorted(path.name for path in Path("exports/data/v1-openai-test").glob("*.jsonl")) == ["test.jsonl"]


def test_the_command_tells_what_was_left_out(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    publish(root, train=[pair([1], [2]), pair([3], [4]) | {"prompt": [message("developer", "x")]}])
    assert cli.main(["export", "v2", "--to", "openai"]) == 0
    assert capsys.readouterr().err == "left out, as openai can't hold them: role_not_taken 1\n"


def test_the_help_names_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    told = capsys.readouterr().out
    assert all(target in told for target in registry.TARGETS)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["v1", "--to", "csv"], r"no target 'csv'; there are: trl, llama-factory, openai, jsonl, hf$"),
        (["v2", "--to", "openai"], r"openai has no form for unpaired.*there are: trl, llama-factory, jsonl, hf$"),
        (["v1", "--to", "trl", "--split", "dev"], r"v1 has no 'dev' rows; it holds: train, test$"),
        (["v1", "--to", "hf", "--split", "train"], r"hf copies v1 as it stands.*leave --split out"),
        (["v9", "--to", "trl"], r"'v9'"),
        (["v1", "--to", "trl", "--private"], r"--private is about the data set that --push names"),
        (
            ["v1", "--to", "trl", "--push", "o/n"],
            r"no token to push with: log in with `hf auth login`, or set HF_TOKEN$",
        ),
        (["v1", "--to", "trl", "--push", "n"], r"'n' is no data set's name on the hub: give OWNER/NAME$"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: list[str], words: str, root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.published import completion

    publish(root, "unpaired", train=[completion([1, 2], label=True)])
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert cli.main(["export", *argv]) == cli.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("prefdata: ")
    assert len(err.splitlines()) == 1
    with pytest.raises(UserError, match=words):
        raise UserError(err.strip())
    assert not os.path.exists("exports")


# -- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    with fake_hub.running() as running:
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: fake_hub.TOKEN)
        yield running


def test_a_push_is_one_commit_of_what_the_folder_holds(
    root: str, hub: fake_hub.FakeHub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for target in registry.TARGETS:
        assert cli.main(["export", "v1", "--to", target, "--push", "some/data", "--private"]) == 0
        place, url = capsys.readouterr().out.splitlines()
        folder_ = Path(place.split(": ")[0])
        assert url == f"{hub.url}/datasets/some/data"
        repo = hub.repos["some/data"]
        there = {
            path.relative_to(folder_).as_posix(): path.read_bytes() for path in folder_.rglob("*") if path.is_file()
        }
        assert {path: data for path, data in repo.files.items() if path != ".gitattributes"} == there
        assert repo.commits[-1] == f"v1 for {target}"
        assert repo.private
    assert len(hub.repos["some/data"].commits) == 1 + len(registry.TARGETS)


def test_what_the_hub_holds_already_is_not_sent_again(
    root: str, hub: fake_hub.FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", "v1", "--to", "hf", "--push", "some/data"]
    assert cli.main(line) == 0
    before = len(hub.requests)
    capsys.readouterr()
    assert cli.main(line) == 0
    assert capsys.readouterr().out.endswith("/datasets/some/data: already there\n")
    assert not [request for request in hub.requests[before:] if "commit" in request]


def test_a_pushed_version_is_a_data_set(root: str, hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    import datasets

    assert cli.main(["export", "v1", "--to", "hf", "--push", "some/data"]) == 0
    for path, data in hub.repos["some/data"].files.items():
        (tmp_path / "clone" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / path).write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "clone"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == {"train": 30, "test": 1}


@pytest.mark.parametrize("held", [{"train.csv": b"a,b"}, {"manifest.json": b"{}"}, {"manifest.json": b"["}])
def test_a_data_set_of_others_is_left_alone(
    held: dict[str, bytes], root: str, hub: fake_hub.FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["some/data"] = fake_hub.Repo(private=False, files={".gitattributes": b"", **held})
    assert cli.main(["export", "v1", "--to", "jsonl", "--push", "some/data"]) == cli.BAD_INPUT
    assert "holds files that are no export of prefdata" in capsys.readouterr().err
    assert hub.repos["some/data"].files == {".gitattributes": b"", **held}


def test_nothing_private_goes_to_a_public_data_set(
    root: str, hub: fake_hub.FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["some/data"] = fake_hub.Repo(private=False)
    assert cli.main(["export", "v1", "--to", "jsonl", "--push", "some/data", "--private"]) == cli.BAD_INPUT
    assert "is public, and --private was asked for" in capsys.readouterr().err
    assert list(hub.repos["some/data"].files) == [".gitattributes"]


def test_a_hub_that_refuses_is_told_of_and_the_folder_stays(
    root: str, hub: fake_hub.FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_wrong")
    assert cli.main(["export", "v1", "--to", "jsonl", "--push", "some/data"]) == cli.BAD_INPUT
    err = capsys.readouterr().err
    assert "the hub did not take it as some/data" in err
    assert len(err.splitlines()) == 1
    assert (Path("exports/data/v1-jsonl") / MANIFEST).is_file()
    assert not hub.repos


def test_a_push_does_not_undo_one_that_came_between(root: str, hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    made = exports.export(versions.find("v1", root=root), "jsonl", out=str(tmp_path / "out"))
    api = push.hub_api("some/data")
    looked = api.dataset_info

    def look_then_lose(repo: str) -> Any:
        found = looked(repo)
        hub.repos["some/data"].commits.append("another's")
        return found

    api.dataset_info = look_then_lose
    with pytest.raises(UserError, match="A commit has happened since"):
        push.push(made.folder, "some/data", api)
    assert list(hub.repos["some/data"].files) == [".gitattributes"]
