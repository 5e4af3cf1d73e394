"""Selecting pairs among scored completions and publishing them, against the same written by hand in polars.

    python -m benchmarks.selection                                  # a million completions
    python -m benchmarks.selection --rows 100000 --pairs 3
    python -m benchmarks.selection --distilabel OTHER/bin/python    # also against distilabel's pipeline, in its environment

Both read the same version and write the best and the worst of every prompt that are no tie, with margin, tokens, texts
and log-probs, as zstd Parquet. Ours also names every row by its content, checks what it reads against its hashes, keeps a
line for each completion, bands of difficulty, statistics and a manifest.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from benchmarks import made_completions
from benchmarks.measure import Pair, Taken, clock, machine, paired, spread

DISTILABEL_ROWS = 20_000  # completions; its pipeline is slow, and its rate does not depend on how many there are
_DISTILABEL = """
import json, sys, time
from distilabel.pipeline import Pipeline
from distilabel.steps import FormatTextGenerationDPO, LoadDataFromDicts

rows = json.load(open(sys.argv[1]))
with Pipeline(name="best-and-worst") as pipeline:
    load = LoadDataFromDicts(data=rows)
    pair = FormatTextGenerationDPO()
    load >> pair
began = time.perf_counter()
made = pipeline.run(use_cache=False)
made["default"]["train"].to_parquet(sys.argv[2])
print("seconds", time.perf_counter() - began)
"""


def ours(root: Path, keep: bool = False) -> Taken:
    """build-paired over v1 of the root, and its version removed again."""
    from prefdata.builds import paired as build
    from prefdata.builds.job import run

    began = clock()
    version = run(build.job(build.Options(source="v1"), str(root))).version
    taken = clock() - began
    if not keep:
        shutil.rmtree(root / version.name)
    return taken


def by_hand(root: Path, out: Path) -> Taken:
    """The same pairs in polars."""
    began = clock()
    rows = pl.scan_parquet(str(root / "v1" / "train" / "*.parquet"))
    narrow = rows.select("row_id", "prompt_id", "score").filter(pl.col("score").is_finite())
    ordered = narrow.sort("prompt_id", "score", "row_id", descending=[False, True, False])
    best = ordered.unique("prompt_id", keep="first", maintain_order=True)
    worst = ordered.unique("prompt_id", keep="last", maintain_order=True)
    chosen = best.join(worst, on="prompt_id", suffix="_worst").filter(pl.col("score") > pl.col("score_worst"))
    sides = {"chosen": "row_id", "rejected": "row_id_worst"}
    pairs = chosen.select("prompt_id", *sides.values(), margin=pl.col("score") - pl.col("score_worst"))
    shared = ["prompt_id", "prompt", "prompt_ids", "prompt_tokens", "source"]
    own = [
        "completion",
        "completion_ids",
        "completion_tokens",
        "score",
        "ref_completion_token_logps",
        "ref_completion_logps",
    ]
    for side, key in sides.items():
        wanted = [*(shared[1:] if side == "chosen" else []), *own]
        table = rows.select(pl.col("row_id").alias(key), *wanted).rename({name: f"{side}_{name}" for name in own})
        pairs = pairs.join(table, on=key)
    pairs.sink_parquet(out, compression="zstd")
    return clock() - began


def distilabel(python: str, folder: Path, root: Path) -> tuple[int, float]:
    """Completions, and how many a second its step comes to in its pipeline, from rows in memory to a Parquet file."""
    rows = pl.read_parquet(str(root / "v1" / "train" / "part-0000[0-3].parquet")).head(DISTILABEL_ROWS)
    grouped = (
        rows.select(
            "prompt_id",
            instruction=pl.col("prompt").list.first().struct.field("content"),
            generations=pl.col("completion").list.first().struct.field("content"),
            ratings="score",
        )
        .group_by("prompt_id", maintain_order=True)
        .agg(pl.col("instruction").first(), "generations", "ratings")
    )
    given = [
        {**row, "generation_models": ["made"] * len(row["ratings"])} for row in grouped.drop("prompt_id").to_dicts()
    ]
    (folder / "rows.json").write_text(json.dumps(given))
    done = subprocess.run(
        [python, "-c", _DISTILABEL, str(folder / "rows.json"), str(folder / "pairs.parquet")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"distilabel did not run: {done.stderr[-500:]}")
    seconds = float(done.stdout.rsplit("seconds", 1)[1])
    return len(rows), len(rows) / seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="completions (default: a million)")
    parser.add_argument("--pairs", type=int, default=3, help="paired runs (default: 3)")
    parser.add_argument("--distilabel", metavar="PYTHON", help="interpreter of an environment that has distilabel")
    given = parser.parse_args(argv)
    print(*machine("polars", "pyarrow"), sep="\n")
    with tempfile.TemporaryDirectory(prefix="selection") as name:
        folder = Path(name)
        root = folder / "data"
        began = time.monotonic()
        made_completions.publish(root, given.rows, made_completions.save_model(folder / "model"))
        print(f"{given.rows:,} completions made in {time.monotonic() - began:.0f} s", flush=True)
        _memory(root)
        found = []
        for pair in paired(lambda: ours(root), lambda: by_hand(root, folder / "pairs.parquet"), given.pairs):
            found.append(pair)
            print(pair.text(), flush=True)
        _tell(found, given.rows)
        if given.distilabel:
            rows, rate = distilabel(given.distilabel, folder, root)
            mine = min(pair.ours.wall_s for pair in found)
            print(
                f"distilabel, {rows:,} completions: {rate:,.0f} a second; ours is {given.rows / mine / rate:,.0f} times as fast"
            )
    return 0


def _memory(root: Path) -> None:
    """The peak of a process of its own, which does nothing else."""
    code = f"from pathlib import Path; from benchmarks import selection as s; print('wall', s.ours(Path({str(root)!r})).wall_s); print('peak', s.peak_gib())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wall, peak = (float(line.split()[1]) for line in done.stdout.splitlines())
    print(f"alone in a process: {wall:.1f} s, peak of memory {peak:.2f} GiB", flush=True)


def peak_gib() -> float:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _tell(found: Sequence[Pair], rows: int) -> None:
    rates = [pair.theirs.wall_s / pair.ours.wall_s for pair in found]
    print(
        f"ours, s: {spread([pair.ours.wall_s for pair in found], 1)}; by hand in polars, s: {spread([pair.theirs.wall_s for pair in found], 1)}"
    )
    print(f"ours, completions a second: {rows / sorted(pair.ours.wall_s for pair in found)[len(found) // 2]:,.0f}")
    print(f"our throughput as a share of polars': {spread(rates, 2)}")


if __name__ == "__main__":
    sys.exit(main())
