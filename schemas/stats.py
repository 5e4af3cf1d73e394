"""The small tables under a version's stats/: what is measured, its unit and meaning. Every table is in long form.

Quantiles are linear between neighbours. A share is between 0 and 1. A table that does not apply to a version
(no reference, one completion per row) is absent from it.
"""

import pyarrow as pa

from schemas.columns import column, required

POSITIVE_LOGP = 1e-4  # a stored log-prob above this is an error, not rounding
UNLIKELY_TOKEN = -10.0  # nats: the reference would hardly ever write this token
UNLIKELY_ANSWER = -3.0  # nats per token: the reference would hardly ever write this answer
HUGE_SUM = -1e4  # nats: losses of the sum saturate or overflow beyond it

_SPLIT = required("split", pa.string(), "train, test, ...")
_SIDE = required("side", pa.string(), "prompt, chosen, rejected, or completion")


def _count(name: str, meaning: str) -> pa.Field:
    return required(name, pa.int64(), meaning)


def _measure(name: str, meaning: str) -> pa.Field:
    return column(name, pa.float64(), meaning)


def _spread(of: str) -> list[pa.Field]:
    return [
        _measure("mean", f"mean {of}"),
        _measure("p10", f"10 % quantile of {of}"),
        _measure("p50", f"median {of}"),
        _measure("p90", f"90 % quantile of {of}"),
    ]


