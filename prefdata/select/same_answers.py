"""Which answers are the same: those of equal tokens, and those of equal text that other tokens spell. Pure."""

import polars as pl


def same_answers(ids: pl.Series, text: pl.Series) -> pl.Series:
    """(rows,) a key that two rows share if tokens or text are equal, directly or by way of other rows.

    ids, text: hashes of each row's tokens and text (binary). The key is the least `ids` among those that belong together,
    so that it does not depend on the order of the rows.
    """
    found = pl.DataFrame({"ids": ids, "text": text, "key": ids})
    while True:
        spread = found.with_columns(key=pl.col("key").min().over("text")).with_columns(
            key=pl.col("key").min().over("ids")
        )
        if spread["key"].equals(found["key"]):
            return found["key"]
        found = spread
