"""What differs between two versions, and that nothing else is said to."""

import copy
import math

import pyarrow as pa
import pytest

from prefdata import cli, diff, versions
from prefdata.diff import compare
from prefdata.storage import Storage
from prefdata.versions import DamagedVersion
from tests.published import completion, pair, publish

ROWS = [pair([1, 2], [1, number], prompt=f"p{number}") for number in range(3, 9)]


def changed(row, **columns):
    return copy.deepcopy(row) | columns


def with_logps(row, by):
    """The row with one token's log-prob moved, and the sum with it."""
    moved = [row["ref_chosen_token_logps"][0] + by, *row["ref_chosen_token_logps"][1:]]
    return changed(row, ref_chosen_token_logps=moved, ref_chosen_logps=sum(moved))


def only(found):
    (split,) = found.splits
    return split


def test_a_version_equals_itself_and_its_rows_in_any_order_and_layout(tmp_path, monkeypatch):
    one = publish(tmp_path, train=ROWS)
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 2)
    two = publish(tmp_path, train=ROWS[::-1])
    assert len(two.files("train")) == 3
    for pair_of in ((one, one), (one, two), (two, one)):
        assert not compare(*pair_of).differs


def test_added_removed_and_changed_by_row_id_and_split(tmp_path):
    one = publish(tmp_path, train=ROWS[:4], test=ROWS[5:])
    two = publish(tmp_path, train=[changed(ROWS[3], method="other", margin=1.5), *ROWS[1:3], ROWS[4]])
    train, test = compare(one, two).splits
    assert (train.before, train.after) == (4, 4)
    assert train.removed == [ROWS[0]["row_id"]]
    assert train.added == [ROWS[4]["row_id"]]
    assert train.changed == [ROWS[3]["row_id"]]
    assert dict(train.columns) == {"method": 1, "margin": 1}
    assert (test.removed, test.added) == ([ROWS[5]["row_id"]], [])
    back = compare(two, one).splits[0]
    assert (back.added, back.removed, back.changed) == (train.removed, train.added, train.changed)


def test_every_changed_row_is_found_however_files_are_cut(tmp_path, monkeypatch):
    one = publish(tmp_path, train=ROWS)
    monkeypatch.setattr(versions, "ROWS_PER_FILE", 1)
    two = publish(tmp_path, train=[changed(row, source="there") for row in ROWS[::-1]])
    found = only(compare(one, two))
    assert sorted(found.changed) == sorted(row["row_id"] for row in ROWS)
    assert dict(found.columns) == {"source": len(ROWS)}


@pytest.mark.parametrize(("by", "far"), [(5e-5, False), (-5e-5, False), (2e-4, True), (-2e-4, True)])
def test_log_probs_are_compared_per_token_and_told_apart_from_changes(tmp_path, by, far):
    one, two = publish(tmp_path, train=ROWS), publish(tmp_path, train=[with_logps(ROWS[0], by), *ROWS[1:]])
    found = compare(one, two)
    split = only(found)
    assert found.differs == far
    assert found.logical_hashes[0] == found.logical_hashes[1]
    assert split.changed == []
    assert (len(split.logps_changed), split.logps_close) == ((1, 0) if far else (0, 1))
    assert split.logps_apart == pytest.approx(abs(by), rel=0.01)


def test_a_sum_may_differ_by_the_tolerance_for_each_of_its_tokens(tmp_path):
    long = pair(list(range(100)), [1], logps=([-1.0] * 100, [-1.0]))
    moved = [-1.00005] * 100
    near = changed(long, ref_chosen_token_logps=moved, ref_chosen_logps=sum(moved))
    assert not compare(publish(tmp_path, train=[long]), publish(tmp_path, train=[near])).differs


