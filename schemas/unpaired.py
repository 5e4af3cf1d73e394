"""One row is one prompt and one completion of it that was judged by itself: desirable or not (as KTO and BCO read).

Log-probs are natural logs (nats); completion_tokens counts what a sum was taken over.
"""

import pyarrow as pa

from schemas import completions
from schemas.columns import TOKEN_IDS, TOKEN_LOGPS, TOKEN_MASK, column, required

KIND = "unpaired"

BASE = pa.schema(
    [
        *(field for field in completions.BASE if field.name != "score"),
        required("label", pa.bool_(), "true: the completion is desirable; false: undesirable"),
        column("weight", pa.float64(), "how much the row counts, above 0; null: 1"),
    ]
)

# where a verdict was made from rows of another version
MADE = pa.schema(
    [
        column("parent_row_id", pa.string(), "row_id, in the parent version, of the row that it was made from"),
        column("parent_side", pa.string(), "which answer of that row it is: chosen, rejected or completion"),
        column("score", pa.float64(), "score of the completion in the scorer's own unit; null: none given"),
        column(
            "generator", pa.string(), "model that wrote the completion, as the parent's row names it; null: unknown"
        ),
    ]
)

REFERENCE = completions.REFERENCE

# the frozen partner: another prompt's completion, which KTO's reference point is estimated with
PARTNER = pa.schema(
    [
        required("partner_row_id", pa.string(), "row_id, in the parent version, of the row that it is an answer of"),
        required("partner_ids", TOKEN_IDS, "token ids of another prompt's completion, read behind this row's prompt"),
        required("partner_tokens", pa.int32(), "scored tokens in partner_ids, at least 1"),
        column("partner_loss_mask", TOKEN_MASK, "which partner tokens are scored; null: all"),
    ]
)

PARTNER_REFERENCE = pa.schema(
    [
        column(
            "ref_partner_token_logps", TOKEN_LOGPS, "nats, log p_ref of every token of partner_ids behind prompt_ids"
        ),
        column("ref_partner_logps", pa.float32(), "nats, sum of log p_ref over the partner_tokens scored tokens"),
    ]
)
