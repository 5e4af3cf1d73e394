"""Sentiment by a word list: VADER's compound score (Hutto and Gilbert 2014, ICWSM), a reward that needs no model."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from prefdata.errors import UserError
from prefdata.scorers import Settings, Verdict
from prefdata.scorers.texts import answer


class Lexicon:
    """From -1, the most negative, to 1; of English text."""

    runs: str | None = None

    def __init__(self, what: str | None, settings: Settings) -> None:
        if what not in (None, "vader"):
            raise UserError(f"there is no lexicon {what!r}; there is: vader.")
        self.fingerprint: dict[str, Any] = {"scorer": "lexicon", "vaderSentiment": version("vaderSentiment")}
        self._analyser: Any = None
        self.about: dict[str, Any] = {}

    def members(self, rows: pa.Table) -> list[str]:
        """The rows: their ids cover what the answers say."""
        found: list[str] = rows["row_id"].to_pylist()
        return found

    def score(self, rows: pa.Table, tell: Callable[[float], None], spend: Callable[[int], None]) -> Sequence[Verdict]:
        """The compound score of each answer; 0 where no word is known."""
        if self._analyser is None:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

            self._analyser = SentimentIntensityAnalyzer()
        said = rows["completion"].to_pylist()
        return [float(self._analyser.polarity_scores(answer(turns))["compound"]) for turns in said]

    def close(self) -> None:
        """Let go of the word list."""
        self._analyser = None
