"""One row is one preference pair: a prompt and two completions of it, the better one called chosen.

Log-probs are natural logs (nats), summed over the completion tokens that the mask keeps, never averaged;
the matching *_tokens column holds how many tokens were summed, so a mean can always be recovered.
"""

import pyarrow as pa

from schemas.columns import MESSAGES, TOKEN_IDS, TOKEN_LOGPS, TOKEN_MASK, column, required

KIND = "pairs"

BASE = pa.schema(
    [
        required(
            "row_id",
            pa.string(),
            "sha256 hex of the canonical kind, prompt, completions and tools; stable across versions",
        ),
        required("prompt_id", pa.string(), "sha256 hex of the canonical prompt and tools; equal prompts share it"),
        required("prompt", MESSAGES, "messages before the answers; nothing in it is scored"),
        required(
            "chosen",
            MESSAGES,
            "the better completion: the last assistant turn, or several turns with tool output between them",
        ),
        required(
            "rejected", MESSAGES, "the worse completion; for generated rows the ids rule and this text is for reading"
        ),
        column("tools", pa.string(), "JSON list of tool definitions given to the chat template; null: none"),
        required("prompt_ids", TOKEN_IDS, "token ids of the templated prompt, generation header included"),
        required("chosen_ids", TOKEN_IDS, "token ids of the better completion, end-of-turn included unless it was cut"),
        required(
            "rejected_ids", TOKEN_IDS, "token ids of the worse completion, end-of-turn included unless it was cut"
        ),
        required("prompt_tokens", pa.int32(), "tokens in prompt_ids"),
        required("chosen_tokens", pa.int32(), "scored tokens in chosen_ids, at least 1"),
        required("rejected_tokens", pa.int32(), "scored tokens in rejected_ids, at least 1"),
        required("shared_prefix", pa.int32(), "tokens that both completions begin with"),
        required(
            "chosen_content_start", pa.int32(), "tokens that the template puts before the answer's text in chosen_ids"
        ),
        required(
            "chosen_finish", pa.string(), "how chosen ends: stop (end-of-turn id present) or length (cut, no end id)"
        ),
        required(
            "rejected_finish",
            pa.string(),
            "how rejected ends: stop (end-of-turn id present) or length (cut, no end id)",
        ),
        column("chosen_loss_mask", TOKEN_MASK, "which chosen tokens are scored; null: all"),
        column("rejected_loss_mask", TOKEN_MASK, "which rejected tokens are scored; null: all"),
        column("chosen_score", pa.float64(), "score of chosen in the scorer's own unit; null: none given"),
        column("rejected_score", pa.float64(), "score of rejected in the scorer's own unit; null: none given"),
        column(
            "margin",
            pa.float64(),
            "chosen_score - rejected_score, or how much better the source says chosen is, in its own unit; null: none given",
        ),
        column("preference", pa.float64(), "probability that chosen is better, in [0, 1]; null: 1"),
        required(
            "method",
            pa.string(),
            "how the pair came about: human, or the regeneration rule (segment, suffix, full, paper)",
        ),
        required("source", pa.string(), "name of the source the prompt came from"),
        column("license", pa.string(), "licence of that source, as stated there; null: not stated"),
    ]
)

SEGMENT = pa.schema(
    [
        column("parent_row_id", pa.string(), "row_id in the parent version that gave prompt and chosen"),
        column(
            "generator", pa.string(), "model that wrote the generated tokens: name@first 12 hex digits of its digest"
        ),
        column("sampling", pa.string(), "JSON of the sampling parameters of the generated tokens"),
        column("sample_index", pa.int32(), "which of the segments drawn for the answer this is, from 0"),
        column("round", pa.int32(), "regeneration round in the lineage, from 1; 0 or null: not regenerated"),
        column("seed", pa.int64(), "the engine's seed for this row's draw"),
        column("attempt", pa.int32(), "redraws before B' differed from B, from 0"),
        column("segment_start", pa.int32(), "token offset where the regenerated segment B' starts in rejected_ids"),
        column("segment_end", pa.int32(), "token offset just past B': B' = rejected_ids[segment_start:segment_end]"),
        column("segment_source_end", pa.int32(), "token offset where the kept rest C begins in chosen_ids"),
        column("ended_early", pa.bool_(), "B' held the end-of-turn id, so C was dropped"),
    ]
)

SELECTED = pa.schema(
    [
        column("chosen_row_id", pa.string(), "row_id of the completion in the parent version that is chosen"),
        column("rejected_row_id", pa.string(), "row_id of the completion in the parent version that is rejected"),
        column("chosen_method", pa.string(), "how the chosen completion came about: human, sampled, greedy, ..."),
        column("rejected_method", pa.string(), "how the rejected completion came about"),
        column("chosen_generator", pa.string(), "model that wrote chosen, as its own row names it; null: unknown"),
        column("rejected_generator", pa.string(), "model that wrote rejected, as its own row names it; null: unknown"),
        column(
            "score_band", pa.int32(), "difficulty by scores: 0 has the widest margins, the highest band the narrowest"
        ),
        column(
            "reference_band",
            pa.int32(),
            "difficulty by the reference: 0 prefers chosen most (ref_chosen_logps - ref_rejected_logps), the highest band least",
        ),
    ]
)

JUDGED = pa.schema(
    [
        column(
            "judged_chosen_first",
            pa.string(),
            "the judge's verdict (chosen, rejected or tie) when chosen stood first; it disagrees with itself where the next"
            " column differs",
        ),
        column("judged_rejected_first", pa.string(), "the same when rejected stood first"),
    ]
)

REFERENCE = pa.schema(
    [
        column("ref_chosen_token_logps", TOKEN_LOGPS, "nats, log p_ref of every token of chosen_ids"),
        column("ref_rejected_token_logps", TOKEN_LOGPS, "nats, log p_ref of every token of rejected_ids"),
        column("ref_chosen_logps", pa.float32(), "nats, sum of log p_ref over the chosen_tokens scored tokens"),
        column("ref_rejected_logps", pa.float32(), "nats, sum of log p_ref over the rejected_tokens scored tokens"),
    ]
)
