"""Hard negatives: of the negatives drawn for one answer, those that the reference likes most, least, or any. Pure.

A negative that the reference finds likely is one it can barely tell from a good answer; one that it finds unlikely is easy.
"""

import polars as pl

from prefdata import draws

LIKELIEST, UNLIKELIEST, RANDOM = "likeliest", "unlikeliest", "random"
KEEPS = (LIKELIEST, UNLIKELIEST, RANDOM)


def kept(rows: pl.DataFrame, keep: str, count: int, *, seed: int, round_: int) -> pl.Series:
    """(rows,) which rows are kept: `count` of each answer's, or all where it has fewer.

    rows    answer_id, row_id (unique), logps (nats, sum over the scored tokens), tokens (how many)
    keep    likeliest, unlikeliest: by the mean log-prob per scored token, so that short negatives have no advantage; of
            equal ones the one with the least row_id. random: a draw for each row by its id alone
    """
    if keep == RANDOM:
        order = pl.Series("order", draws.uniform(seed, rows["row_id"].to_list(), "keep", round_), pl.Float64)
    else:
        order = rows["logps"].cast(pl.Float64) / rows["tokens"]
        order = -order if keep == LIKELIEST else order
    sorted_rows = rows.select("answer_id", "row_id", order=order, place=pl.int_range(pl.len())).sort("order", "row_id")
    first = sorted_rows.filter(pl.int_range(pl.len()).over("answer_id") < count)["place"]
    return pl.int_range(len(rows), eager=True).is_in(first.implode())
