"""Desirable and undesirable completions from pairs, scores or votes. Pure.

What is judged both ways in one place is not guessed: both lines are set aside.
"""

from dataclasses import dataclass

import polars as pl

RULES = ("threshold", "mean", "median")
NOTHING = {"row_id": pl.String, "reason": pl.String, "detail": pl.String}


@dataclass(frozen=True)
class Labelled:
    """rows: row_id, label; aside: row_id, reason, detail."""

    rows: pl.DataFrame
    aside: pl.DataFrame


def from_scores(answers: pl.DataFrame, rule: str, *, threshold: float = 0.0, min_margin: float = 0.0) -> Labelled:
    """Above the bar desirable, below it undesirable; on it, or nearer than min_margin, neither.

    threshold: the bar is a number. mean, median: the bar is that of the prompt's scores, so that a prompt of one answer,
    or of equal scores, says nothing.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}")
    known = pl.col("score").is_not_null() & pl.col("score").is_finite()
    finite = pl.when(known).then("score")
    bar = {
        "threshold": pl.lit(threshold),
        "mean": finite.mean().over("prompt_id"),
        "median": finite.median().over("prompt_id"),
    }[rule]
    judged = answers.with_columns(bar=bar, levels=finite.n_unique().over("prompt_id")).with_columns(
        apart=pl.col("score") - pl.col("bar")
    )
    clear = known & (pl.col("apart") != 0) & (pl.col("apart").abs() >= min_margin)
    rows = judged.filter(clear).select("row_id", "prompt_id", "answer", label=pl.col("apart") > 0)
    words = pl.format("the score is {}, and the bar {}", "score", "bar")
    left = judged.filter(~clear).select(
        "row_id",
        reason=pl.when(known).then(pl.lit("on_the_bar")).otherwise(pl.lit("no_score")),
        detail=pl.when(known).then(words).otherwise(pl.lit("no score was given")),
    )
    return without_contradictions(Labelled(rows, left))


def from_labels(verdicts: pl.DataFrame) -> Labelled:
    """Each verdict as it is; an answer that was judged both ways is no answer to learn from.

    verdicts: row_id, prompt_id, answer, label.
    """
    rows = verdicts.select("row_id", "prompt_id", "answer", "label")
    return without_contradictions(Labelled(rows, pl.DataFrame(schema=NOTHING)))


def from_votes(verdicts: pl.DataFrame, *, min_agreement: float = 0.5) -> Labelled:
    """What most of the votes say of an answer to a prompt; a draw, or less agreement than was asked for, says nothing.

    verdicts: row_id, prompt_id, answer, label, votes (how many the verdict stands for), sure (the share of them that
    agree with the label). min_agreement: the least share of an answer's votes for its label.
    """
    for_it = pl.when("label").then("sure").otherwise(1 - pl.col("sure")) * pl.col("votes")
    place = ("prompt_id", "answer")
    counted = verdicts.with_columns(share=for_it.sum().over(place) / pl.col("votes").sum().over(place))
    label, share = pl.col("share") > 0.5, pl.col("share")
    agreement = pl.max_horizontal(share, 1 - share)
    decided = (share != 0.5) & (agreement >= min_agreement)
    words = pl.format("{} % of the votes call it desirable", (100 * share).round(1))
    draw = counted.filter(~decided).select("row_id", reason=pl.lit("tie"), detail=words)
    clear = counted.filter(decided).with_columns(said="label", label=label)
    outvoted = clear.filter(pl.col("said") != pl.col("label"))
    agreeing = clear.filter(pl.col("said") == pl.col("label")).select("row_id", "prompt_id", "answer", "label")
    over = outvoted.select("row_id", reason=pl.lit("outvoted"), detail=words)
    return without_contradictions(Labelled(agreeing, pl.concat([draw, over])))


def without_contradictions(labelled: Labelled) -> Labelled:
    """Each answer of a prompt once, with the one label that it has; `rows` need prompt_id and answer."""
    rows = labelled.rows
    of_answer = rows.with_columns(
        labels=pl.col("label").n_unique().over("prompt_id", "answer"),
        first=pl.col("row_id").min().over("prompt_id", "answer"),
    )
    both = of_answer.filter(pl.col("labels") > 1).select(
        "row_id",
        reason=pl.lit("contradicted"),
        detail=pl.lit("the same answer is desirable in one place and undesirable in another"),
    )
    single = of_answer.filter(pl.col("labels") == 1)
    again = single.filter(pl.col("row_id") != pl.col("first")).select(
        "row_id",
        reason=pl.lit("duplicate_answer"),
        detail=pl.format("row {} has the same prompt and answer, with the same label", "first"),
    )
    kept = single.filter(pl.col("row_id") == pl.col("first")).select("row_id", "label")
    return Labelled(kept, pl.concat([labelled.aside, both, again]))
