"""Hints that a label may be wrong, as a column to look at or to weigh rows by. Nothing is set aside.

  both_orders       pairs: the same two answers to the prompt are also compared the other way round
  both_labels       unpaired: the same answer to the prompt is also judged the other way
  scores_disagree   pairs: rejected has the higher score, or the margin is below 0; pairs and completions: the same answer to
                    the prompt has another score elsewhere; completions: of two answers to the prompt, `score` is higher for
                    one and most of the named scores are higher for the other
  unlikely          pairs: by the stated preference, chosen is more likely the worse one

Prompts and answers are the same if they are equal when normal (`steps.words.normal`).
"""

from typing import Any

import polars as pl

from prefdata.steps.batch import Batch
from prefdata.steps.chain import Verdict
from schemas import completions, pairs, unpaired
from schemas.cleaned import NOISE_HINTS

COLUMN = NOISE_HINTS.name
_READ = {
    pairs.KIND: ("chosen_score", "rejected_score", "margin", "preference"),
    completions.KIND: ("score", "scores"),
    unpaired.KIND: ("label",),
}


class NoiseHints:
    """The column; null where nothing was found."""

    name = COLUMN

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.reads: Any = [COLUMN, kind]

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """What rows are the same by, and what is said of them."""
        found = {f"{side}_key": key for side, key in batch.side_keys.items()}
        stated = [name for name in _READ.get(self._kind, ()) if name in batch.rows.column_names]
        return {"prompt_key": batch.prompt_keys, **found, **{name: pl.Series(batch.rows[name]) for name in stated}}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """Hints of every row."""
        found = [hint for look in _LOOKS.get(self._kind, ()) for hint in look(rows)]
        if not found:
            return Verdict(columns=rows.select("row_id", pl.lit(None, pl.List(pl.String)).alias(COLUMN)))
        told = pl.concat(found).unique().sort("row_id", COLUMN).group_by("row_id", maintain_order=True).agg(COLUMN)
        return Verdict(columns=rows.select("row_id").join(told, on="row_id", how="left", maintain_order="left"))


def _both_orders(rows: pl.DataFrame) -> list[pl.DataFrame]:
    flipped = rows.select("prompt_key", chosen_key="rejected_key", rejected_key="chosen_key").unique()
    both = rows.join(flipped, on=["prompt_key", "chosen_key", "rejected_key"], how="semi")
    return [_hint(both.filter(pl.col("chosen_key") != pl.col("rejected_key")), "both_orders")]


def _both_labels(rows: pl.DataFrame) -> list[pl.DataFrame]:
    labels = pl.col("label").n_unique().over("prompt_key", "completion_key")
    return [_hint(rows.filter(labels > 1), "both_labels")]


def _unlikely(rows: pl.DataFrame) -> list[pl.DataFrame]:
    return [_hint(rows.filter(pl.col("preference") < 0.5), "unlikely")]


def _scores_of_pairs(rows: pl.DataFrame) -> list[pl.DataFrame]:
    wrong = rows.filter((pl.col("chosen_score") < pl.col("rejected_score")) | (pl.col("margin") < 0))
    sides = [
        rows.select("row_id", "prompt_key", answer=f"{side}_key", score=f"{side}_score")
        for side in ("chosen", "rejected")
    ]
    return [_hint(wrong, _DISAGREE), _hint(_scored_twice(pl.concat(sides)), _DISAGREE)]


def _scores_of_completions(rows: pl.DataFrame) -> list[pl.DataFrame]:
    own = rows.select("row_id", "prompt_key", "score", answer="completion_key")
    found = [_hint(_scored_twice(own), _DISAGREE)]
    if "scores" not in rows.columns:
        return found
    named = (
        rows.select("row_id", "scores").explode("scores").drop_nulls("scores").unnest("scores").rename({"score": "by"})
    )
    named = own.drop_nulls("score").join(named, on="row_id")
    both = named.join(named, on=["prompt_key", "scorer"], suffix="_other").filter(
        pl.col("score") > pl.col("score_other")
    )
    against = (pl.col("by") < pl.col("by_other")).mean()
    most = both.group_by("row_id", "row_id_other").agg(against=against).filter(pl.col("against") > 0.5)
    return [*found, _hint(most, _DISAGREE), _hint(most.select(row_id="row_id_other"), _DISAGREE)]


def _scored_twice(answers: pl.DataFrame) -> pl.DataFrame:
    """row_id, prompt_key, answer, score -> those whose answer has several scores."""
    scores = pl.col("score").n_unique().over("prompt_key", "answer")
    return answers.drop_nulls("score").filter(scores > 1)


def _hint(rows: pl.DataFrame, hint: str) -> pl.DataFrame:
    return rows.select("row_id", pl.lit(hint).alias(COLUMN))


_DISAGREE = "scores_disagree"
_LOOKS = {
    pairs.KIND: (_both_orders, _scores_of_pairs, _unlikely),
    completions.KIND: (_scores_of_completions,),
    unpaired.KIND: (_both_labels,),
}
