"""Samples against the greedy completion of their prompt (ReMax, Li et al. 2023, arXiv:2310.10505). Pure.

The greedy completion's reward is the baseline: advantage = r - r_greedy, unbiased because the baseline does not depend on
the sample.
"""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Compared:
    """What the comparison comes to.

    rows   prompt_id, row_id, baseline (the greedy completion's row id), baseline_score, advantage: one for each sample
    pairs  prompt_id, chosen, rejected, chosen_score, rejected_score, margin: sample and greedy in either order
    aside  row_id, reason, detail: samples without a baseline, greedy completions that stand for no sample
    """

    rows: pl.DataFrame
    pairs: pl.DataFrame
    aside: pl.DataFrame


def compare(answers: pl.DataFrame, *, min_margin: float = 0.0) -> Compared:
    """Of a table as prefdata.select.answers has it. A pair needs scores that differ, by at least the margin."""
    scored = answers.filter(pl.col("score").is_not_null() & pl.col("score").is_finite())
    # a baseline is the greedy completion of the model that drew the sample; of several equal ones the least id stands
    of_model = ["prompt_id", "generator"]
    greedy = scored.filter("greedy").sort("row_id").unique(of_model, keep="first", maintain_order=True)
    greedy = greedy.select(*of_model, baseline="row_id", baseline_score="score", baseline_answer="answer")
    samples = scored.filter(~pl.col("greedy"))
    met = samples.join(greedy, on=of_model, nulls_equal=True, maintain_order="left")
    met = met.with_columns(advantage=pl.col("score") - pl.col("baseline_score"))
    apart = (pl.col("advantage") != 0) & (pl.col("advantage").abs() >= min_margin)
    won = pl.col("advantage") > 0
    pairs = met.filter(apart & (pl.col("answer") != pl.col("baseline_answer"))).select(
        "prompt_id",
        chosen=pl.when(won).then("row_id").otherwise("baseline"),
        rejected=pl.when(won).then("baseline").otherwise("row_id"),
        chosen_score=pl.max_horizontal("score", "baseline_score"),
        rejected_score=pl.min_horizontal("score", "baseline_score"),
        margin=pl.col("advantage").abs(),
    )
    rows = met.select("prompt_id", "row_id", "baseline", "baseline_score", "advantage")
    return Compared(rows, pairs, _aside(answers, rows))


def _aside(answers: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    used = pl.concat([rows.select("row_id"), rows.select(row_id="baseline")]).unique()
    left = answers.join(used, on="row_id", how="anti", maintain_order="left")
    unscored = pl.col("score").is_null() | ~pl.col("score").is_finite()
    reason = (
        pl.when(unscored)
        .then(pl.lit("no_score"))
        .when(pl.col("greedy"))
        .then(pl.lit("no_sample"))
        .otherwise(pl.lit("no_baseline"))
    )
    return left.select("row_id", reason=reason, detail=pl.lit(None, pl.String))
