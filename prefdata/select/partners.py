"""A frozen mismatched partner for each judged row: the completion of another prompt, which KTO reads behind the row's own.

Each row draws for itself among all answers but those that its own prompt has anywhere, so that neither the order of the
rows nor how they are cut into files changes a partner, and a row that is left out changes no other row's. Pure.
"""

from typing import Any

import numpy as np
import polars as pl

from prefdata import draws

Places = np.ndarray[Any, np.dtype[np.int64]]


def partners(rows: pl.DataFrame, pool: pl.DataFrame, seed: int) -> pl.DataFrame:
    """name, partner (a name of the pool; null: every answer there is, is one that the row's prompt has, too).

    rows: name, prompt_id. pool: name, prompt_id, answer (equal for equal answers, whatever prompt they are to); it holds
    the rows' own answers, too. An answer that several prompts have is drawn as often as it has prompts.
    """
    every = pool.group_by("answer", "prompt_id").agg(pl.col("name").min()).sort("answer", "prompt_id")
    prompts = every.select("prompt_id").unique().sort("prompt_id").with_row_index("prompt")
    blocks = every.with_row_index("place").group_by("answer").agg(start=pl.col("place").min(), size=pl.len())
    own = every.join(blocks, on="answer").join(prompts, on="prompt_id").sort("prompt", "start")
    prompt = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")["prompt"]
    if prompt.null_count():
        raise ValueError("a row's prompt is not in the pool")
    place = _drawn(
        np.asarray(prompt, np.int64),
        draws.uniform(seed, rows["name"].to_list(), "partner"),
        of=np.asarray(own["prompt"], np.int64),
        start=np.asarray(own["start"], np.int64),
        size=np.asarray(own["size"], np.int64),
        total=every.height,
    )
    there = place < every.height
    names = every["name"].gather(np.where(there, place, 0)) if every.height else pl.Series([], dtype=pl.String)
    return pl.DataFrame({"name": rows["name"], "partner": names}).with_columns(
        partner=pl.when(pl.Series(there)).then("partner")
    )


def _drawn(prompt: Places, share: np.ndarray, *, of: Places, start: Places, size: Places, total: int) -> Places:
    """(rows,) a place below `total` outside the blocks of the row's prompt; `total` where there is none.

    prompt, share: each row's prompt and its number in [0, 1). of, start, size: the blocks that are barred, by prompt and
    start. The draw is one among the places that are left, moved past every barred block that stands before it.
    """
    count = np.bincount(of, minlength=int(prompt.max(initial=-1)) + 1)
    first = np.cumsum(count) - count
    barred = np.bincount(of, weights=size, minlength=len(count)).astype(np.int64)[prompt]
    place: Places = np.minimum((share * (total - barred)).astype(np.int64), total - barred - 1)
    place[total == barred] = total
    for rank in range(int(count.max(initial=0))):
        rows = np.flatnonzero((count[prompt] > rank) & (place < total))
        block = first[prompt[rows]] + rank
        place[rows] += np.where(place[rows] >= start[block], size[block], 0)
    return place
