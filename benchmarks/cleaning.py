"""What cleaning costs: near-duplicates, decontamination and splits of made prompts.

    python -m benchmarks.cleaning --rows 1000000

Prompts are made of a vocabulary whose words come as often as words do (Zipf), a tenth of them near-copies of earlier ones
and a few holding an evaluation's prompt. They are made in batches, outside of the clock, and go through the very steps of
`flows.clean` (near-duplicate prompts, contamination, split by group); no version is read or written. Memory is the most
that this process ever held, made data included.
"""

import argparse
import resource
import sys
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.measure import Taken, clock, machine
from prefdata.identity import digest
from prefdata.sources.evaluations import Evaluation
from prefdata.steps import chain
from prefdata.steps.batch import Batch
from prefdata.steps.chain import Step
from prefdata.steps.decontaminate import Decontaminate
from prefdata.steps.duplicates import PROMPTS, Near
from prefdata.steps.split import Split
from schemas import prompts

BATCH_ROWS = 8192  # as in a file of a version
THRESHOLD = 0.8
WORDS = 50_000
LENGTHS = (8, 60)  # words of a prompt, evenly drawn
NEAR, HELD = 0.1, 0.005  # shares of near-copies and of prompts that hold an evaluation's
EXAMS = 100


def made(rows: int, seed: int = 0) -> tuple[Evaluation, Iterator[pa.Table]]:
    """An evaluation, and batches of prompts, the same for the same arguments."""
    draw = np.random.default_rng(seed)
    words = np.array([_word(number) for number in range(WORDS)])
    exam = Evaluation("made", "", tuple((" ".join(words[draw.integers(0, WORDS, 30)]),) for _ in range(EXAMS)))
    return exam, _batches(rows, words, exam, draw)


def _batches(rows: int, words: np.ndarray, exam: Evaluation, draw: np.random.Generator) -> Iterator[pa.Table]:
    for start in range(0, rows, BATCH_ROWS):
        texts: list[str] = []
        for number in range(start, min(start + BATCH_ROWS, rows)):
            kind = draw.random()
            if texts and kind < NEAR:
                texts.append(f"{texts[int(draw.integers(len(texts)))]} {words[number % WORDS]}")
            elif kind > 1 - HELD:
                texts.append(f"please {exam.prompts[number % EXAMS][0]} now")
            else:
                ranks = np.minimum(draw.zipf(1.2, int(draw.integers(*LENGTHS))), WORDS) - 1
                texts.append(" ".join(words[ranks]))
        yield _table(start, texts)


def _table(start: int, texts: list[str]) -> pa.Table:
    ids = [digest(number) for number in range(start, start + len(texts))]
    told = {
        "row_id": ids,
        "prompt_id": ids,
        "prompt": [[{"role": "user", "content": text}] for text in texts],
        "source": ["made"] * len(texts),
    }
    empty = [None] * len(texts)
    columns = [pa.array(told.get(field.name, empty), field.type) for field in prompts.BASE]
    return pa.Table.from_arrays(columns, schema=pa.schema([field.with_nullable(True) for field in prompts.BASE]))


def main(argv: list[str] | None = None) -> int:
    """Run and print; 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cleaning", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="prompts to make (default: 1000000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the made prompts")
    given = parser.parse_args(argv)
    if given.rows < 1:
        print(f"--rows is {given.rows}, and must be at least 1", file=sys.stderr)
        return 2
    print("\n".join(machine("rensa", "polars", "pyarrow", "numpy")))
    exam, batches = made(given.rows, given.seed)
    steps: list[Step] = [Decontaminate([exam]), Near(PROMPTS, THRESHOLD, ()), Split(0.05, THRESHOLD)]
    read: list[pl.DataFrame] = []
    reading = Taken(0, 0)
    for rows in batches:
        began = clock()
        read.append(chain.read(steps, Batch(prompts.KIND, "train", rows)))
        spent = clock() - began
        reading = Taken(reading.wall_s + spent.wall_s, reading.cpu_s + spent.cpu_s)
    began = clock()
    cleaned = chain.clean(steps, pl.concat(read))
    judging = clock() - began
    wall_s, cpu_s = reading.wall_s + judging.wall_s, reading.cpu_s + judging.cpu_s
    aside = ", ".join(f"{reason} {n:,}" for reason, n in sorted(cleaned.aside["reason"].value_counts().rows()))
    test = cleaned.kept.filter(pl.col("split") == "test").height
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"rows: {given.rows:,}; kept {cleaned.kept.height:,}, of them {test:,} in test; set aside: {aside or 'none'}")
    print(f"wall time: {wall_s:.1f} s (reading {reading.wall_s:.1f} s, judging {judging.wall_s:.1f} s)")
    print(f"processor time: {cpu_s:.1f} s (reading {reading.cpu_s:.1f} s, judging {judging.cpu_s:.1f} s)")
    print(f"rows/s: {given.rows / wall_s:,.0f} of wall time, {given.rows / cpu_s:,.0f} of processor time")
    print(f"peak memory: {peak:.2f} GiB")
    return 0


def _word(number: int) -> str:
    """Letters that spell a number, of 2 to 10 letters."""
    letters, rest = [], number * 7919 + 26
    while rest:
        rest, letter = divmod(rest, 26)
        letters.append(chr(97 + letter))
    return "".join(letters)


if __name__ == "__main__":
    sys.exit(main())
