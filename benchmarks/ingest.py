"""Ingest against a bare batched tokenizer on the same text.

    python -m benchmarks.ingest --samples shared/data            # UltraFeedback pairs of the sample data, made many
    python -m benchmarks.ingest --samples shared/data --rows 4000 --pairs 3

The bare side reads the same JSONL and hands prompts and answers to the tokenizer, a batch at a time, as is common. Ours
judges, names, splits, checks and publishes the rows, with a ledger line for each. Both use every core that there is.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measure import Pair, Taken, clock, machine, paired, spread

ROWS, PAIRS, BATCH = 20_000, 5, 1024


def made_rows(samples: Path, rows: int, out: Path) -> Path:
    """So many different pairs: the sample's, over and over, each with a number of its own in every text."""
    lines = (samples / "ultrafeedback_pairs" / "train.jsonl").read_text("utf-8").splitlines()
    base = [json.loads(line) for line in lines]
    with out.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = base[number % len(base)]
            said = {name: f"{_text(row[name])} {number}" for name in ("prompt", "chosen", "rejected")}
            file.write(json.dumps(said, ensure_ascii=False) + "\n")
    return out


def _text(said: Any) -> str:
    return said if isinstance(said, str) else str(said[-1]["content"])


def bare(tokenizer: Any, source: Path) -> Taken:
    """Read and tokenise."""
    began = clock()
    with source.open(encoding="utf-8") as file:
        while lines := list(islice(file, BATCH)):
            rows = [json.loads(line) for line in lines]
            tokenizer([row[name] for row in rows for name in ("prompt", "chosen", "rejected")])
    return clock() - began


def ours(model: str, source: Path, root: Path) -> Taken:
    """Ingest into an empty root."""
    from prefdata.builds.ingest import Ingest, Options
    from prefdata.builds.job import run

    shutil.rmtree(root, ignore_errors=True)
    began = clock()
    run(Ingest(Options(source=(str(source),), model=model), str(root)))
    return clock() - began


def measured(samples: Path, rows: int, pairs: int) -> list[Pair]:
    """Paired runs, after one of each that loads what is loaded once."""
    from transformers import AutoTokenizer

    model = str(samples / "tokenizers" / "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = sys.maxsize  # or it warns of each long text
    with tempfile.TemporaryDirectory(prefix="ingest") as name:
        folder = Path(name)
        few = made_rows(samples, 256, folder / "few.jsonl")
        bare(tokenizer, few)
        ours(model, few, folder / "data")
        source = made_rows(samples, rows, folder / "pairs.jsonl")
        return list(paired(lambda: ours(model, source, folder / "data"), lambda: bare(tokenizer, source), pairs))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=Path, required=True, help="folder of the sample data")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"pairs to ingest (default: {ROWS})")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"paired runs (default: {PAIRS})")
    given = parser.parse_args(argv)
    print(*machine("transformers", "tokenizers", "pyarrow"), sep="\n", flush=True)
    found = measured(given.samples, given.rows, given.pairs)
    for pair in found:
        print(pair.text())
    shares = [pair.theirs.wall_s / pair.ours.wall_s for pair in found]
    print(f"rows a second: {given.rows / sorted(pair.ours.wall_s for pair in found)[len(found) // 2]:,.0f}")
    print(f"ingest's throughput as a share of the bare tokenizer's: {spread(shares, 2)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
