"""One row is one prompt and one completion of it: a demonstration, or a sampled answer with its scores.

Log-probs are natural logs (nats); completion_tokens counts what a sum was taken over.
"""

import pyarrow as pa

from schemas.columns import MESSAGES, SCORES, TOKEN_IDS, TOKEN_LOGPS, TOKEN_MASK, column, required

KIND = "completions"

BASE = pa.schema(
    [
        required(
            "row_id",
            pa.string(),
            "sha256 hex of the canonical kind, prompt, completion and tools; stable across versions",
        ),
        required("prompt_id", pa.string(), "sha256 hex of the canonical prompt and tools; equal prompts share it"),
        required("prompt", MESSAGES, "messages before the answer; nothing in it is scored"),
        required(
            "completion",
            MESSAGES,
            "the answer: the last assistant turn, or all from the first scored turn to the last, tool output between them",
        ),
        column("tools", pa.string(), "JSON list of tool definitions given to the chat template; null: none"),
        required("prompt_ids", TOKEN_IDS, "token ids of the templated prompt, generation header included"),
        required("completion_ids", TOKEN_IDS, "token ids of the completion, end-of-turn included unless it was cut"),
        required("prompt_tokens", pa.int32(), "tokens in prompt_ids"),
        required("completion_tokens", pa.int32(), "scored tokens in completion_ids, at least 1"),
        required("completion_content_start", pa.int32(), "tokens that the template puts before the answer's text"),
        required(
            "completion_finish", pa.string(), "how it ends: stop (end-of-turn id present) or length (cut, no end id)"
        ),
        column("completion_loss_mask", TOKEN_MASK, "which completion tokens are scored; null: all"),
        column("score", pa.float64(), "score in the scorer's own unit; null: none given"),
        required(
            "method",
            pa.string(),
            "how the completion came about: human; model, which the source names as its generator; sampled, greedy, ...",
        ),
        required("source", pa.string(), "name of the source the prompt came from"),
        column("license", pa.string(), "licence of that source, as stated there; null: not stated"),
    ]
)

SAMPLED = pa.schema(
    [
        column("sampling", pa.string(), "JSON of the sampling parameters of the generated tokens"),
        column("sample_index", pa.int32(), "which of its prompt's draws with these parameters it is, from 0"),
        column("round", pa.int32(), "sampling round in the lineage, from 1; null: not sampled"),
        column("seed", pa.int64(), "the engine's seed for this draw"),
        column(
            "sampler_token_logps",
            TOKEN_LOGPS,
            "nats, log-prob of each token under the distribution it was drawn from, after temperature and filters; null: "
            "nothing was drawn, or the engine does not tell. Never the reference's",
        ),
    ]
)

SELECTED = pa.schema(
    [
        column(
            "accepted_place",
            pa.int32(),
            "which of its prompt's accepted candidates it is, from 0; null: not so selected",
        ),
        column(
            "baseline_row_id",
            pa.string(),
            "row_id, in the parent version, of the prompt's greedy completion; null: none",
        ),
        column("baseline_score", pa.float64(), "score of that greedy completion"),
        column("advantage", pa.float64(), "score - baseline_score (ReMax's, without discount or penalty)"),
    ]
)

# columns that only some versions have
OPTIONAL = pa.schema(
    [
        column("scores", SCORES, "scores by name, in each scorer's own unit; `score` is the one that selections read"),
        column(
            "generator",
            pa.string(),
            "model that wrote the completion: as its source names it where method is model, and otherwise name@first 12 hex "
            "digits of its digest",
        ),
    ]
)

REFERENCE = pa.schema(
    [
        column("ref_completion_token_logps", TOKEN_LOGPS, "nats, log p_ref of every token of completion_ids"),
        column("ref_completion_logps", pa.float32(), "nats, sum of log p_ref over the completion_tokens scored tokens"),
    ]
)
