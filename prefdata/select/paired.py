"""Rules that make pairs from scored completions. Tables in, tables out; each draw is a row's own.

A rule gives candidate pairs of each prompt in the order in which it wants them. What holds for all of them is done once,
in `select`: the chosen side scores higher by at least the margin, the two answers are not the same tokens, and each
prompt keeps its first k pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from prefdata import draws

# prompt_id, chosen, rejected: row ids; place: 0 is the pair that the rule wants first
Candidates = pl.DataFrame
Rule = Callable[[pl.DataFrame], Candidates]


@dataclass(frozen=True)
class Selected:
    """What a selection comes to.

    pairs   prompt_id, chosen, rejected (row ids), chosen_score, rejected_score, margin; in the order of the prompts
    aside   row_id, reason, detail: of every answer that stands in no pair
    """

    pairs: pl.DataFrame
    aside: pl.DataFrame


def select(
    answers: pl.DataFrame,
    rule: str,
    *,
    pairs_per_prompt: int = 1,
    min_margin: float = 0.0,
    seed: int = 0,
    round_: int = 0,
) -> Selected:
    """Pairs of a table as prefdata.select.answers has it.

    min_margin: the least difference of scores, and a difference of 0 is never enough.
    """
    scored = ranked(answers, seed, round_)
    candidates = RULES[rule](scored)
    facts = scored.select("row_id", "score", "answer")
    joined = candidates.join(_side(facts, "chosen"), on="chosen").join(_side(facts, "rejected"), on="rejected")
    joined = joined.with_columns(margin=pl.col("chosen_score") - pl.col("rejected_score"))
    apart = (pl.col("margin") > 0) & (pl.col("margin") >= min_margin)
    different = pl.col("chosen_answer") != pl.col("rejected_answer")
    kept = (
        joined.filter(apart & different)
        .sort("prompt_id", "place")
        .filter(pl.int_range(pl.len()).over("prompt_id") < pairs_per_prompt)
    )
    pairs = kept.select("prompt_id", "chosen", "rejected", "chosen_score", "rejected_score", "margin")
    order = answers.select("prompt_id").unique(maintain_order=True).with_row_index("order")
    pairs = pairs.with_row_index("kept").join(order, on="prompt_id").sort("order", "kept").drop("order", "kept")
    return Selected(pairs, _aside(answers, scored, joined, pairs, min_margin))


def ranked(answers: pl.DataFrame, seed: int, round_: int) -> pl.DataFrame:
    """The answers that have a score, by prompt, the best first, each with a draw of its own in [0, 1)."""
    scored = answers.filter(pl.col("score").is_not_null() & pl.col("score").is_finite())
    drawn = draws.uniform(seed, scored["row_id"].to_list(), "select", round_)
    # of equal scores the draw decides, and of equal draws the id, so that no order of rows does
    return (
        scored.with_columns(draw=pl.Series(drawn, dtype=pl.Float64))
        .sort("prompt_id", "score", "draw", "row_id", descending=[False, True, False, False])
        .with_columns(rank=pl.int_range(pl.len()).over("prompt_id"), count=pl.len().over("prompt_id"))
    )


# -- rules ---------------------------------------------------------------------------------------------------------


def max_min(scored: pl.DataFrame) -> Candidates:
    """The best against the worst, then the second best against the second worst, and so on."""
    best = scored.filter(2 * pl.col("rank") + 1 < pl.col("count")).select("prompt_id", "rank", chosen="row_id")
    worst = scored.select("prompt_id", rank=pl.col("count") - 1 - pl.col("rank"), rejected="row_id")
    return best.join(worst, on=["prompt_id", "rank"]).rename({"rank": "place"})


def max_random_lower(scored: pl.DataFrame) -> Candidates:
    """The best against answers drawn from all that score lower."""
    lower = scored.filter(pl.col("score") < pl.col("score").max().over("prompt_id"))
    return _best_against(scored, lower)


def best_random_rest(scored: pl.DataFrame) -> Candidates:
    """The best against answers drawn from all the others; one that scores the same takes its place and makes no pair.

    Zephyr's rule on UltraFeedback: the tie is not replaced by a further draw.
    """
    return _best_against(scored, scored.filter(pl.col("rank") > 0))


def adjacent(scored: pl.DataFrame) -> Candidates:
    """Each level of score against the next lower one; a level's answer is drawn from those that share it."""
    levels = scored.unique(["prompt_id", "score"], keep="first", maintain_order=True)
    below = pl.col("row_id").shift(-1).over("prompt_id")
    found = levels.select("prompt_id", chosen="row_id", rejected=below, place=pl.int_range(pl.len()).over("prompt_id"))
    return found.filter(pl.col("rejected").is_not_null())


def every(scored: pl.DataFrame) -> Candidates:
    """All pairs, in an order drawn for each prompt."""
    both = _all_pairs(scored)
    drawn = pl.Series("drawn", draws.of_both(both["draw"].to_numpy(), both["draw_right"].to_numpy()), pl.Float64)
    return _placed(both, pl.lit(drawn))


def length_matched(scored: pl.DataFrame) -> Candidates:
    """All pairs, those of the most equal lengths first, and of equal ones the widest margin."""
    both = _all_pairs(scored)
    apart = (pl.col("tokens").cast(pl.Int64) - pl.col("tokens_right")).abs()
    return _placed(both, apart, pl.col("score_right") - pl.col("score"))


