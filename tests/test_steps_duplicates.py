"""Exact and near-duplicates: what is one and what is not, against plain set arithmetic, in any order."""

from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.records import Message
from prefdata.steps import chain, similar
from prefdata.steps.batch import Batch
from prefdata.steps.duplicates import Exact, Near
from prefdata.steps.sketch import SLOTS, sketches
from prefdata.steps.words import ngrams, normal, words
from schemas import completions, pairs, unpaired

QUICK = settings(max_examples=25, deadline=None)


def asked(*texts: str) -> list[dict[str, str]]:
    """Turns of user and assistant in turn."""
    return [Message(("user", "assistant")[n % 2], text).as_dict() for n, text in enumerate(texts)]


def answered(text: str) -> list[dict[str, str]]:
    return [Message("assistant", text).as_dict()]


def table(kind: Any, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with what steps read; other columns are empty."""
    schema = pa.schema([field.with_nullable(True) for field in kind.BASE])
    return pa.Table.from_pylist([{"source": "test", **row} for row in rows], schema=schema)


def cleaned(steps: list[Any], kind: Any, rows: list[dict[str, Any]], *, split: str = "train") -> chain.Cleaned:
    batch = Batch(kind.KIND, split, table(kind, rows))
    return chain.clean(steps, chain.read(steps, batch))


def completion(number: int, name: str, answer: str = "", **more: Any) -> dict[str, Any]:
    return {
        "row_id": f"r{number:03}",
        "prompt_id": f"p-{name}",
        "prompt": asked(name),
        "completion": answered(answer),
    } | more


def kept(found: chain.Cleaned) -> list[str]:
    return found.kept["row_id"].to_list()


LONG = "Please tell me in a few words how a ship of a hundred tons stays above the water when the sea is rough"


def test_normal_form_is_caseless_and_single_spaced_and_of_one_unicode_form() -> None:
    assert normal("  Hello\n\tWORLD ") == "hello world"
    assert normal("ﬁve Ｆive é") == normal("Five five e\u0301")
    assert normal("3 + 4") != normal("3 - 4")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("hello, world!", 2),
        ("well-known", 3),
        ("3 + 4", 3),
        ("你好吗", 3),
        ("สวัสดี", 6),
        ("हिन्दी", 1),
        ("?!", 0),
        ("", 0),
    ],
)
def test_words_of_scripts(text: str, count: int) -> None:
    assert words([text]).lengths.tolist() == [count]


def test_words_are_told_apart_by_letters_and_order_and_by_nothing_around_them() -> None:
    found = words(["alpha beta alpha", "beta", "ahpla", "a", "aa"])
    one, two, again, alone, *others = found.values.tolist()
    assert one == again
    assert two == alone
    assert len({one, two, *others}) == 5


@QUICK
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=7), max_size=6), st.integers(1, 4))
def test_ngrams_are_those_of_plain_lists(rows: list[list[str]], n: int) -> None:
    found = ngrams(words([" ".join(row) for row in rows]), n)
    expected = [[tuple(row[at : at + n]) for at in range(max(len(row) - n + 1, 1))] if row else [] for row in rows]
    assert found.lengths.tolist() == list(map(len, expected))
    named: dict[int, tuple[str, ...]] = {}
    for value, gram in zip(found.values.tolist(), [gram for row in expected for gram in row], strict=True):
        assert named.setdefault(value, gram) == gram
    assert len(set(named.values())) == len(named)


def test_a_short_row_has_one_run_of_its_own_words() -> None:
    found = ngrams(words(["a", "b", "a", "c", "", "a b"]), 3)
    assert found.lengths.tolist() == [1, 1, 1, 1, 0, 1]
    first, _, again, *others = found.values.tolist()
    assert first == again
    assert len({first, *others}) == 3


def test_sketches_estimate_the_jaccard_index() -> None:
    rng = np.random.default_rng(0)
    whole = [f"w{n}" for n in range(400)]
    for share in (0.3, 0.6, 0.9):
        text = list(whole)
        changed = rng.choice(400, int(40 * (1 - share)), replace=False)
        for place in changed:
            text[place] = f"x{place}"
        one, other = sketches([" ".join(whole), " ".join(text)])
        sets = [{tuple(each[at : at + 3]) for at in range(398)} for each in (whole, text)]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert abs((one == other).mean() - exact) < 4 * np.sqrt(exact * (1 - exact) / SLOTS)


def test_a_sketch_is_of_its_text_alone() -> None:
    texts = ["one two three four", "", "?!", "one two", "?!"]
    together = sketches(texts)
    for place, text in enumerate(texts):
        assert (together[place] == sketches([text])[0]).all()
    assert (together[1] != together[2]).any()


@QUICK
@given(st.lists(st.integers(0, 11), min_size=2, max_size=14), st.sampled_from([0.5, 0.8, 1.0]))
def test_groups_are_the_components_of_what_is_alike(drawn: list[int], threshold: float) -> None:
    """Rows are runs of one long text, so that neighbours are alike, and by way of them others are."""
    base = np.arange(SLOTS, dtype=np.uint32)
    rows = np.stack([np.where(base < each * 10, base + 1000, base).astype(np.uint32) for each in drawn])
    found = similar.groups([rows], threshold)
    expected = list(range(len(drawn)))
    for _ in drawn:  # labels spread until nothing changes
        for one, other in combinations(range(len(drawn)), 2):
            if (rows[one] == rows[other]).mean() >= threshold:
                expected[one] = expected[other] = min(expected[one], expected[other])
    missed = sum(a != b for a, b in zip(found.tolist(), expected, strict=True))
    assert (np.asarray(expected)[found] == expected).all()  # never joins what is apart
    assert missed == 0 or threshold < 1  # pairs near the threshold may be missed, by a chance of 1 in 100
    assert all(
        found[one] == found[other] for one, other in combinations(range(len(drawn)), 2) if drawn[one] == drawn[other]
    )


def test_bands_bring_together_what_is_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.95):
        width = similar.band_slots(threshold)
        assert 1 - (1 - threshold**width) ** (SLOTS // width) >= 0.99
        assert 1 - (1 - threshold ** (width + 1)) ** (SLOTS // (width + 1)) < 0.99


def test_a_bucket_is_looked_through_to_its_end() -> None:
    """Rows that are unlike a bucket's first may still be alike."""
    rows = np.repeat(np.arange(4, dtype=np.uint32)[:, None], SLOTS, axis=1)[[0, 1, 2, 1, 3, 2]]
    pairs = similar._alike([rows], np.zeros(6, np.uint64), np.arange(6), SLOTS)
    assert sorted(zip(*(side.tolist() for side in pairs), strict=True)) == [(3, 1), (5, 2)]


def test_of_equal_prompts_one_stands_for_all_and_its_own_rows_stay() -> None:
    rows = [completion(n, prompt) for n, prompt in enumerate(["Why?", "why?", "Why ?", "Why?", " WHY?  ", "Who?"])]
    found = cleaned([Exact("prompts")], completions, rows)
    first = min("Why?", "why?", " WHY?  ")
    assert kept(found) == [row["row_id"] for row in rows if row["prompt_id"] in (f"p-{first}", "p-Why ?", "p-Who?")]
    assert set(found.aside["reason"]) == {"duplicate_prompt"}
    assert set(found.aside["detail"]) == {f"p-{first} stands for it"}


def test_equal_prompts_under_other_system_turns_or_tools_are_others() -> None:
    def row(number: int, system: str, tools: str | None = None) -> dict[str, Any]:
        turns = [Message("system", system).as_dict(), *asked(LONG)]
        return completion(number, f"{system}{tools}", prompt=turns, tools=tools)

    rows = [row(0, "Be brief."), row(1, "be  brief."), row(2, "Be a pirate."), row(3, "Be brief.", "[{}]")]
    for step in (Exact("prompts"), Near("prompts", 0.8, ())):
        assert len(kept(cleaned([step], completions, rows))) == 3


def test_rows_are_duplicates_by_prompt_and_by_every_answer() -> None:
    texts = [
        (LONG, "yes", "no"),
        (LONG.upper(), "Yes", "NO"),
        (LONG, "no", "yes"),
        (LONG, "yes", "maybe"),
        ("x", "yes", "no"),
    ]
    rows = [
        {
            "row_id": f"r{n}",
            "prompt_id": f"p{prompt}",
            "prompt": asked(prompt),
            "chosen": answered(good),
            "rejected": answered(bad),
        }
        for n, (prompt, good, bad) in enumerate(texts)
    ]
    for step in (Exact("rows"), Near("rows", 0.8, ("chosen", "rejected"))):
        found = cleaned([step], pairs, rows)
        assert kept(found) == ["r0", "r2", "r3", "r4"]


def test_short_answers_to_one_long_prompt_are_no_near_duplicates() -> None:
    rows = [completion(n, LONG, answer) for n, answer in enumerate(["yes", "no", "Yes"])]
    assert kept(cleaned([Near("rows", 0.8, ("completion",))], completions, rows)) == ["r000", "r001"]


def test_an_answer_called_good_and_bad_is_two_rows() -> None:
    rows = [completion(n, LONG, "yes", label=label) for n, label in enumerate([True, False, True])]
    for step in (Exact("rows"), Near("rows", 0.8, ("completion",))):
        assert kept(cleaned([step], unpaired, rows)) == ["r000", "r001"]


def test_near_prompts_are_found_and_others_are_not() -> None:
    other = LONG.replace("rough", "calm")
    rows = [completion(0, LONG), completion(1, other), completion(2, "How does a plane fly so high above the clouds?")]
    found = cleaned([Near("prompts", 0.8, ())], completions, rows)
    assert found.aside["reason"].to_list() == ["near_duplicate_prompt"]
    assert len(kept(cleaned([Near("prompts", 0.99, ())], completions, rows))) == 3


def test_a_held_out_row_stands_before_the_others() -> None:
    train, test = (
        Batch("completions", split, table(completions, [completion(n, f"{text} {LONG}")]))
        for split, n, text in (("train", 0, "a"), ("test", 1, "A"))
    )
    for steps in (
        [Exact("prompts")],
        [Exact("rows")],
        [Near("prompts", 0.8, ())],
        [Near("rows", 0.8, ("completion",))],
    ):
        found = chain.clean(steps, pl.concat([chain.read(steps, batch) for batch in (train, test)]))
        assert kept(found) == ["r001"]


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 5),
)
def test_order_and_batches_change_nothing(drawn: list[tuple[int, int, int]], random: Any, size: int) -> None:
    rows = [completion(n, f"{LONG} {'so' * p}", f"{LONG} {'no ' * a} {s}") for n, (p, a, s) in enumerate(drawn)]
    mixed = random.sample(rows, len(rows))
    for steps in ([Exact("prompts"), Near("prompts", 0.8, ())], [Exact("rows"), Near("rows", 0.7, ("completion",))]):
        whole = cleaned(steps, completions, rows)
        parts = [
            chain.read(steps, Batch("completions", "train", table(completions, mixed[at : at + size])))
            for at in range(0, len(mixed), size)
        ]
        again = chain.clean(steps, pl.concat(parts))
        assert again.kept.equals(whole.kept)
        assert again.aside.sort("row_id").equals(whole.aside.sort("row_id"))
        assert whole.kept.height + whole.aside.height == len(rows)
        assert set(whole.kept["row_id"]) | set(whole.aside["row_id"]) == {row["row_id"] for row in rows}
