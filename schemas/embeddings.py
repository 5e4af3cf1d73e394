"""Where a row's prompt lies among prompts: a column that add-reference --embeddings gives rows of any kind."""

import pyarrow as pa

from schemas.columns import column

COLUMN = "prompt_embedding"

EMBEDDED = pa.schema(
    [
        column(
            COLUMN,
            pa.list_(pa.float32()),
            "the prompt as a vector of the model that the manifest's `embeddings` names, as it gave it; its direction counts",
        )
    ]
)
