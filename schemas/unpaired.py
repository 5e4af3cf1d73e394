"""One row is one prompt and one completion of it that was judged by itself: desirable or not (as KTO and BCO read).

Log-probs are natural logs (nats); completion_tokens counts what a sum was taken over.
"""

import pyarrow as pa

from schemas import completions
from schemas.columns import column, required

KIND = "unpaired"

BASE = pa.schema(
    [
        *(field for field in completions.BASE if field.name != "score"),
        required("label", pa.bool_(), "true: the completion is desirable; false: undesirable"),
        column("weight", pa.float64(), "how much the row counts, above 0; null: 1"),
    ]
)

REFERENCE = completions.REFERENCE
