"""The benchmarks' arithmetic, and that their commands run; what they measure is never asserted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import flow_overhead, measure
from benchmarks.flow_overhead import Asked, excerpt
from benchmarks.measure import Pair, Taken, clock, paired, spread, table
from prefdata.engines import Request, Sampling
from tests.samples import samples_dir

ROOT = Path(__file__).parent.parent


def taken(seconds: float) -> Taken:
    return Taken(wall_s=seconds, cpu_s=seconds / 2)


def test_spread_is_median_least_and_most() -> None:
    assert spread([3, 1, 2], 1) == "2.0 (1.0 to 3.0)"
    assert spread([4, 1, 2, 3], 2) == "2.50 (1.00 to 4.00)"
    with pytest.raises(ValueError, match="no numbers"):
        spread([], 1)


def test_a_ratio_is_taken_within_its_pair() -> None:
    """A machine twice as slow in the second pair changes both sides' medians and not the ratio."""
    pairs = [Pair(taken(2), taken(1), True), Pair(taken(4), taken(2), False), Pair(taken(9), taken(3), True)]
    assert [pair.ratio for pair in pairs] == [Taken(2, 2), Taken(2, 2), Taken(3, 3)]
    lines = table(pairs, "ours", "theirs").splitlines()
    assert lines[2] == "| ours, s | 4.00 (2.00 to 9.00) | 2.00 (1.00 to 4.50) |"
    assert lines[4] == "| ratio within a pair | 2.000 (2.000 to 3.000) | 2.000 (2.000 to 3.000) |"


def test_sides_take_turns_at_being_first() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Taken:
        order.append(name)
        return taken(seconds)

    pairs = list(paired(lambda: side("a", 3), lambda: side("b", 2), 3))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [pair.ours_first for pair in pairs] == [True, False, True]
    assert {pair.ratio for pair in pairs} == {Taken(1.5, 1.5)}


def test_processor_time_is_also_that_of_processes_it_started() -> None:
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True); input()"
    before = clock()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        spent = clock() - before
        busy.communicate("\n")
    assert spent.cpu_s >= 0.45
    assert spent.wall_s > 0


def test_a_redraw_is_asked_again_only_after_its_first_draw() -> None:
    asked, sampling = Asked(), Sampling()
    requests = [[Request(key, (1,), 1, seed) for key in keys] for seed, keys in enumerate(("ab", "b", "cd", "c"))]
    for call in requests:
        asked.requests(call, sampling)
    assert [list(one) for one in asked.rounds] == [["a", "b", "c", "d"], ["b", "c"]]
    assert [one.seed for one in asked.rounds[1].values()] == [1, 3]  # the redraws, not the first draws again
    assert (asked.calls, asked.sampling) == (4, sampling)


def test_an_excerpt_keeps_both_splits_in_proportion(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    (samples / "hh_helpful").mkdir(parents=True)
    for split, rows in (("train", 80), ("test", 20)):
        (samples / "hh_helpful" / f"{split}.jsonl").write_text("".join(f'{{"row": {n}}}\n' for n in range(rows)))
    for rows, kept in ((10, (8, 2)), (None, (80, 20)), (1000, (80, 20))):
        (folder,) = excerpt(samples, tmp_path / str(rows), rows)
        found = [len((Path(folder) / f"{split}.jsonl").read_text().splitlines()) for split in ("train", "test")]
        assert tuple(found) == kept


def test_what_it_cannot_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flow_overhead.main(["--samples", str(tmp_path / "none")]) == 2
    assert flow_overhead.main(["--pairs", "0", "--samples", str(tmp_path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no sample data" in first
    assert "--pairs" in second


def test_the_machine_is_named() -> None:
    lines = "\n".join(measure.machine("torch", "no-such-package"))
    assert "torch 2" in lines
    assert "no-such-package" not in lines


@pytest.mark.slow
def test_flow_overhead_runs() -> None:
    command = [sys.executable, "-m", "benchmarks.flow_overhead", "--rows", "3", "--pairs", "1", "--unit-rows", "2"]
    ended = subprocess.run(
        [*command, "--samples", str(samples_dir())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert "| ratio within a pair |" in ended.stdout
    assert "start-up, apart" in ended.stdout


def test_selection_runs_and_both_sides_make_the_same_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import polars as pl

    from benchmarks import made_completions, selection

    root = tmp_path / "data"
    made_completions.publish(root, 2_000, made_completions.save_model(tmp_path / "model"))
    selection.ours(root, keep=True)
    selection.by_hand(root, tmp_path / "pairs.parquet")
    mine = pl.read_parquet(str(root / "v2" / "train" / "*.parquet")).sort("prompt_id")
    theirs = pl.read_parquet(tmp_path / "pairs.parquet").sort("prompt_id")
    for name in ("prompt_id", "margin", "chosen_score", "rejected_score"):
        assert mine[name].to_list() == theirs[name].to_list()
    selection._tell([Pair(taken(2), taken(1), True)], 2_000)
    assert "share of polars': 0.50" in capsys.readouterr().out


def test_the_benchmark_of_ingest_runs(tmp_path: Path) -> None:
    from benchmarks import ingest

    (pair,) = ingest.measured(samples_dir(), rows=64, pairs=1)
    assert pair.ours.wall_s > 0
    assert pair.theirs.wall_s > 0