def first_round(scored: pl.DataFrame) -> Candidates:
    """RSO's first-round-rank: the answers in pairs as drawn, each once (one is left over of an odd number)."""
    drawn = scored.sort("prompt_id", "draw", "row_id")
    return _matches(drawn).select("prompt_id", "chosen", "rejected", "place")


def tournament(scored: pl.DataFrame) -> Candidates:
    """RSO's tournament-rank: as the first round, then the winners against each other, up to k - 1 pairs of k answers."""
    left = scored.sort("prompt_id", "draw", "row_id")
    rounds: list[pl.DataFrame] = []
    while left.height and left.select(pl.len().over("prompt_id").max()).item() > 1:
        matches = _matches(left)
        rounds.append(matches.with_columns(round=pl.lit(len(rounds))))
        left = left.join(matches.select(row_id="rejected"), on="row_id", how="anti", maintain_order="left")
    if not rounds:
        return pl.DataFrame(schema={**dict.fromkeys(("prompt_id", "chosen", "rejected"), pl.String), "place": pl.Int64})
    order = pl.int_range(pl.len()).over("prompt_id")
    return pl.concat(rounds).sort("round", "prompt_id", "place").select("prompt_id", "chosen", "rejected", place=order)


RULES: dict[str, Rule] = {
    "max_min": max_min,
    "max_random_lower": max_random_lower,
    "best_random_rest": best_random_rest,
    "adjacent": adjacent,
    "every": every,
    "length_matched": length_matched,
    "first_round": first_round,
    "tournament": tournament,
}


def _best_against(scored: pl.DataFrame, others: pl.DataFrame) -> Candidates:
    best = scored.filter(pl.col("rank") == 0).select("prompt_id", chosen="row_id")
    place = pl.int_range(pl.len()).over("prompt_id")
    drawn = others.sort("prompt_id", "draw", "row_id").select("prompt_id", rejected="row_id", place=place)
    return best.join(drawn, on="prompt_id")


def _all_pairs(scored: pl.DataFrame) -> pl.DataFrame:
    """Every answer with every one below it in rank, which has `_right` behind its columns."""
    narrow = scored.select("prompt_id", "row_id", "rank", "score", "tokens", "draw")
    return narrow.join(narrow, on="prompt_id").filter(pl.col("rank") < pl.col("rank_right"))


def _placed(both: pl.DataFrame, *order: pl.Expr) -> Candidates:
    named = {f"by{number}": by for number, by in enumerate(order)}
    ordered = both.with_columns(**named).sort("prompt_id", *named, "row_id", "row_id_right")
    place = pl.int_range(pl.len()).over("prompt_id")
    return ordered.select("prompt_id", chosen="row_id", rejected="row_id_right", place=place)


def _matches(drawn: pl.DataFrame) -> pl.DataFrame:
    """Neighbours in the order given, two by two; the higher score wins, and of equal ones the first."""
    numbered = drawn.with_columns(number=pl.int_range(pl.len()).over("prompt_id"))
    side = numbered.select("prompt_id", "row_id", "score", place=pl.col("number") // 2, second=pl.col("number") % 2)
    first = side.filter(pl.col("second") == 0).drop("second")
    second = side.filter(pl.col("second") == 1).drop("second")
    met = first.join(second, on=["prompt_id", "place"])
    wins = pl.col("score") >= pl.col("score_right")
    return met.select(
        "prompt_id",
        "place",
        chosen=pl.when(wins).then("row_id").otherwise("row_id_right"),
        rejected=pl.when(wins).then("row_id_right").otherwise("row_id"),
    ).sort("prompt_id", "place")


# -- what stands in no pair ----------------------------------------------------------------------------------------


def _side(facts: pl.DataFrame, name: str) -> pl.DataFrame:
    return facts.rename({"row_id": name, "score": f"{name}_score", "answer": f"{name}_answer"})


def _aside(
    answers: pl.DataFrame, scored: pl.DataFrame, joined: pl.DataFrame, pairs: pl.DataFrame, min_margin: float
) -> pl.DataFrame:
    """Why each answer stands in no pair, by what is most particular to it."""
    used = pl.concat([pairs.select(row_id="chosen"), pairs.select(row_id="rejected")]).unique()
    short = joined.filter((pl.col("margin") > 0) & (pl.col("margin") < min_margin))
    near = pl.concat([short.select("margin", row_id=name) for name in ("chosen", "rejected")])
    near = near.group_by("row_id").agg(widest=pl.col("margin").max())
    of_prompt = scored.group_by("prompt_id").agg(count=pl.len(), levels=pl.col("score").n_unique())
    left = answers.join(used, on="row_id", how="anti", maintain_order="left")
    left = left.join(of_prompt, on="prompt_id", how="left", maintain_order="left")
    left = left.join(near, on="row_id", how="left", maintain_order="left")
    unscored = pl.col("score").is_null() | ~pl.col("score").is_finite()
    cases = (
        (unscored, "no_score", pl.lit("no score was given")),
        (pl.col("count") < 2, "single_answer", pl.lit("no other answer of the prompt has a score")),
        (pl.col("levels") < 2, "equal_scores", pl.format("all {} answers have the score {}", "count", "score")),
        (pl.col("widest").is_not_null(), "margin_too_small", pl.format("the margin is {}", "widest")),
    )
    reason, detail = pl.lit("not_selected"), pl.lit("the rule chose other answers of the prompt")
    for case, name, words in reversed(cases):
        reason = pl.when(case).then(pl.lit(name)).otherwise(reason)
        detail = pl.when(case).then(words).otherwise(detail)
    return left.select("row_id", reason=reason, detail=detail)
