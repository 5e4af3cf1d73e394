"""Builds end to end on a tiny model: ledgers add up, work is shared, order changes nothing, kills cost nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefdata import versions
from prefdata.builds import add_reference, ingest, sapo_negatives
from prefdata.builds.job import Outcome, Stage, Unit, run
from prefdata.errors import UserError
from prefdata.identity import tokens_id
from prefdata.tokens import Renderer
from prefdata.verify import verify
from prefdata.work import Work
from tests import tiny_world

WORDS = [f"w{number}" for number in range(tiny_world.WORDS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


def write_pairs(path: Path, count: int, *, seed: int = 0, extra: tuple[str, ...] = ()) -> Path:
    rng = random.Random(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    lines = [json.dumps({"prompt": text(3, 9), "chosen": text(4, 20), "rejected": text(4, 20)}) for _ in range(count)]
    path.write_text("\n".join([*lines, *extra]) + "\n")
    return path


def do_ingest(source: Path, model: str, root: Path, **options: Any) -> versions.Version:
    return run(ingest.Ingest(ingest.Options(source=(str(source),), model=model, **options), str(root))).version


def sapo(root: Path, source: str = "v1", **options: Any) -> Outcome:
    return run(sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(source=source, **options), str(root)))


def all_rows(version: versions.Version) -> list[dict[str, Any]]:
    return [row for split in version.splits for row in version.table(split).to_pylist()]


DIRTY = (
    "not json",
    "[1, 2]",
    json.dumps({"prompt": "w1 w2", "chosen": "w3"}),
    json.dumps({"prompt": "w1 w2", "chosen": "w3 w4", "rejected": "w3 w4"}),
    json.dumps({"prompt": "w1 w2", "chosen": "w3 w4", "rejected": " "}),
    json.dumps({"prompt": "w1 " * 200, "chosen": "w3", "rejected": "w4"}),
    json.dumps({"prompt": "w1 w2", "chosen": "w3 </s>", "rejected": "w4"}),
    json.dumps({"prompt": "w1 w2", "chosen": "w5 w6", "rejected": "w7"}),
    json.dumps({"prompt": "w1 w2", "chosen": "w5 w6", "rejected": "w7"}),
)
WHY = [
    "unreadable_row",
    "not_an_object",
    "missing_field",
    "identical_sides",
    "rejected_empty",
    "prompt_too_long",
    "special_token_in_text",
    None,
    "duplicate_row",
]


def test_every_row_read_is_kept_or_set_aside_with_its_reason(tmp_path: Path, model: str) -> None:
    version = do_ingest(write_pairs(tmp_path / "pairs.jsonl", 30, extra=DIRTY), model, tmp_path / "data")
    ledger = version.ledger().to_pylist()
    assert [line["reason"] for line in ledger] == [None] * 30 + WHY
    assert [line["origin"].rsplit(":", 1)[1] for line in ledger] == [str(number) for number in range(39)]
    assert verify(version) == []
    assert version.manifest["counts"]["rows_in"] == 39
    assert sum(version.manifest["counts"]["rows"].values()) == 31


def test_an_equal_ingest_is_recognised_and_a_changed_file_is_not(tmp_path: Path, model: str) -> None:
    source = write_pairs(tmp_path / "pairs.jsonl", 10)
    first = do_ingest(source, model, tmp_path / "data")
    assert do_ingest(source, model, tmp_path / "data").name == first.name
    write_pairs(source, 11)
    assert do_ingest(source, model, tmp_path / "data").name == "v2"


def test_an_ingest_without_arguments_reads_the_last_source_again(tmp_path: Path, model: str) -> None:
    source = write_pairs(tmp_path / "pairs.jsonl", 10)
    do_ingest(source, model, tmp_path / "data")
    write_pairs(source, 12)
    again = run(ingest.Ingest(ingest.Options(), str(tmp_path / "data"))).version
    assert again.name == "v2"
    assert again.manifest["counts"]["rows_in"] == 12
    with pytest.raises(UserError, match="say"):
        ingest.Ingest(ingest.Options(), str(tmp_path / "elsewhere"))


def test_the_held_out_split_is_by_prompt_and_stable_when_rows_are_added(tmp_path: Path, model: str) -> None:
    def held_out(count: int, root: str) -> set[str]:
        source = write_pairs(tmp_path / f"{root}.jsonl", count)
        version = do_ingest(source, model, tmp_path / root, test_fraction=0.3)
        train, test = (set(version.table(split, ["prompt_id"])["prompt_id"].to_pylist()) for split in ("train", "test"))
        assert not train & test
        return test

    few = held_out(40, "few")
    many = held_out(80, "many")
    assert few
    assert few <= many  # the same seed writes the same first rows


def test_train_rows_of_a_test_prompt_are_set_aside(tmp_path: Path, model: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.jsonl").write_text(
        json.dumps({"prompt": "w1", "chosen": "w2", "rejected": "w3"})
        + "\n"
        + json.dumps({"prompt": "w9", "chosen": "w2", "rejected": "w3"})
        + "\n"
    )
    (folder / "test.jsonl").write_text(json.dumps({"prompt": "w1", "chosen": "w4", "rejected": "w5"}) + "\n")
    version = do_ingest(folder, model, tmp_path / "data")
    reasons = {line["origin"].rsplit("/", 1)[1]: line["reason"] for line in version.ledger().to_pylist()}
    assert reasons == {"train.jsonl:0": "prompt_in_test", "train.jsonl:1": None, "test.jsonl:0": None}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """A root with v1 (pairs), v2 (with reference log-probs) and v3 (segments of v1)."""
    folder = tmp_path_factory.mktemp("built")
    root = folder / "data"
    do_ingest(write_pairs(folder / "pairs.jsonl", 60), model, root)
    run(add_reference.AddReference(add_reference.Options(source="v1"), str(root)))
    sapo(root, unit_rows=16)
    return root


def test_all_three_versions_are_sound(built: Path) -> None:
    found = versions.every(str(built))
    assert [version.name for version in found] == ["v1", "v2", "v3"]
    assert [verify(version) for version in found] == [[], [], []]
    assert found[2].manifest["parents"][0]["version"] == "v1"
    assert found[1].logical_hash == found[0].logical_hash  # log-probs are no part of it


def test_segments_are_where_the_columns_say(built: Path) -> None:
    parents = {row["row_id"]: row for row in all_rows(versions.find("v1", root=str(built)))}
    rows = all_rows(versions.find("v3", root=str(built)))
    assert len(rows) > 50
    for row in rows:
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        start, end, rest = row["segment_start"], row["segment_end"], row["segment_source_end"]
        assert chosen == parents[row["parent_row_id"]]["chosen_ids"]
        assert rejected[:start] == chosen[:start]
        assert rejected[start:end] != chosen[start:rest] or rejected != chosen
        assert rejected[end:] == ([] if row["ended_early"] else chosen[rest:])
        assert row["shared_prefix"] >= start
        assert row["rejected_finish"] == ("stop" if rejected[-1] == 2 else "length")
        assert 2 not in rejected[:-1]


def test_reference_log_probs_are_the_models_own(built: Path, model: str) -> None:
    """Against one unpadded forward for each completion."""
    import torch

    from prefdata.models import load_model

    loaded = load_model(model)
    for row in all_rows(versions.find("v3", root=str(built)))[:8]:
        for side in ("chosen", "rejected"):
            ids = row["prompt_ids"] + row[f"{side}_ids"]
            with torch.no_grad():
                logps = torch.log_softmax(loaded(torch.tensor([ids])).logits[0].double(), -1)
            expected = [logps[at - 1, ids[at]].item() for at in range(len(row["prompt_ids"]), len(ids))]
            assert row[f"ref_{side}_token_logps"] == pytest.approx(expected, abs=1e-4)
            assert row[f"ref_{side}_logps"] == pytest.approx(sum(expected), abs=1e-3)


def test_the_ledger_has_a_line_for_every_row_of_the_parent(built: Path) -> None:
    parent = {row["row_id"] for row in all_rows(versions.find("v1", root=str(built)))}
    ledger = versions.find("v3", root=str(built)).ledger().to_pylist()
    assert {line["row_id"] for line in ledger} == parent
    assert len(ledger) == len(parent)


def test_equal_builds_give_the_version_that_exists(built: Path) -> None:
    outcome = sapo(built)
    assert (outcome.version.name, outcome.published) == ("v3", False)
    added = run(add_reference.AddReference(add_reference.Options(source="v3"), str(built)))
    assert (added.version.name, added.published) == ("v3", False)


def copy_of(built: Path, tmp_path: Path, *names: str) -> Path:
    import shutil

    root = tmp_path / "data"
    for name in names:
        shutil.copytree(built / name, root / name)
    return root


def test_neither_row_order_nor_unit_size_changes_what_is_made(built: Path, tmp_path: Path, model: str) -> None:
    lines = (built.parent / "pairs.jsonl").read_text().splitlines()
    random.Random(5).shuffle(lines)
    (tmp_path / "shuffled.jsonl").write_text("\n".join(lines))
    do_ingest(tmp_path / "shuffled.jsonl", model, tmp_path / "data")
    other = sapo(tmp_path / "data", unit_rows=7).version
    made = versions.find("v3", root=str(built))
    assert {row["row_id"] for row in all_rows(other)} == {row["row_id"] for row in all_rows(made)}


class Killed(Exception):
    """Stands for a SIGKILL between two units."""


def killed_after(count: int) -> Any:
    def execute(stage: Stage, units: Any, work: Work, watcher: Any) -> None:
        from prefdata.builds.job import run_unit

        for number, unit in enumerate(units):
            if number == count:
                raise Killed
            run_unit(stage, unit, work)

    return execute


@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_build_goes_on_and_ends_the_same(built: Path, tmp_path: Path, after: int) -> None:
    root = copy_of(built, tmp_path, "v1")
    job = sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(source="v1", unit_rows=16), str(root))
    with pytest.raises(Killed):
        run(job, execute=killed_after(after))
    assert [version.name for version in versions.every(str(root))] == ["v1"]
    outcome = sapo(root, unit_rows=16)
    assert outcome.reused == after
    clean = versions.find("v3", root=str(built))
    assert outcome.version.logical_hash == clean.logical_hash
    assert [outcome.version.table(split) for split in clean.splits] == [clean.table(split) for split in clean.splits]


def test_stored_log_probs_of_the_parent_are_not_computed_again(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefdata import logprobs

    scored: list[str] = []
    score = logprobs.score

    def counting(model: Any, trees: Any, **options: Any) -> Any:
        scored.extend(tokens_id(tree.trunk, branch) for tree in trees for branch in tree.branches)
        return score(model, trees, **options)

    monkeypatch.setattr(logprobs, "score", counting)
    root = copy_of(built, tmp_path, "v1", "v2")
    version = sapo(root, source="v2").version
    chosen = {tokens_id(row["prompt_ids"], row["chosen_ids"]) for row in all_rows(version)}
    assert scored
    assert not chosen & set(scored)
    assert verify(version) == []


def test_the_next_round_draws_anew(built: Path, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path, "v1", "v2", "v3")
    second = sapo(root, source="latest").version
    first = versions.find("v3", root=str(root))
    assert (first.manifest["round"], second.manifest["round"]) == (1, 2)
    assert {row["row_id"] for row in all_rows(first)} != {row["row_id"] for row in all_rows(second)}
    chosen = [{tokens_id(row["prompt_ids"], row["chosen_ids"]) for row in all_rows(one)} for one in (first, second)]
    assert chosen[1] <= chosen[0]


def test_several_negatives_and_shared_answers(tmp_path: Path, model: str) -> None:
    same = [json.dumps({"prompt": "w1 w2", "chosen": "w3 w4 w5 w6", "rejected": word}) for word in ("w7", "w8")]
    other = json.dumps({"prompt": "w9", "chosen": "w3 w4 w5 w6 w7", "rejected": "w1"})
    (tmp_path / "pairs.jsonl").write_text("\n".join([*same, other]))
    do_ingest(tmp_path / "pairs.jsonl", model, tmp_path / "data", test_fraction=0.0)
    version = sapo(tmp_path / "data", negatives=3).version
    ledger = version.ledger().to_pylist()
    assert sorted(line["reason"] or "" for line in ledger) == ["", "", "duplicate_answer"]
    for line in ledger:
        if line["status"] == "kept":
            assert len(line["made"]) + len(line["shortfall"]) == 3
    assert verify(version) == []


def test_demonstrations_serve_as_good_answers(tmp_path: Path, model: str) -> None:
    lines = [json.dumps({"prompt": f"w{n} w2", "completion": "w3 w4 w5 w6 w7 w8"}) for n in range(12)]
    (tmp_path / "demos.jsonl").write_text("\n".join(lines))
    first = do_ingest(tmp_path / "demos.jsonl", model, tmp_path / "data", test_fraction=0.0)
    assert first.kind == "completions"
    version = sapo(tmp_path / "data").version
    assert version.kind == "pairs"
    assert verify(version) == []
    assert version.table("train").num_rows > 8


@pytest.mark.parametrize("mode", ["segment", "suffix", "full", "paper"])
def test_every_mode_builds(built: Path, tmp_path: Path, mode: str) -> None:
    root = copy_of(built, tmp_path, "v1")
    version = sapo(root, mode=mode).version
    assert verify(version) == []
    if mode == "full":
        assert {row["segment_start"] for row in all_rows(version)} == {0}


def test_a_segment_that_never_changes_is_set_aside(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefdata import engines
    from prefdata.engines import Sample

    root = copy_of(built, tmp_path, "v1")
    prompts = {tuple(r["prompt_ids"]): r["chosen_ids"] for r in all_rows(versions.find("v1", root=str(root)))}

    class Copying:
        name, batch_invariant, calls = "copying", True, 0

        def generate(self, requests: Any, sampling: Any) -> Any:
            Copying.calls += 1
            for request in requests:
                whole = next(p for p in prompts if request.prompt_ids[: len(p)] == p)
                start = len(request.prompt_ids) - len(whole)
                new = tuple(prompts[whole][start : start + request.max_new_tokens])
                yield Sample(request.key, new, "stop" if new[-1] == 2 else "length")

    monkeypatch.setattr(engines, "load", lambda *_, **__: Copying())
    with pytest.raises(UserError, match=f"nothing was published: all {len(prompts)} rows .*segment_unchanged"):
        sapo(root, max_redraws=2)
    assert [version.name for version in versions.every(str(root))] == ["v1"]
    splits = versions.find("v1", root=str(root)).splits
    assert Copying.calls == 3 * len(splits)


def test_options_outside_their_range_are_refused(built: Path) -> None:
    bad = [{"mode": "segments"}, {"negatives": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"engine": "nosuch"}]
    for options in [*bad, {"source": "v99"}, {"model": "/no/such/model"}]:
        with pytest.raises(UserError) as refused:
            sapo(built, **{"source": "v1", **options})
        assert "\n" not in str(refused.value)
    assert len(versions.every(str(built))) == 3


def test_another_tokenizer_is_refused(built: Path, tmp_path: Path) -> None:
    other = tiny_world.save_model(tmp_path / "other", words=30)
    with pytest.raises(UserError, match="another tokenizer"):
        sapo(built, model=other)


def test_units_do_not_depend_on_where_they_run(built: Path) -> None:
    job = sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(source="v1", unit_rows=16), str(built))
    stage = next(iter(job.stages()))
    units: list[Unit] = list(stage.units())
    again = stage.compute(units[1])
    stored = job.work.load(units[1].key)
    assert stored is not None
    assert again["draws"] == pa.table(stored["draws"])


def test_other_text_with_the_same_tokens_has_the_same_log_probs(tmp_path: Path, model: str) -> None:
    root = tmp_path / "data"
    for name, gap in (("one", " "), ("two", "  ")):
        lines = [json.dumps({"prompt": f"w{n}{gap}w2", "chosen": "w3 w4", "rejected": "w5"}) for n in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        do_ingest(tmp_path / f"{name}.jsonl", model, root, test_fraction=0.0)
    first, second = (
        run(add_reference.AddReference(add_reference.Options(source=source), str(root))) for source in ("v1", "v2")
    )
    assert (second.computed, second.reused) == (0, 1)
    columns = ["ref_chosen_logps", "ref_rejected_token_logps"]
    assert second.version.table("train", columns) == first.version.table("train", columns)
    assert second.version.table("train", ["row_id"]) != first.version.table("train", ["row_id"])


def test_the_next_round_is_the_next_of_the_whole_lineage(built: Path, tmp_path: Path) -> None:
    """Another branch of the same ancestor has drawn round 1 already, so the latest version's next round is 2."""
    root = copy_of(built, tmp_path, "v1", "v3")
    added = run(add_reference.AddReference(add_reference.Options(source="v1"), str(root))).version
    assert (added.name, added.manifest["round"]) == ("v4", 0)
    second = sapo(root, source="latest")
    assert second.version.manifest["parents"][0]["version"] == "v4"
    assert second.version.manifest["round"] == 2
    assert second.version.logical_hash != versions.find("v3", root=str(root)).logical_hash
    assert sapo(root, source="v1").version.name == "v3"  # asked for by name, it is what exists


