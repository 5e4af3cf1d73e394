"""Any chain of steps: every row is kept or set aside once, and neither order, batches nor threads change which."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.builds.cleaning import Options, steps
from prefdata.sources.evaluations import Evaluation
from prefdata.steps import chain
from prefdata.steps.batch import Batch
from schemas import completions, pairs, prompts, unpaired
from schemas.reasons import REASONS
from tests.test_steps_duplicates import LONG, answered, asked, table

QUICK = settings(max_examples=20, deadline=None)
KINDS = {kind.KIND: kind for kind in (pairs, completions, unpaired, prompts)}
EXAM = Evaluation("exam", "", (("What is the weight of the moon?",), (LONG,)))
ASKED = (
    LONG,
    f"{LONG} now",
    LONG.upper(),
    "Who is it?",
    "who is it",
    "What is the weight of the moon",
    "我能问什么？",
    "Mail ab@cd.de",
)
SAID = ("yes", "Yes", "no", f"{LONG} indeed", f"{LONG}, indeed, yes", "Das ist nicht der Weg, den ich gehen will.")
CHOICES: dict[str, list[Any]] = {
    "min_prompt_tokens": [None, 3],
    "max_answer_tokens": [None, 6],
    "languages": [(), ("en", "zh")],
    "decontaminate": [False, True],
    "exact": [None, "prompts", "rows"],
    "near": [None, "prompts", "rows"],
    "max_per_prompt": [None, 1, 2],
    "max_per_source": [None, 4],
    "test_fraction": [None, 0.0, 0.5],
    "private_data": [None, "flag"],
    "noise_hints": [False, True],
}
drawn_rows = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=16
)
chosen = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()})


def row(kind: str, number: int, prompt: int, one: int, other: int) -> dict[str, Any]:
    said = {"pairs": ("chosen", "rejected"), "prompts": ()}.get(kind, ("completion",))
    found: dict[str, Any] = {
        "row_id": f"r{number:02}",
        "prompt_id": f"p{prompt}",
        "prompt": asked(ASKED[prompt]),
        "prompt_tokens": len(ASKED[prompt].split()),
        "source": f"s{number % 2}",
    }
    for side, answer in zip(said, (one, other), strict=False):
        found |= {side: answered(SAID[answer]), f"{side}_tokens": len(SAID[answer].split())}
    return found | ({"label": bool(other % 2)} if kind == "unpaired" else {})


def chain_of(kind: str, options: dict[str, Any]) -> list[Any]:
    given_ = {name: value for name, value in options.items() if name != "decontaminate"}
    return steps(Options(**given_), kind, [EXAM] if options["decontaminate"] else [])


def run(kind: str, found: list[Any], parts: dict[str, list[dict[str, Any]]], size: int) -> chain.Cleaned:
    read = [
        chain.read(found, Batch(kind, split, table(KINDS[kind], rows[at : at + size])))
        for split, rows in parts.items()
        for at in range(0, len(rows), size)
    ]
    return chain.clean(found, pl.concat(read))


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(drawn_rows, chosen, st.randoms(use_true_random=False), st.integers(1, 7))
def test_ledgers_add_up_and_order_and_batches_change_nothing(
    kind: str, drawn: list[tuple[int, int, int, bool]], options: dict[str, Any], random: Any, size: int
) -> None:
    rows = {
        split: [row(kind, n, *each[:3]) for n, each in enumerate(drawn) if each[3] is test]
        for split, test in (("train", False), ("test", True))
    }
    found = chain_of(kind, options)
    whole = run(kind, found, rows, 99)
    ids = sorted(each["row_id"] for part in rows.values() for each in part)
    assert sorted([*whole.kept["row_id"], *whole.aside["row_id"]]) == ids
    assert set(whole.aside["stage"]) <= {step.name for step in found}
    assert set(whole.aside["reason"]) <= set(REASONS)
    assert whole.aside["detail"].null_count() == 0
    assert whole.kept["split"].null_count() == 0
    held_out = {each["row_id"] for each in rows["test"]}
    assert held_out & set(whole.kept["row_id"]) <= set(whole.kept.filter(pl.col("split") == "test")["row_id"])
    mixed = {split: random.sample(rows[split], len(rows[split])) for split in ("test", "train")}
    again = run(kind, found, mixed, size)
    assert again.kept.equals(whole.kept)
    assert again.aside.sort("row_id").equals(whole.aside.sort("row_id"))


COUNTED = """
from tests.test_steps_chain import CHOICES, chain_of, row, run
options = {name: values[-1] for name, values in CHOICES.items()}
rows = {"train": [row("pairs", n, n % 8, n * 5 % 6, n * 7 % 6) for n in range(90)]}
found = run("pairs", chain_of("pairs", options), rows, 40)
print(found.kept.rows(), found.aside.rows())
"""


def test_how_many_threads_run_changes_nothing() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", COUNTED],
            env={**os.environ, "POLARS_MAX_THREADS": threads, "RAYON_NUM_THREADS": threads},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(said) == 1


def test_columns_that_steps_share_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefdata.steps import batch

    sketched: list[int] = []
    own = batch.sketches
    monkeypatch.setattr(batch, "sketches", lambda texts: sketched.append(len(texts)) or own(texts))  # type: ignore[func-returns-value]
    found = chain_of(
        "prompts", {name: values[0] for name, values in CHOICES.items()} | {"near": "prompts", "test_fraction": 0.1}
    )
    run("prompts", found, {"train": [row("prompts", n, n, 0, 0) for n in range(3)]}, 9)
    assert sketched == [3]


def test_a_batch_is_read_alike_whole_or_in_chunks() -> None:
    rows = table(pairs, [row("pairs", n, n % 8, n % 6, (n + 1) % 6) for n in range(12)])
    chunked = pa.concat_tables([rows.slice(0, 5), rows.slice(5)])
    found = chain_of("pairs", {name: values[-1] for name, values in CHOICES.items()})
    whole, parts = (chain.read(found, Batch("pairs", "train", each)) for each in (rows, chunked))
    assert whole.equals(parts)
