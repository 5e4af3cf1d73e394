"""Contamination: what is found of an evaluation, what is not, and how evaluations are read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefdata.errors import UserError
from prefdata.sources import evaluations
from prefdata.sources.evaluations import Evaluation
from prefdata.steps.decontaminate import Decontaminate
from schemas import completions
from tests.samples import samples_dir
from tests.test_steps_duplicates import QUICK, asked, cleaned, completion

EVALUATED = "Describe how a large ship of many tons stays above the water while the sea is rough and cold"  # 19 words
SHORT = "What is 3 + 4?"


def step(*prompts: tuple[str, ...], **options: Any) -> Decontaminate:
    return Decontaminate([Evaluation("exam", "", prompts or ((EVALUATED, "Why?"), (SHORT,)))], **options)


def found(text: str | list[dict[str, str]], *prompts: tuple[str, ...], **options: Any) -> str | None:
    prompt = asked(text) if isinstance(text, str) else text
    judged = cleaned([step(*prompts, **options)], completions, [completion(0, "x", prompt=prompt)])
    details = judged.aside["detail"].to_list()
    assert len(details) + judged.kept.height == 1
    return details[0] if details else None


@pytest.mark.parametrize("text", [EVALUATED, f"  {EVALUATED.upper()} !!", EVALUATED.replace(" ", "\n, ")])
def test_the_same_words_are_found_and_the_evaluation_is_named(text: str) -> None:
    assert found(text) == "exam row 0: the same words"


def test_a_turn_among_others_is_found_and_a_short_one_only_alone() -> None:
    assert found(asked("Hello", "Hi", EVALUATED)) == "exam row 0: the same words"
    assert found("what is 3 + 4") == "exam row 1: the same words"
    assert found(asked("Hello", "Hi", "Who?"), ("Who?",)) is None
    assert found("who", ("Who?",)) == "exam row 0: the same words"
    assert found(asked("Who sank it?", "Nobody", "Why?"), ("Describe it", "Why?")) is None


def test_operators_tell_short_prompts_apart() -> None:
    assert found("What is 3 - 4?") is None


def test_what_the_assistant_or_the_system_says_is_not_asked() -> None:
    turns = asked("Hello", EVALUATED, "Go on")
    assert found(turns) is None
    assert found([{"role": "system", "content": EVALUATED}, *asked("Hello")]) is None


@QUICK
@example(13, True)  # half of them
@example(12, True)
@given(st.integers(0, 19), st.booleans())
def test_a_share_of_the_runs_is_counted_as_it_is(words: int, before: bool) -> None:
    """19 words make 12 runs of 8; the first n words hold n - 7 of them."""
    part = " ".join(EVALUATED.split()[:words])
    runs = max(words - 7, 0)
    said = found(f"So, {part}" if before else f"{part} anyway, please")
    assert said == (f"exam row 0: {runs * 100 // 12} % of its runs of 8 words" if runs >= 6 else None)


def test_words_that_repeat_are_counted_once_and_the_fullest_evaluation_is_named() -> None:
    again = " ".join(EVALUATED.split()[:9])
    assert found(f"{again}. {again}. {again}.") is None
    longer = f"{EVALUATED} and wide and deep"
    assert found(f"x {EVALUATED} x", (longer,), (EVALUATED,)) == "exam row 1: 100 % of its runs of 8 words"


def test_an_evaluation_without_a_word_finds_nothing() -> None:
    assert found("?!", ("...",)) is None
    assert found(EVALUATED, ("...",)) is None


@pytest.mark.parametrize(
    "row",
    [
        {"turns": ["Who?", "Why?"], "id": 3},
        {"prompt": "Who?\nWhy?"},
        {"question": "Who?\nWhy?", "answer": "x"},
        {"instruction": "Who?", "input": "Why?"},
        {
            "messages": [
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": "x"},
                {"role": "user", "content": "Why?"},
            ]
        },
    ],
)
def test_layouts_of_evaluations(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = evaluations.read([str(tmp_path / "exam.jsonl")])
    assert (read.name, "\n".join(*read.prompts)) == ("exam", "Who?\nWhy?")


@pytest.mark.parametrize("text", ["", '{"word": "x"}\n', "no JSON\n", '{"turns": [" "]}\n', '{"prompt": [3]}\n'])
def test_an_evaluation_that_asks_nothing_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"evaluation .*exam\.jsonl"):
        evaluations.read([str(tmp_path / "exam.jsonl")])


def test_mt_bench_is_found_in_rows_made_from_it() -> None:
    (bench,) = evaluations.read([str(samples_dir() / "decontamination" / "mt_bench_questions.jsonl")])
    assert len(bench.prompts) == 80
    rows = [completion(number, f"{number}", prompt=asked(prompt[0])) for number, prompt in enumerate(bench.prompts)]
    rows += [completion(100, "own", prompt=asked("Which ship is the oldest that still sails?"))]
    judged = cleaned([Decontaminate([bench])], completions, rows)
    assert judged.kept["row_id"].to_list() == ["r100"]
    said = dict(judged.aside.select("row_id", "detail").rows())
    assert all(said[f"r{n:03}"] == f"{bench.name} row {n}: the same words" for n in range(80))
