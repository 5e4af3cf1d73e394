"""Which of a prompt's candidates are accepted: statistical rejection sampling, best of n, top k. Pure.

Statistical rejection sampling (RSO, Liu et al. 2023, arXiv:2309.06657, algorithm 1) turns draws from p into draws from
p exp(r / beta) / Z: sweep over the candidates still in, accept each with probability exp((r - r_max) / beta), r_max over
those still in and fixed within the sweep; the accepted leave after it; until k are accepted. Candidates are draws, so two
with equal text are two: merging them changes what is drawn from. `statistical_merged` is the published routine, which does
merge them; it is there to reproduce what was published.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from prefdata import draws
from prefdata.select.paired import ranked

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


class Taken(NamedTuple):
    """Of one prompt: the accepted candidates by number, in the order of acceptance, and how many were tried for them.

    A candidate counts as tried each time that it is looked at, until the last one that is accepted.
    """

    places: Ints
    tried: int


# of one prompt: rewards and answer numbers in the order of their draws, how many to accept, beta, a generator
Sampler = Callable[[Floats, Ints, int, float, np.random.Generator], Taken]


@dataclass(frozen=True)
class Accepted:
    """What was accepted.

    rows     prompt_id, row_id, place: 0 is the first that was accepted; score
    aside    row_id, reason, detail: of every other candidate
    prompts  prompt_id, candidates, distinct, accepted, shortfall, tried (see `Taken`), expected_rate (chance of a
             candidate to be accepted in the first sweep), score_before, score_after (means)
    """

    rows: pl.DataFrame
    aside: pl.DataFrame
    prompts: pl.DataFrame


def select(
    answers: pl.DataFrame, rule: str, *, accept: int, beta: float = 0.5, seed: int = 0, round_: int = 0
) -> Accepted:
    """Up to `accept` candidates of each prompt, of a table as prefdata.select.answers has it.

    beta: in the unit of the scores; the smaller, the more the best are preferred. Only the statistical rules read it.
    """
    scored = ranked(answers, seed, round_).sort("prompt_id", "draw", "row_id")
    groups = scored.group_by("prompt_id", maintain_order=True).agg("row_id", "score", "answer")
    taken: dict[str, list[Any]] = {name: [] for name in ("prompt_id", "row_id", "place", "score")}
    told: list[dict[str, Any]] = []
    for prompt_id, row_ids, scores, keys in groups.iter_rows():
        rewards = np.asarray(scores, np.float64)
        names = np.unique(np.asarray(keys, dtype=object), return_inverse=True)[1].astype(np.int64)
        generator = draws.generator(draws.row_seed(seed, prompt_id, "accept", round_))
        places, tried = RULES[rule](rewards, names, accept, beta, generator)
        for place, number in enumerate(places.tolist()):
            for name, value in zip(taken, (prompt_id, row_ids[number], place, scores[number]), strict=True):
                taken[name].append(value)
        told.append({"tried": tried, **_told(prompt_id, rewards, names, places, accept, beta)})
    rows = pl.DataFrame(taken, schema=dict(zip(taken, (pl.String, pl.String, pl.Int64, pl.Float64), strict=True)))
    order = answers.select("prompt_id").unique(maintain_order=True).with_row_index("order")
    rows = rows.join(order, on="prompt_id").sort("order", "place").drop("order")
    return Accepted(rows, _aside(answers, rows), pl.DataFrame(told, schema=_TOLD))


def statistical(rewards: Floats, names: Ints, accept: int, beta: float, generator: np.random.Generator) -> Taken:
    """Algorithm 1 over draws, in sweeps, until enough are accepted or none are left. beta 0 is top_k."""
    if beta == 0:
        return top_k(rewards, names, accept, beta, generator)
    left = np.arange(len(rewards))
    taken: list[int] = []
    tried = 0
    while len(taken) < accept and len(left):
        hit = generator.random(len(left)) < chances(rewards[left], beta)
        found = np.flatnonzero(hit)[: accept - len(taken)]
        taken += left[found].tolist()
        tried += int(found[-1]) + 1 if len(taken) == accept else len(left)
        left = left[~hit]
    return Taken(np.asarray(taken, np.int64), tried)


def chances(rewards: Floats, beta: float) -> Floats:
    """exp((r - r_max) / beta) of each; rewards so far below that the quotient overflows have none."""
    with np.errstate(over="ignore"):
        found: Floats = np.exp((rewards - rewards.max()) / beta)
    return found


def statistical_merged(rewards: Floats, names: Ints, accept: int, beta: float, generator: np.random.Generator) -> Taken:
    """The same over distinct answers, each once with its first draw's reward, as the published routine does."""
    first = np.sort(np.unique(names, return_index=True)[1])
    places, tried = statistical(rewards[first], names[first], accept, beta, generator)
    return Taken(first[places], tried)


def best_of_n(rewards: Floats, names: Ints, accept: int, beta: float, generator: np.random.Generator) -> Taken:
    """The best candidate alone, whatever `accept` says; of equal ones the first drawn."""
    return top_k(rewards, names, 1, beta, generator)


def top_k(rewards: Floats, names: Ints, accept: int, beta: float, generator: np.random.Generator) -> Taken:
    """The best candidates; of equal ones the first drawn."""
    return Taken(np.argsort(-rewards, kind="stable")[:accept], len(rewards))


RULES: dict[str, Sampler] = {
    "statistical": statistical,
    "statistical_merged": statistical_merged,
    "best_of_n": best_of_n,
    "top_k": top_k,
}

_TOLD = {
    "prompt_id": pl.String,
    "candidates": pl.Int64,
    "distinct": pl.Int64,
    "accepted": pl.Int64,
    "shortfall": pl.Int64,
    "tried": pl.Int64,
    "expected_rate": pl.Float64,
    "score_before": pl.Float64,
    "score_after": pl.Float64,
}


def _told(prompt_id: str, rewards: Floats, names: Ints, places: Ints, accept: int, beta: float) -> dict[str, Any]:
    chance = chances(rewards, beta) if beta > 0 else (rewards == rewards.max()).astype(float)
    return {
        "prompt_id": prompt_id,
        "candidates": len(rewards),
        "distinct": len(np.unique(names)),
        "accepted": len(places),
        "shortfall": max(0, accept - len(places)),
        "expected_rate": float(chance.mean()),
        "score_before": float(rewards.mean()),
        "score_after": float(rewards[places].mean()),
    }


def _aside(answers: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    left = answers.join(rows.select("row_id"), on="row_id", how="anti", maintain_order="left")
    unscored = pl.col("score").is_null() | ~pl.col("score").is_finite()
    reason = pl.when(unscored).then(pl.lit("no_score")).otherwise(pl.lit("not_accepted"))
    detail = pl.when(unscored).then(pl.lit("no score was given")).otherwise(pl.format("the score is {}", "score"))
    return left.select("row_id", reason=reason, detail=detail)