def masked_parent(tmp_path: Path, model: str, **changes: Any) -> Path:
    rows = tiny_world.pair_rows(12, masked=True)
    for row in rows:
        row |= changes
    tokenizer = {**Renderer.load(model).fingerprint, "max_length": 96}
    tiny_world.publish(tmp_path / "data", {"train": tiny_world.table(rows)}, model, tokenizer=tokenizer)
    return tmp_path / "data"


def test_a_loss_mask_covers_both_sides_alike(tmp_path: Path, model: str) -> None:
    version = sapo(masked_parent(tmp_path, model), model=model).version
    assert verify(version) == []
    for row in all_rows(version):
        chosen, rejected = row["chosen_loss_mask"], row["rejected_loss_mask"]
        start, end, rest = row["segment_start"], row["segment_end"], row["segment_source_end"]
        assert rejected[:start] == chosen[:start]
        assert all(rejected[start:end])
        assert rejected[end:] == ([] if row["ended_early"] else chosen[rest:])
        assert row["rejected_tokens"] == sum(rejected)


def test_a_chosen_side_that_is_not_preferred_is_no_good_answer(tmp_path: Path, model: str) -> None:
    root = masked_parent(tmp_path, model, preference=0.1)
    with pytest.raises(UserError, match="chosen_not_preferred 12"):
        sapo(root, model=model)


def test_a_model_that_is_gone_is_asked_for(tmp_path: Path) -> None:
    import shutil

    model = tiny_world.save_model(tmp_path / "model", positions=96)
    do_ingest(write_pairs(tmp_path / "pairs.jsonl", 8), model, tmp_path / "data")
    shutil.move(model, tmp_path / "moved")
    with pytest.raises(UserError, match="--model"):
        sapo(tmp_path / "data")
    assert sapo(tmp_path / "data", model=str(tmp_path / "moved")).published


def test_a_model_that_takes_fewer_tokens_is_refused_before_it_is_loaded(built: Path, tmp_path: Path) -> None:
    short = tiny_world.save_model(tmp_path / "short", positions=32)
    with pytest.raises(UserError, match="takes 32 tokens"):
        sapo(built, model=short)
