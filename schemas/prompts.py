"""One row is one prompt, tokenised as sampling starts from it; it has no answer."""

import pyarrow as pa

from schemas.columns import MESSAGES, TOKEN_IDS, column, required

KIND = "prompts"

BASE = pa.schema(
    [
        required("row_id", pa.string(), "sha256 hex of the canonical kind, prompt and tools; stable across versions"),
        required("prompt_id", pa.string(), "sha256 hex of the canonical prompt and tools; equal prompts share it"),
        required("prompt", MESSAGES, "messages that wait for the assistant"),
        column("tools", pa.string(), "JSON list of tool definitions given to the chat template; null: none"),
        required("prompt_ids", TOKEN_IDS, "token ids of the templated prompt, generation header included"),
        required("prompt_tokens", pa.int32(), "tokens in prompt_ids"),
        required("source", pa.string(), "name of the source the prompt came from"),
        column("license", pa.string(), "licence of that source, as stated there; null: not stated"),
        required("method", pa.string(), "how the prompt came about: human"),
    ]
)
