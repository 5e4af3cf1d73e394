"""Columns that cleaning adds to rows of any kind, where it was asked for them."""

import pyarrow as pa

from schemas.columns import column

PRIVATE_DATA = column(
    "private_data",
    pa.list_(pa.string()),
    "kinds of private data in prompt or answers: email, phone, key; null: none found",
)
NOISE_HINTS = column(
    "noise_hints",
    pa.list_(pa.string()),
    "why the label may be wrong: both_orders, both_labels, scores_disagree, unlikely; null: nothing found",
)
CLEANED = pa.schema([PRIVATE_DATA, NOISE_HINTS])
