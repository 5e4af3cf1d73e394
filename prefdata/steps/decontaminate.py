"""Prompts of evaluations in the training data: the same words, or much of the same wording.

A prompt is contaminated if what the user says in it, or in a turn of at least four words, is word for word the first
turn (or all turns) of an evaluation's prompt, whatever the case, spacing and punctuation; or if it holds a large enough
share of the runs of n words of one of its turns. Texts shorter than a run are compared whole only. n = 8 and a share of one
half are those of Tulu 3 (Lambert et al. 2024, arXiv:2411.15124, section 3.2), counted in runs instead of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import polars as pl

from prefdata.facts import Ragged
from prefdata.sources.evaluations import Evaluation
from prefdata.steps.batch import Batch
from prefdata.steps.chain import Verdict
from prefdata.steps.words import ngrams, normal, words

RUN = 8  # words
SHARE = 0.5
_LEAST_WORDS = 4  # of a turn that is an evaluation's prompt by itself: "Why?" is part of many conversations
_WORD_BYTES = 8


@dataclass(frozen=True)
class _Evaluated:
    """phrases: what is word for word an evaluation's prompt, and which; runs: run, text; texts: text, runs, where."""

    phrases: dict[bytes, str]
    runs: pl.DataFrame
    texts: pl.DataFrame


class Decontaminate:
    """Prompts of these evaluations are set aside, with the evaluation's name."""

    name = "contamination"

    def __init__(self, evaluations: Sequence[Evaluation], *, run: int = RUN, share: float = SHARE) -> None:
        self._run, self._share = run, share
        self._evaluated = _evaluated(evaluations, run)
        self._known = np.unique(self._evaluated.runs["run"].to_numpy())
        self.reads = [[f"{each.name} {each.sha256}" for each in evaluations], run, share]

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """What each prompt was found to hold; null: nothing of an evaluation."""
        overlaps = self._overlaps([" ".join(texts) for texts in batch.user_texts])
        found = [equal or overlaps.get(row) for row, equal in enumerate(map(self._equal, _phrases(batch.user_texts)))]
        return {"contaminated": pl.Series(found, dtype=pl.String)}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """Those that hold something."""
        found = rows.filter(pl.col("contaminated").is_not_null())
        return Verdict(found.select("row_id", reason=pl.lit("contaminated"), detail="contaminated"))

    def _equal(self, phrases: list[bytes]) -> str | None:
        known = self._evaluated.phrases
        return next((f"{known[phrase]}: the same words" for phrase in phrases if phrase in known), None)

    def _overlaps(self, texts: list[str]) -> dict[int, str]:
        """What each text that holds enough runs of an evaluation's holds most of."""
        runs = _runs(texts, self._run)
        rows = np.repeat(np.arange(len(texts)), runs.lengths)
        if not len(self._known) or not len(runs.values):
            return {}
        places = np.minimum(np.searchsorted(self._known, runs.values), len(self._known) - 1)
        hits = self._known[places] == runs.values
        found = (
            pl.DataFrame({"row": rows[hits], "run": runs.values[hits]}).unique().join(self._evaluated.runs, on="run")
        )
        shares = found.group_by("row", "text").agg(held=pl.len()).join(self._evaluated.texts, on="text")
        enough = shares.with_columns(share=pl.col("held") / pl.col("runs")).filter(pl.col("share") >= self._share)
        most = enough.sort("row", -pl.col("share"), "text").unique("row", keep="first", maintain_order=True)
        percent = (pl.col("share") * 100).floor().cast(pl.Int64)
        told = most.select("row", pl.format(f"{{}}: {{}} % of its runs of {self._run} words", "where", percent))
        return dict(told.rows())


def _evaluated(evaluations: Sequence[Evaluation], run: int) -> _Evaluated:
    asked = [
        (f"{each.name} row {number}", list(map(normal, prompt)))
        for each in evaluations
        for number, prompt in enumerate(each.prompts)
    ]
    phrases: dict[bytes, str] = {}
    spelled = [_each(words(prompt)) for _, prompt in asked]
    for part in ([turns[0] for turns in spelled], [b"".join(turns) for turns in spelled]):
        for (where, _), phrase in zip(asked, part, strict=True):
            phrases.setdefault(phrase, where)
    phrases.pop(b"", None)
    texts = [(where, text) for where, prompt in asked for text in prompt]
    runs = _runs([text for _, text in texts], run)
    of = np.repeat(np.arange(len(texts)), runs.lengths)
    held = pl.DataFrame({"run": runs.values, "text": of}, schema={"run": pl.UInt64, "text": pl.Int64}).unique()
    counts = held.group_by("text").agg(runs=pl.len())
    named = pl.DataFrame({"text": range(len(texts)), "where": [where for where, _ in texts]})
    return _Evaluated(phrases, held, named.join(counts, on="text"))


def _runs(texts: Sequence[str], run: int) -> Ragged:
    """The full runs of each text."""
    found = words(texts, symbols=False)
    runs = ngrams(found, run)
    full = np.repeat(found.lengths >= run, runs.lengths)
    return Ragged(runs.values[full], np.where(found.lengths >= run, runs.lengths, 0))


def _phrases(prompts: Sequence[Sequence[str]]) -> list[list[bytes]]:
    """Of each prompt, all its texts together and those long enough to be looked at alone, as words."""
    turns = _each(words(list(chain.from_iterable(prompts))))
    ends = np.cumsum([len(texts) for texts in prompts]).tolist()
    each = [turns[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [[b"".join(said), *(turn for turn in said if len(turn) >= _LEAST_WORDS * _WORD_BYTES)] for said in each]


def _each(words: Ragged) -> list[bytes]:
    """The words of each text, as one key."""
    data, ends = words.values.tobytes(), (words.ends * _WORD_BYTES).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
