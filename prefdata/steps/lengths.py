"""Rows whose prompt or answers are too short or too long, in tokens as they are stored."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from prefdata.steps.batch import Batch
from prefdata.steps.chain import Verdict


@dataclass(frozen=True)
class Bounds:
    """The fewest and the most tokens; None: no bound."""

    least: int | None = None
    most: int | None = None

    def __bool__(self) -> bool:
        return self != Bounds()


class Lengths:
    """Bounds on the prompt's tokens, and on the scored tokens of every answer."""

    name = "lengths"

    def __init__(self, prompt: Bounds, answer: Bounds, sides: tuple[str, ...]) -> None:
        self._bounds = {"prompt": prompt, **dict.fromkeys(sides, answer)}
        self.reads: Any = ["tokens", *sides]

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """Counts that the rows carry."""
        return {f"{side}_tokens": pl.Series(batch.rows[f"{side}_tokens"]) for side in self._bounds}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """Those outside, by the first bound that they break."""
        broken = [found for side, bounds in self._bounds.items() for found in _broken(side, bounds)]
        judged = rows.select(
            "row_id",
            reason=pl.coalesce(
                pl.lit(None, pl.String), *(pl.when(outside).then(pl.lit(reason)) for outside, reason, _ in broken)
            ),
            detail=pl.coalesce(
                pl.lit(None, pl.String), *(pl.when(outside).then(detail) for outside, _, detail in broken)
            ),
        )
        return Verdict(judged.drop_nulls("reason"))


def _broken(side: str, bounds: Bounds) -> list[tuple[pl.Expr, str, pl.Expr]]:
    """Of each bound: who breaks it, the reason, and what to say of them."""
    tokens, part = pl.col(f"{side}_tokens"), "prompt" if side == "prompt" else "answer"
    found = []
    if bounds.least is not None:
        detail = pl.format(f"{side} has {{}} tokens, at least {bounds.least} are asked for", tokens)
        found.append((tokens < bounds.least, f"{part}_below_length", detail))
    if bounds.most is not None:
        detail = pl.format(f"{side} has {{}} tokens, at most {bounds.most} are asked for", tokens)
        found.append((tokens > bounds.most, f"{part}_above_length", detail))
    return found