@pytest.mark.parametrize(
    ("was", "now", "apart"),
    [
        ([math.nan], [math.nan], 0.0),
        ([math.nan], [-1.0], math.inf),
        ([-1.0], [-math.inf], math.inf),
        ([-math.inf], [-math.inf], 0.0),
        ([-1.0], [-1.0, -1.0], math.inf),
        (None, [-1.0], math.inf),
        (None, -1.0, math.inf),
        ([None], [-1.0], math.inf),
    ],
)
def test_log_probs_that_are_no_numbers(was, now, apart):
    assert diff._apart(was, now, 1) == apart
    assert diff._apart(now, was, 1) == apart


def test_nulls_in_lists_and_cut_tables_do_not_hide_a_change():
    tables = [
        pa.table({"row_id": ["a", "b"], "x": pa.array(x, pa.list_(pa.int32()))}) for x in ([[1], [2]], [[1], [3]])
    ]
    whole = [list(diff._digests(table)) for table in tables]
    assert whole[0][0] == whole[1][0]
    assert whole[0][1] != whole[1][1]
    assert list(diff._digests(tables[0].slice(1))) == whole[0][1:]
    empty = pa.table({"row_id": ["a", "a"], "x": pa.array([[], None], pa.list_(pa.int32()))})
    assert len(set(diff._digests(empty))) == 2


def test_columns_that_one_version_lacks_are_told_once_and_not_for_every_row(tmp_path):
    found = compare(publish(tmp_path, train=ROWS, reference=False), publish(tmp_path, train=ROWS))
    assert only(found).changed == []
    assert {name: old for name, old, _ in found.columns} == dict.fromkeys(
        ["ref_chosen_token_logps", "ref_rejected_token_logps", "ref_chosen_logps", "ref_rejected_logps"], "absent"
    )
    assert ("reference.dtype", "null", '"float32"') in found.facts
    assert found.differs


def test_facts_tell_old_and_new_without_the_text_of_a_template(tmp_path):
    one = publish(tmp_path, config={"a": {"b": 1}, "c": "1", "d": True, "gone": None}, seeds={"split": 0})
    tokenizer = {**one.manifest["tokenizer"], "template": "another", "template_digest": "9" * 64}
    two = publish(tmp_path, config={"a": {"b": 2}, "c": 1, "d": 1}, seeds={"split": 7}, tokenizer=tokenizer)
    facts = compare(one, two).facts
    assert ("config.a.b", "1", "2") in facts
    assert ("config.c", '"1"', "1") in facts
    assert ("config.d", "true", "1") in facts
    assert ("seeds.split", "0", "7") in facts
    assert [key for key, *_ in facts if "template" in key] == ["tokenizer.template_digest"]
    assert "config.gone" not in [key for key, *_ in facts]


def test_versions_of_different_kinds(tmp_path):
    pairs, answers = publish(tmp_path), publish(tmp_path, "completions", train=[completion([1])])
    assert compare(pairs, answers).splits[0].changed == []
    assert ("kind", '"pairs"', '"completions"') in compare(pairs, answers).facts


def test_a_damaged_file_is_said_and_never_compared(tmp_path):
    one, two = publish(tmp_path), publish(tmp_path)
    Storage(two.url).write("train/part-00000.parquet", b"not it")
    with pytest.raises(DamagedVersion, match="part-00000"):
        compare(one, two)


def test_the_command_tells_equal_hashes_first_and_answers_like_diff(tmp_path, capsys):
    publish(tmp_path, train=ROWS)
    publish(tmp_path, train=ROWS[:-1], config={"bad": "\x1b[2J\n"})
    root = ["--root", str(tmp_path)]
    assert cli.main(["diff", "v1", "v1", *root]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("logical hash: equal")
    assert out[-1] == "no difference"
    assert cli.main(["diff", "v1", "v2", *root]) == 1
    out = capsys.readouterr().out
    assert "train: 6 -> 5 rows; 0 added, 1 removed, 0 changed" in out
    assert "\x1b" not in out
    assert cli.main(["diff", "v1", "v9", *root]) == 2
