"""Reference columns: pure functions of tables and arrays."""

import numpy as np
import pyarrow as pa
import pytest

from prefdata import reference
from prefdata.identity import tokens_id
from schemas import completions, pairs
from schemas.columns import TOKEN_IDS, TOKEN_LOGPS, TOKEN_MASK


def pair_table(masked: bool = False) -> pa.Table:
    table = pa.table(
        {
            "row_id": pa.array(["a", "b", "c"]),
            "prompt_ids": pa.array([[1, 2], [3], [4, 5, 6]], TOKEN_IDS),
            "chosen_ids": pa.array([[7, 8], [9], [1]], TOKEN_IDS),
            "rejected_ids": pa.array([[7], [8, 9, 2], [2, 2]], TOKEN_IDS),
        }
    )
    if masked:
        table = table.append_column("chosen_loss_mask", pa.array([[True, False], None, [True]], TOKEN_MASK))
    return table


def made_up(table: pa.Table, seed: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [[-rng.random(len(ids)).astype(np.float32) for ids in tree.branches] for tree in reference.trees(table)]


def test_trees_are_prompt_and_sides_in_row_order():
    trees = reference.trees(pair_table())
    assert [list(tree.trunk) for tree in trees] == [[1, 2], [3], [4, 5, 6]]
    assert [[list(side) for side in tree.branches] for tree in trees] == [
        [[7, 8], [7]],
        [[9], [8, 9, 2]],
        [[1], [2, 2]],
    ]


def test_a_slice_and_a_chunked_table_give_their_own_rows():
    table = pair_table()
    chunked = pa.concat_tables([table.slice(2), table.slice(0, 2)])
    assert [list(tree.trunk) for tree in reference.trees(chunked)] == [[4, 5, 6], [1, 2], [3]]
    assert [list(tree.branches[1]) for tree in reference.trees(table.slice(1, 1))] == [[8, 9, 2]]


def test_attach_stores_tokens_and_their_sums():
    table = pair_table()
    logps = made_up(table)
    found = reference.attach(table, logps)
    for i, side in enumerate(("chosen", "rejected")):
        for row, tokens, total in zip(
            logps, found[f"ref_{side}_token_logps"].to_pylist(), found[f"ref_{side}_logps"].to_pylist(), strict=True
        ):
            np.testing.assert_array_equal(np.float32(tokens), row[i])
            assert total == pytest.approx(float(row[i].sum()), abs=1e-6)
    for field in pairs.REFERENCE:
        assert found.schema.field(field.name).equals(field, check_metadata=True)
    assert found.select(table.column_names) == table


def test_a_mask_leaves_tokens_out_of_the_sum_and_in_the_list():
    table = pair_table(masked=True)
    logps = made_up(table)
    found = reference.attach(table, logps)
    assert [len(row) for row in found["ref_chosen_token_logps"].to_pylist()] == [2, 1, 1]
    expected = [logps[0][0][0], logps[1][0][0], logps[2][0][0]]
    np.testing.assert_allclose(found["ref_chosen_logps"].to_pylist(), expected, rtol=1e-6)


def test_attach_replaces_what_was_there_in_place():
    table = pair_table()
    once = reference.attach(table, made_up(table, 0))
    twice = reference.attach(once, made_up(table, 1))
    assert twice.column_names == once.column_names
    assert twice == reference.attach(table, made_up(table, 1))


def test_completions_have_one_side():
    table = pa.table(
        {
            "prompt_ids": pa.array([[1], [2]], TOKEN_IDS),
            "completion_ids": pa.array([[3, 4], [5]], TOKEN_IDS),
            "completion_loss_mask": pa.array([None, None], TOKEN_MASK),
        }
    )
    found = reference.attach(table, made_up(table))
    assert found.schema.field("ref_completion_logps").equals(completions.REFERENCE.field("ref_completion_logps"))
    assert len(reference.known(found)) == 2


def test_sums_keep_their_digits():
    # 2**24 + many small terms: summed in float32 the small ones vanish
    tokens = np.array([-(2.0**24), *[-0.5] * 64], np.float32)
    table = pa.table({"prompt_ids": pa.array([[1]], TOKEN_IDS), "completion_ids": pa.array([[0] * 65], TOKEN_IDS)})
    assert reference.attach(table, [[tokens]])["ref_completion_logps"][0].as_py() == -(2.0**24) - 32


def test_an_empty_table_gets_empty_columns():
    empty = pair_table().slice(0, 0)
    found = reference.attach(empty, [])
    assert found.num_rows == 0
    assert found.schema.field("ref_rejected_token_logps").type == TOKEN_LOGPS


def test_log_probs_that_do_not_fit_are_refused():
    table = pair_table()
    with pytest.raises(ValueError, match="rows"):
        reference.attach(table, made_up(table)[:2])
    wrong = made_up(table)
    wrong[1][1] = wrong[1][1][:-1]
    with pytest.raises(ValueError, match="row 1: 2 log-probs for the 3 tokens of rejected_ids"):
        reference.attach(table, wrong)
    with pytest.raises(ValueError, match="rows of no known kind"):
        reference.trees(pa.table({"x": [1]}))


def test_known_finds_log_probs_again_by_their_tokens():
    table = pair_table()
    logps = made_up(table)
    shuffled = reference.attach(table, logps).take(pa.array([2, 0, 1]))
    found = reference.known(shuffled)
    trees = reference.trees(table)
    again = [[found[tokens_id(tree.trunk, branch)] for branch in tree.branches] for tree in trees]
    assert reference.attach(table, again) == reference.attach(table, logps)
    assert reference.known(table) == {}


def test_known_passes_over_rows_without_log_probs():
    found = reference.attach(pair_table(), made_up(pair_table()))
    index = found.column_names.index("ref_chosen_token_logps")
    holes = pa.array([None, [-1.0], None], TOKEN_LOGPS)
    holed = found.set_column(index, found.schema.field(index), holes)
    assert set(reference.known(holed)) == {
        tokens_id([3], [9]),
        *(tokens_id(tree.trunk, tree.branches[1]) for tree in reference.trees(pair_table())),
    }


def test_the_fingerprint_is_of_content_not_of_names():
    here = {"name": "a", "digest": "d" * 64, "config_digest": "c" * 64, "dtype": "float32", "commit": None}
    assert reference.fingerprint(here) == reference.fingerprint({**here, "name": "b", "commit": "x"})
    others = [{**here, "digest": "e" * 64}, {**here, "config_digest": "e" * 64}, {**here, "dtype": "bfloat16"}]
    assert len({reference.fingerprint(one) for one in [here, *others]}) == 4
    assert reference.fingerprint(here, "bfloat16") == reference.fingerprint(others[2])
