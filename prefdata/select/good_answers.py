"""Which rows of a version stand for a good answer that negatives are made for: each good answer once. Pure."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from prefdata.records import SetAside

_COLUMNS = ("row_id", "answer_id", "preference", "prompt_id", "score", "label")


class GoodAnswers:
    """Looks over all answers of a version, then says of each table which rows stand for none.

    tables      gives the version's answers anew, each with row_id, answer_id, prompt_id, preference, score and label
    by_score    whether only the best scored answers of a prompt are good; of pairs, the preference says which side is, of
                judged answers the label

    Of rows with one prompt and good answer the least row_id stands for all, so the order of rows decides nothing. It
    keeps some 300 bytes for each answer.
    """

    def __init__(self, tables: Callable[[], Iterator[pa.Table]], *, by_score: bool) -> None:
        self._best: dict[str, float] = {}
        self._first: dict[str, str] = {}
        self._bad = {row["answer_id"] for row in _rows(tables) if row["label"] is False}
        if by_score:
            for row in _rows(tables):
                if row["score"] is not None:
                    best = self._best.get(row["prompt_id"], row["score"])
                    self._best[row["prompt_id"]] = max(row["score"], best)
        for row in _rows(tables):
            if self._not_good(row) is None:
                first = self._first.get(row["answer_id"], row["row_id"])
                self._first[row["answer_id"]] = min(row["row_id"], first)

    def refused(self, table: pa.Table) -> dict[str, SetAside]:
        """The rows that stand for no good answer, and why."""
        found = {}
        for row in table.select(_COLUMNS).to_pylist():
            refused = self._not_good(row) or self._not_first(row)
            if refused is not None:
                found[row["row_id"]] = refused
        return found

    def _not_good(self, row: dict[str, Any]) -> SetAside | None:
        if row["label"] is False:
            return SetAside("judged_undesirable")
        if row["answer_id"] in self._bad:
            return SetAside("contradicted", "another row says that the answer is undesirable")
        preference, score = row["preference"], row["score"]
        if preference is not None and preference < 0.5:
            return SetAside("chosen_not_preferred", f"chosen is better with probability {preference}")
        best = self._best.get(row["prompt_id"])
        if best is not None and score is not None and score < best:
            return SetAside("lower_score", f"the score is {score:g}, and the best {best:g}")
        return None

    def _not_first(self, row: dict[str, Any]) -> SetAside | None:
        first = self._first[row["answer_id"]]
        if first == row["row_id"]:
            return None
        return SetAside("duplicate_answer", f"row {first} has the same prompt and good answer")


def _rows(tables: Callable[[], Iterator[pa.Table]]) -> Iterator[dict[str, Any]]:
    return (row for table in tables() for row in table.select(_COLUMNS).to_pylist())
