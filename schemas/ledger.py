"""The ledger: one line per row of the direct parent (for an ingest: per row read), kept or set aside.

A row is kept when at least one row of this version was made from it. One row can be made from several: a pair of two
replies that stand in a row each.
"""

import pyarrow as pa

from schemas.columns import column, required

KEPT = "kept"
SET_ASIDE = "set_aside"

LEDGER = pa.schema(
    [
        required(
            "row_id", pa.string(), "row_id in the parent; for a row read from a file, sha256 hex of its content as read"
        ),
        required("status", pa.string(), "kept: at least one row was made from it; set_aside: none"),
        required(
            "stage",
            pa.string(),
            "last stage the row reached: read, format, gate, tokens, split, select, generate, reference, publish, or the "
            "cleaning step that judged it",
        ),
        column("reason", pa.string(), "one word for why it was set aside; null when kept"),
        column("detail", pa.string(), "what was found, for a person to read"),
        required("made", pa.list_(pa.string()), "row_ids in this version that were made from it"),
        required("shortfall", pa.list_(pa.string()), "reasons of rows asked for but not made from a kept row"),
        column("origin", pa.string(), "file and position the row was read from; null when the parent is a version"),
    ]
)
