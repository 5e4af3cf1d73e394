"""benchmarks.cleaning runs, and what it makes is what it says; what it measures is never asserted."""

import re

import pytest

from benchmarks import cleaning


def test_it_runs_on_few_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert cleaning.main(["--rows", "2000"]) == 0
    said = capsys.readouterr().out
    counted = re.search(
        r"rows: 2,000; kept ([\d,]+), of them (\d+) in test; set aside: contaminated (\d+), near_duplicate_prompt (\d+)\n",
        said,
    )
    assert counted is not None, said
    kept, test, contaminated, near = (int(number.replace(",", "")) for number in counted.groups())
    assert kept + contaminated + near == 2000
    assert 0 < test < 200
    assert 150 < near < 260  # a tenth of them are near-copies
    assert "peak memory:" in said
    assert "rows/s:" in said


def test_rows_are_the_same_whenever_they_are_made() -> None:
    (one, first), (other, second) = cleaning.made(50, seed=3), cleaning.made(50, seed=3)
    assert one == other
    assert next(iter(first)).equals(next(iter(second)))


def test_no_rows_are_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cleaning.main(["--rows", "0"]) == 2
    assert capsys.readouterr().err == "--rows is 0, and must be at least 1\n"