TABLES: dict[str, pa.Schema] = {
    "counts": pa.schema([_SPLIT, _count("rows", "rows of the split"), _count("prompts", "different prompts")]),
    "sources": pa.schema(
        [
            _SPLIT,
            required("source", pa.string(), "name of the source the prompts came from"),
            column("license", pa.string(), "licence as that source states it; null: not stated"),
            required("method", pa.string(), "how the rows came about"),
            _count("rows", "rows"),
        ]
    ),
    "lengths": pa.schema(
        [
            _SPLIT,
            _SIDE,
            _count("rows", "rows"),
            *_spread("tokens (of completions: scored tokens)"),
            _count("max", "most tokens"),
            _measure("cut_share", "share that ends by length, without an end-of-turn id; null for prompts"),
            _count("empty", "rows with no token (of completions: none scored)"),
        ]
    ),
    "length_bias": pa.schema(
        [
            _SPLIT,
            _count("rows", "rows"),
            _measure("mean_difference", "mean of chosen tokens - rejected tokens"),
            _measure("share_chosen_longer", "share of pairs whose chosen side has more tokens"),
            _measure("share_rejected_longer", "share of pairs whose rejected side has more tokens"),
            _measure("share_ties", "share of pairs with equally many tokens"),
            _measure(
                "auc", "share of pairs whose chosen side has more tokens, ties counting half; 0.5: as often as not"
            ),
        ]
    ),
    "similarity": pa.schema(
        [
            _SPLIT,
            required(
                "measure",
                pa.string(),
                "edit_distance: token edits from chosen to rejected; shared_prefix, shared_suffix: tokens both begin or end "
                "with, none counted twice; each over the tokens of the longer side",
            ),
            _count("rows", "rows"),
            *_spread("measure"),
        ]
    ),
    "duplicates": pa.schema(
        [
            _SPLIT,
            _count("rows", "rows"),
            _count("prompts", "different prompts"),
            _count("rows_sharing_prompt", "rows whose prompt another row has too"),
            _count(
                "rows_sharing_good_answer",
                "rows whose prompt and chosen (or only) answer another row has too, by tokens",
            ),
            column(
                "chosen_rejected_elsewhere", pa.int64(), "rows whose chosen answer is a rejected one of the same prompt"
            ),
            column("identical_pairs", pa.int64(), "pairs whose sides are the same tokens"),
            column("same_text_other_tokens", pa.int64(), "pairs whose sides are the same text in different tokens"),
        ]
    ),
    "scores": pa.schema(
        [
            _SPLIT,
            required(
                "score",
                pa.string(),
                "chosen, rejected, margin (chosen - rejected), completion, or the name of a scorer",
            ),
            _count("rows", "rows that carry it"),
            *_spread("score"),
            _count("zero", "rows where it is 0: for margin, ties"),
            _count("negative", "rows where it is below 0: for margin, the scores contradict the label"),
        ]
    ),
    "labels": pa.schema(
        [
            _SPLIT,
            required("label", pa.bool_(), "true: desirable completions; false: undesirable ones"),
            _count("rows", "rows"),
            _measure("weight", "sum of their weights"),
            _measure("mean_tokens", "mean scored tokens of their completions: a difference is a length bias"),
            _count("sharing_prompt_with_other_label", "rows whose prompt also has completions of the other label"),
            _count("contradictory", "rows whose prompt and completion also have the other label, by tokens"),
        ]
    ),
    "reference": pa.schema(
        [
            _SPLIT,
            _SIDE,
            _count("rows", "rows with reference log-probs"),
            _count("tokens", "scored tokens in them"),
            _measure("sum_mean", "nats, mean of the answers' summed log-probs"),
            *_spread("log p_ref per token of an answer, in nats"),
            _measure("share_unlikely_tokens", f"share of tokens below {UNLIKELY_TOKEN:g} nats"),
            _measure(
                "share_unlikely_answers", f"share of answers whose mean is below {UNLIKELY_ANSWER:g} nats per token"
            ),
            _count("not_finite", "token log-probs that are NaN or infinite"),
            _count("positive", f"token log-probs above {POSITIVE_LOGP:g}"),
            _count("huge_sums", f"answers whose sum is below {HUGE_SUM:g} nats"),
        ]
    ),
    "reference_margin": pa.schema(
        [
            _SPLIT,
            required(
                "unit",
                pa.string(),
                "sum: log p_ref(chosen) - log p_ref(rejected); per_token: the same of means per token, whose mean is how much "
                "more on-policy the chosen side is",
            ),
            _count("rows", "rows"),
            *_spread("margin, in nats"),
            _measure("share_below_zero", "share of pairs where the reference prefers the rejected side"),
        ]
    ),
    "acceptance": pa.schema(
        [
            _SPLIT,
            _count("prompts", "prompts with scored candidates"),
            _count("candidates", "their scored candidates: draws, equal ones counted as often as they were drawn"),
            _count("distinct", "different ones among them, by tokens"),
            _count("accepted", "candidates that were accepted"),
            _count("shortfall", "candidates that were asked for and not there"),
            _count("tried", "candidates that were looked at, in every sweep anew, until enough were accepted"),
            _measure("observed_rate", "accepted / tried"),
            _measure(
                "expected_rate", "mean over prompts of the chance that a candidate is accepted in the first sweep"
            ),
            _measure("score_before", "mean over prompts of the candidates' mean score"),
            _measure("score_after", "the same of the accepted ones"),
        ]
    ),
    "advantages": pa.schema(
        [
            _SPLIT,
            _count("rows", "samples with a greedy baseline"),
            *_spread("advantage: score of the sample minus that of the prompt's greedy completion"),
            _measure("share_above_zero", "share of samples that score higher than the greedy completion"),
            _measure("score", "mean score of the samples"),
            _measure("baseline_score", "mean score of their greedy completions"),
        ]
    ),
    "marks": pa.schema(
        [
            _SPLIT,
            required("column", pa.string(), "private_data or noise_hints"),
            required("mark", pa.string(), "what the column says"),
            _count("rows", "rows of which it says that; a row may have several marks"),
        ]
    ),
    "ledger_reasons": pa.schema(
        [
            required("stage", pa.string(), "last stage the rows reached"),
            required("status", pa.string(), "kept or set_aside"),
            column("reason", pa.string(), "why they were set aside; null when kept"),
            _count("rows", "rows of the parent, or rows read"),
        ]
    ),
    "ledger_shortfall": pa.schema(
        [
            required(
                "reason", pa.string(), "why a row that was asked for was not made, though its parent row was kept"
            ),
            _count("rows", "rows asked for and not made"),
        ]
    ),
}
