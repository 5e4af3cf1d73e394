import json
import math
import random
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from prefdata import facts, stats
from prefdata.storage import Storage
from schemas.ledger import LEDGER
from schemas.stats import TABLES
from tests.published import completion, pair, rows_table


def measured(**splits):
    found = stats.Stats("pairs")
    for split, rows in splits.items():
        found.add(split, rows_table("pairs", rows))
    return found.tables()


def line(found, name, **where):
    """The one line of a stats table where the named columns have the given values."""
    lines = [row for row in found[name].to_pylist() if all(row[key] == value for key, value in where.items())]
    assert len(lines) == 1, lines
    return lines[0]


def random_ids(rng, longest=12, vocabulary=4):
    return [rng.randrange(vocabulary) for _ in range(rng.randrange(1, longest))]


def edits(left, right):
    """Wagner and Fischer, as in a textbook."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def ragged(rows):
    return facts.Ragged.of(pa.array(rows, pa.list_(pa.int32())))


@pytest.mark.parametrize("vocabulary", [4, 0x110001], ids=["small ids", "ids beyond the last character"])
def test_edit_distance_is_the_textbook_one(vocabulary):
    rng = random.Random(0)
    left = [[*random_ids(rng), vocabulary] for _ in range(200)]
    right = [[*random_ids(rng), vocabulary, 0xD800] for _ in range(200)]
    assert facts.edit_distances(ragged(left), ragged(right)).tolist() == [
        edits(a, b) for a, b in zip(left, right, strict=True)
    ]


def test_shared_suffix_counts_equal_last_tokens_and_no_token_twice():
    rng = random.Random(1)
    rows = [(random_ids(rng, vocabulary=2), random_ids(rng, vocabulary=2)) for _ in range(300)]
    found = facts.facts("pairs", rows_table("pairs", [pair(a, b) for a, b in rows]).to_batches()[0])
    for (a, b), prefix, suffix in zip(rows, found["shared_prefix"], found["shared_suffix"], strict=True):
        longer = max(len(a), len(b))
        prefix, suffix = round(prefix * longer), round(suffix * longer)
        assert a[len(a) - suffix :] == b[len(b) - suffix :]
        assert prefix + suffix <= min(len(a), len(b))
        stopped_by_tokens = prefix + suffix < min(len(a), len(b)) and a[-suffix - 1] != b[-suffix - 1]
        assert stopped_by_tokens or prefix + suffix == min(len(a), len(b))


def test_similarity_of_pairs_worked_by_hand():
    found = measured(train=[pair([1, 2, 3, 4], [1, 9, 4])])  # replace 2 by 9, delete 3
    values = {row["measure"]: row["mean"] for row in found["similarity"].to_pylist()}
    assert values == {"edit_distance": 2 / 4, "shared_prefix": 1 / 4, "shared_suffix": 1 / 4}


def test_swapping_the_sides_mirrors_every_comparison():
    rng = random.Random(2)
    rows = [
        pair(a, b, prompt=str(i), logps=([-rng.random() for _ in a], [-rng.random() for _ in b]))
        for i in range(100)
        for a, b in [(random_ids(rng), random_ids(rng))]
    ]
    swapped = [exchange(row) for row in rows]
    there, back = measured(train=rows), measured(train=swapped)
    assert line(back, "length_bias")["auc"] == pytest.approx(1 - line(there, "length_bias")["auc"])
    assert line(back, "length_bias")["mean_difference"] == pytest.approx(-line(there, "length_bias")["mean_difference"])
    for unit in ("sum", "per_token"):
        one, other = (line(found, "reference_margin", unit=unit) for found in (there, back))
        assert other["mean"] == pytest.approx(-one["mean"])
        assert other["p10"] == pytest.approx(-one["p90"])
        assert other["share_below_zero"] == pytest.approx(1 - one["share_below_zero"])
    assert back["similarity"].equals(there["similarity"])
    assert strip(line(back, "reference", side="chosen")) == strip(line(there, "reference", side="rejected"))


def exchange(row):
    turned = dict(row)
    for key, value in row.items():
        if "chosen" in key:
            other = key.replace("chosen", "rejected")
            if other in row:
                turned[key], turned[other] = row[other], value
    return turned


def strip(row):
    return {key: value for key, value in row.items() if key != "side"}


def test_length_bias_counts_ties_as_half():
    rows = [
        pair([1, 2], [1], prompt="a"),
        pair([1], [2], prompt="b"),
        pair([1], [2, 3], prompt="c"),
        pair([1], [2], prompt="d"),
    ]
    bias = line(measured(train=rows), "length_bias")
    assert (bias["share_chosen_longer"], bias["share_rejected_longer"], bias["share_ties"], bias["auc"]) == (
        0.25,
        0.25,
        0.5,
        0.5,
    )


def test_lengths_agree_with_numpy_and_cut_answers_are_counted_per_side():
    rng = random.Random(3)
    rows = [
        pair(random_ids(rng), random_ids(rng), prompt=str(i), rejected_finish="length" if i < 5 else "stop")
        for i in range(50)
    ]
    found = measured(train=rows)
    lengths = [row["chosen_tokens"] for row in rows]
    chosen = line(found, "lengths", side="chosen")
    assert [chosen[q] for q in ("p10", "p50", "p90")] == pytest.approx(np.quantile(lengths, [0.1, 0.5, 0.9]).tolist())
    assert (chosen["mean"], chosen["max"], chosen["cut_share"]) == (np.mean(lengths), max(lengths), 0)
    assert line(found, "lengths", side="rejected")["cut_share"] == pytest.approx(0.1)
    assert line(found, "lengths", side="prompt")["cut_share"] is None


def test_reference_counts_unlikely_and_impossible_log_probs():
    rows = [
        pair([1, 2], [3, 4], prompt="a", logps=([-1.0, -11.0], [-0.5, -0.5])),  # -6 per token: an unlikely answer
        pair([1, 2], [3, 4], prompt="b", logps=([-1.0, -1.0], [0.5, -math.inf])),
        pair([1], [3], prompt="c", logps=([-20000.0], [math.nan])),
        pair([1], [3], prompt="d", ref_chosen_logps=None, ref_chosen_token_logps=None),
    ]
    found = measured(train=rows)
    chosen, rejected = (line(found, "reference", side=side) for side in ("chosen", "rejected"))
    assert (chosen["rows"], chosen["tokens"]) == (3, 5)
    assert chosen["share_unlikely_tokens"] == pytest.approx(2 / 5)
    assert chosen["share_unlikely_answers"] == pytest.approx(2 / 3)
    assert (chosen["not_finite"], chosen["positive"], chosen["huge_sums"]) == (0, 0, 1)
    assert (rejected["not_finite"], rejected["positive"]) == (2, 1)


def test_tokens_that_the_loss_mask_leaves_out_are_not_counted_as_unlikely():
    masked = pair(
        [1, 2, 3],
        [4],
        prompt="a",
        logps=([-50.0, -1.0, -1.0], [-1.0]),
        chosen_loss_mask=[False, True, True],
        chosen_tokens=2,
    )
    whole = pair([1, 2], [4], prompt="b", logps=([-50.0, -1.0], [-1.0]))
    unscored = pair(
        [1, 2], [4], prompt="c", chosen_loss_mask=[True, True], ref_chosen_logps=None, ref_chosen_token_logps=None
    )
    chosen = line(measured(train=[masked, whole, unscored]), "reference", side="chosen")
    assert (chosen["tokens"], chosen["share_unlikely_tokens"]) == (4, 1 / 4)


def test_a_margin_below_zero_is_where_the_reference_prefers_the_rejected_side():
    rows = [
        pair([1, 2], [3], prompt="a", logps=([-1.0, -1.0], [-1.5])),  # sum -0.5, per token 0.5
        pair([1], [3], prompt="b", logps=([-1.0], [-4.0])),
        pair([1], [3], prompt="c", logps=([-1.0], [-1.0])),
    ]
    found = measured(train=rows)
    assert line(found, "reference_margin", unit="sum")["share_below_zero"] == pytest.approx(1 / 3)
    assert line(found, "reference_margin", unit="per_token")["share_below_zero"] == 0
    assert line(found, "reference_margin", unit="sum")["mean"] == pytest.approx((-0.5 + 3 + 0) / 3)


def test_the_per_token_margin_is_the_difference_of_the_sides():
    rng = random.Random(4)
    rows = [
        pair(a, b, prompt=str(i), logps=([-rng.random() for _ in a], [-3 * rng.random() for _ in b]))
        for i in range(40)
        for a, b in [(random_ids(rng), random_ids(rng))]
    ]
    found = measured(train=rows)
    chosen, rejected = (line(found, "reference", side=side)["mean"] for side in ("chosen", "rejected"))
    assert line(found, "reference_margin", unit="per_token")["mean"] == pytest.approx(chosen - rejected)


def test_duplicates():
    rows = [
        pair([1], [2], prompt="a"),
        pair([2], [1], prompt="a"),  # contradicts the first, both ways
        pair([1], [3], prompt="a"),  # the first's good answer again
        pair([1], [4], prompt="b"),
        pair([5], [5], prompt="c"),
        pair([6, 7], [8], prompt="d", text=("same", "same")),
    ]
    found = line(measured(train=rows, test=[pair([2], [9], prompt="b")]), "duplicates", split="train")
    assert (found["rows"], found["prompts"], found["rows_sharing_prompt"]) == (6, 4, 3)
    assert found["rows_sharing_good_answer"] == 2
    assert found["chosen_rejected_elsewhere"] == 3 + 1  # an identical pair contradicts itself
    assert (found["identical_pairs"], found["same_text_other_tokens"]) == (1, 1)


def test_scores_count_ties_and_inversions():
    given = [(3.0, 1.0), (1.0, 1.0), (0.0, 2.0)]
    rows = [
        pair([1], [2], prompt=str(i), chosen_score=c, rejected_score=r, margin=c - r) for i, (c, r) in enumerate(given)
    ]
    margin = line(measured(train=[*rows, pair([1], [2], prompt="none")]), "scores", score="margin")
    assert (margin["rows"], margin["zero"], margin["negative"], margin["mean"]) == (3, 1, 1, 0)


def test_splits_are_summed_up_apart_and_batches_change_nothing(monkeypatch):
    rng = random.Random(5)
    rows = [pair(random_ids(rng), random_ids(rng), prompt=str(i % 7)) for i in range(60)]
    whole = measured(train=rows[:40], test=rows[40:])
    monkeypatch.setattr(stats, "BATCH_ROWS", 7)
    cut = measured(train=rows[:40], test=rows[40:])
    assert all(cut[name].equals(whole[name]) for name in whole)
    alone = measured(test=rows[40:])
    for name in ("lengths", "similarity", "duplicates", "reference", "reference_margin", "counts"):
        assert_frame_equal(pl.from_arrow(alone[name]), pl.from_arrow(whole[name]).filter(split="test"))


def test_ledger_reasons_add_up_to_the_ledger():
    rng = random.Random(6)
    kinds = [
        ("publish", "kept", None),
        ("gate", "set_aside", "chosen_empty"),
        ("tokens", "set_aside", "prompt_too_long"),
    ]
    drawn = [rng.choice(kinds) for _ in range(500)]
    lines = [
        {
            "row_id": str(i),
            "stage": s,
            "status": t,
            "reason": r,
            "made": [],
            "shortfall": ["segment_unchanged"] * (i % 2),
        }
        for i, (s, t, r) in enumerate(drawn)
    ]
    found = stats.Stats("pairs")
    found.add_ledger(pa.Table.from_pylist(lines[:200], schema=LEDGER))
    found.add_ledger(pa.Table.from_pylist(lines[200:], schema=LEDGER))
    tables = found.tables()
    counted = {
        (row["stage"], row["status"], row["reason"]): row["rows"] for row in tables["ledger_reasons"].to_pylist()
    }
    assert counted == dict(Counter(drawn))
    assert tables["ledger_shortfall"].to_pylist() == [{"reason": "segment_unchanged", "rows": 250}]


OF_ONE_BUILD = ("acceptance", "advantages", "marks")  # what rows alone do not say


def test_tables_have_their_declared_columns_whatever_the_rows():
    nothing = stats.Stats("pairs").tables()
    full = measured(train=[pair([1], [2])])
    for name, found in full.items():
        assert found.schema.equals(TABLES[name], check_metadata=True)
    for name, found in nothing.items():
        assert found.schema.equals(TABLES[name])
        assert found.num_rows == 0
    assert set(TABLES) - set(full) == {"labels", *OF_ONE_BUILD}
    assert set(TABLES) - set(nothing) == {"labels", "reference", "reference_margin", *OF_ONE_BUILD}


def test_completions_have_the_tables_that_apply():
    rows = [
        completion(ids, row_id=str(i), completion_finish="length", score=1.5)
        for i, ids in enumerate([[1, 2], [1, 2], [3]])
    ]
    found = stats.Stats("completions")
    found.add("train", rows_table("completions", rows))
    tables = found.tables()
    assert set(TABLES) - set(tables) == {"labels", "length_bias", "similarity", "reference_margin", *OF_ONE_BUILD}
    assert line(tables, "lengths", side="completion")["cut_share"] == 1
    assert line(tables, "reference", side="completion")["mean"] == -2
    assert line(tables, "duplicates")["rows_sharing_good_answer"] == 2
    assert line(tables, "scores", score="completion")["p50"] == 1.5


def test_tables_of_files_are_those_of_the_rows(tmp_path):
    rng = random.Random(7)
    rows = [pair(random_ids(rng), random_ids(rng), prompt=str(i)) for i in range(30)]
    ledger = pa.Table.from_pylist(
        [{"row_id": "a", "status": "kept", "stage": "publish", "made": ["b"], "shortfall": []}], schema=LEDGER
    )
    parts = {
        "train/part-00000.parquet": rows_table("pairs", rows[:10]),
        "train/part-00001.parquet": rows_table("pairs", rows[10:20]),
        "test/part-00000.parquet": rows_table("pairs", rows[20:]),
        "ledger/part-00000.parquet": ledger,
    }
    for path, part in parts.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        pq.write_table(part, tmp_path / path)
    (tmp_path / "notes.json").write_text(json.dumps({}))
    files = [{"path": path, "sha256": "", "bytes": 0} for path in [*parts, "notes.json"]]
    found = stats.tables("pairs", Storage(str(tmp_path)), files)
    expected = stats.Stats("pairs")
    for path, part in parts.items():
        folder = path.split("/")[0]
        expected.add_ledger(part) if folder == "ledger" else expected.add(folder, part)
    assert all(found[name].equals(other) for name, other in expected.tables().items())
    assert pl.from_arrow(found["counts"])["rows"].sum() == 30
