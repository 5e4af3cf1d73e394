"""Which tokens are written anew, and what comes of it."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata.draws import generator, row_seed
from prefdata.records import SetAside
from prefdata.select.segments import RULES, Answer, Cut, auto_segment_tokens, paper, segment, splice, suffix, unchanged

END = 2
answers = st.builds(
    Answer,
    prompt_tokens=st.integers(1, 1700),
    tokens=st.integers(1, 900),
    content_start=st.integers(0, 5),
    max_length=st.just(4096),
)


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed)


@given(answers, st.sampled_from(sorted(RULES)), st.one_of(st.none(), st.integers(1, 400)), st.integers(0, 99))
def test_a_cut_lies_in_the_answers_content(answer: Answer, mode: str, tokens: int | None, seed: int) -> None:
    cut = RULES[mode](answer, tokens, rng(seed))
    if isinstance(cut, SetAside):
        assert answer.tokens <= answer.content_start
        return
    assert answer.content_start <= cut.start < cut.source_end <= answer.tokens
    assert cut.new_tokens >= 1


@given(st.integers(1, 2000))
def test_auto_is_a_third_and_at_most_256(tokens: int) -> None:
    assert auto_segment_tokens(tokens) == min(256, math.ceil(tokens / 3))


def test_the_cut_is_uniform_over_every_place_where_the_segment_fits() -> None:
    answer = Answer(prompt_tokens=10, tokens=12, content_start=0, max_length=512)
    starts = Counter(
        segment(answer, None, generator(row_seed(0, str(row), "cut"))).start  # type: ignore[union-attr]
        for row in range(9000)
    )
    assert sorted(starts) == list(range(9))  # g = 4, so 0..8
    expected = 9000 / 9
    assert sum((n - expected) ** 2 / expected for n in starts.values()) < 26.1  # chi-square, 8 degrees, p = 0.001


def test_the_paper_starts_at_the_beginning_up_to_259_tokens() -> None:
    for tokens in (1, 100, 256, 257, 259):
        cut = paper(Answer(10, tokens, 0, 2048), None, rng(tokens))
        assert isinstance(cut, Cut)
        assert (cut.start, cut.new_tokens) == (0, min(256, tokens))


@pytest.mark.parametrize(
    ("tokens", "prompt", "last"), [(260, 10, 1), (400, 10, 141), (1500, 10, 1241), (1900, 700, 1092)]
)
def test_the_paper_cuts_longer_answers_uniformly(tokens: int, prompt: int, last: int) -> None:
    """max_cut = L - 3 - 256; the cut is uniform on 0..min(max_cut, 2048 - P - 256)."""
    answer = Answer(prompt, tokens, 0, 2048)
    starts = [paper(answer, None, rng(seed)).start for seed in range(4000)]  # type: ignore[union-attr]
    assert min(starts) == 0 or last > 500
    assert max(starts) <= last
    assert max(starts) >= last - math.ceil(last / 100)
    assert abs(np.mean(starts) - last / 2) < 4 * last / math.sqrt(12 * 4000) + 0.05


def test_the_paper_takes_prompts_up_to_1792_tokens() -> None:
    assert isinstance(paper(Answer(1792, 300, 0, 4096), None, rng()), Cut)
    refused = paper(Answer(1793, 300, 0, 4096), None, rng())
    assert isinstance(refused, SetAside)
    assert refused.reason == "prompt_too_long"


def test_splice_keeps_what_stands_around_the_segment() -> None:
    answer = [10, 11, 12, 13, 14, END]
    negative = splice(answer, Cut(2, 4, 2, keeps_rest=True), [20, 21], [END])
    assert negative.ids == [10, 11, 20, 21, 14, END]
    assert negative.ids[negative.segment_start : negative.segment_end] == [20, 21]
    assert answer[negative.segment_source_end :] == [14, END]
    assert not negative.ended_early


def test_an_early_end_drops_the_rest() -> None:
    negative = splice([10, 11, 12, 13, END], Cut(1, 3, 2, keeps_rest=True), [END, 30], [END])
    assert negative.ids == [10, END]
    assert negative.ended_early


def test_ending_where_the_answer_ended_is_not_early() -> None:
    negative = splice([10, 11, END], Cut(1, 3, 2, keeps_rest=True), [30, END], [END])
    assert negative.ids == [10, 30, END]
    assert not negative.ended_early


@given(
    st.lists(st.integers(3, 9), min_size=1, max_size=30),
    st.data(),
)
def test_offsets_rebuild_the_negative(content: list[int], data: st.DataObject) -> None:
    answer = [*content, END]
    start = data.draw(st.integers(0, len(answer) - 1))
    end = data.draw(st.integers(start + 1, len(answer)))
    new = data.draw(st.lists(st.integers(2, 9), min_size=1, max_size=end - start))
    negative = splice(answer, Cut(start, end, end - start, keeps_rest=True), new, [END])
    assert negative.ids[:start] == answer[:start]
    middle = negative.ids[negative.segment_start : negative.segment_end]
    assert middle == new[: len(middle)]
    rest = negative.ids[negative.segment_end :]
    assert rest == ([] if END in middle else answer[end:])
    assert unchanged(answer, negative) == (negative.ids == answer)


def test_a_suffix_drops_everything_after_the_cut() -> None:
    cut = suffix(Answer(10, 30, 0, 512), None, rng())
    assert isinstance(cut, Cut)
    assert cut.source_end == 30
    assert not cut.keeps_rest
    assert cut.new_tokens == max(2 * (30 - cut.start), 64)
    assert splice(list(range(100, 130)), cut, [7, END], [END]).ids == [*range(100, 100 + cut.start), 7, END]


def test_draws_depend_on_the_row_and_nothing_else() -> None:
    assert row_seed(0, "a", "cut", 1, 0) == row_seed(0, "a", "cut", 1, 0)
    seeds = {
        row_seed(s, r, p, n, i)
        for s in (0, 1)
        for r in "ab"
        for p in ("cut", "segment")
        for n in (1, 2)
        for i in (0, 1)
    }
    assert len(seeds) == 32
