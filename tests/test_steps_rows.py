"""Lengths, languages, caps, private data and hints: each rule on rows written for it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata.steps.caps import Cap
from prefdata.steps.language import LANGUAGES, Language, identify
from prefdata.steps.lengths import Bounds, Lengths
from prefdata.steps.noise_hints import NoiseHints
from prefdata.steps.private_data import Flagged, kinds, mask
from schemas import completions, pairs, prompts, unpaired
from tests.test_steps_duplicates import QUICK, answered, asked, cleaned, completion, kept

# -- lengths ---------------------------------------------------------------------------------------------------------


def test_bounds_are_the_last_lengths_that_stay() -> None:
    rows = [completion(n, "x", prompt_tokens=n, completion_tokens=10 - n) for n in range(11)]
    found = cleaned([Lengths(Bounds(2, 8), Bounds(least=4), ("completion",))], completions, rows)
    assert kept(found) == [f"r{n:03}" for n in range(2, 7)]
    assert sorted(found.aside.select("row_id", "reason", "detail").rows()) == [
        ("r000", "prompt_below_length", "prompt has 0 tokens, at least 2 are asked for"),
        ("r001", "prompt_below_length", "prompt has 1 tokens, at least 2 are asked for"),
        ("r007", "answer_below_length", "completion has 3 tokens, at least 4 are asked for"),
        ("r008", "answer_below_length", "completion has 2 tokens, at least 4 are asked for"),
        ("r009", "prompt_above_length", "prompt has 9 tokens, at most 8 are asked for"),
        ("r010", "prompt_above_length", "prompt has 10 tokens, at most 8 are asked for"),
    ]


def test_every_answer_of_a_pair_is_measured_and_a_prompt_alone_has_none() -> None:
    pair = {"row_id": "r0", "prompt_id": "p", "prompt": asked("x"), "prompt_tokens": 3, "chosen_tokens": 9}
    rows = [{**pair, "rejected_tokens": 2}, {**pair, "row_id": "r1", "rejected_tokens": 3}]
    assert kept(cleaned([Lengths(Bounds(), Bounds(3, 9), ("chosen", "rejected"))], pairs, rows)) == ["r1"]
    assert kept(cleaned([Lengths(Bounds(), Bounds(99), ())], prompts, [completion(0, "x", prompt_tokens=1)])) == [
        "r000"
    ]


# -- languages -------------------------------------------------------------------------------------------------------

SAID = {
    "en": "How can I find a flat in the city that is not too expensive?",
    "de": "Wie kann ich in der Stadt eine Wohnung finden, die nicht zu teuer ist?",
    "fr": "Comment est-ce que je peux trouver un appartement dans la ville qui ne soit pas cher ?",
    "es": "¿Cómo puedo encontrar un piso en la ciudad que no sea muy caro para los estudiantes?",
    "pt": "Como posso encontrar um apartamento na cidade que não seja caro e com um jardim?",
    "it": "Come posso trovare un appartamento nella città che non è troppo caro per gli studenti?",
    "nl": "Hoe kan ik een woning in de stad vinden die niet te duur is voor het gezin?",
    "sv": "Hur kan jag hitta en lägenhet i staden som inte är för dyr för att bo?",
    "pl": "Jak znaleźć mieszkanie w mieście, które nie jest za drogie dla studenta i jest do wynajęcia?",
    "tr": "Şehirde çok pahalı olmayan bir daire nasıl bulunur ve bu mümkün mü, ne kadar sürer?",
    "id": "Bagaimana saya bisa menemukan rumah di kota yang tidak mahal untuk keluarga ini?",
    "vi": "Làm thế nào để tôi tìm được một căn hộ không đắt trong thành phố này?",
    "ru": "Как мне найти недорогую квартиру в городе, чтобы было удобно?",
    "uk": "Як мені знайти недорогу квартиру в місті, щоб її вистачило?",
    "el": "Πώς μπορώ να βρω ένα διαμέρισμα στην πόλη;",
    "he": "איך אני יכול למצוא דירה בעיר?",
    "ar": "كيف يمكنني العثور على شقة في المدينة؟",
    "fa": "چگونه می‌توانم یک آپارتمان در شهر پیدا کنم؟",
    "hi": "मैं शहर में एक सस्ता घर कैसे खोजूं?",
    "bn": "আমি শহরে কীভাবে একটি বাসা খুঁজে পাব?",
    "ta": "நகரத்தில் ஒரு வீட்டை எப்படி கண்டுபிடிப்பது?",
    "te": "నగరంలో ఇల్లు ఎలా కనుగొనాలి?",
    "th": "ฉันจะหาอพาร์ตเมนต์ในเมืองได้อย่างไร",
    "zh": "我怎样才能在城里找到一套不太贵的公寓？",
    "ja": "市内で高くないアパートを見つけるにはどうすればいいですか？",
    "ko": "도시에서 비싸지 않은 아파트를 어떻게 찾을 수 있나요?",
}


def test_every_language_that_it_says_it_can_tell_is_told() -> None:
    assert sorted(SAID) == list(LANGUAGES)
    assert {code: identify(text) for code, text in SAID.items()} == {code: code for code in SAID}


@pytest.mark.parametrize("text", ["", "Hi!", "def f(x): return x + 1", "3 + 4 = 7", "Kako se zoveš?", "👍👍"])
def test_what_can_not_be_told_is_not(text: str) -> None:
    assert identify(text) is None


def test_rows_in_another_language_go_and_untold_ones_stay() -> None:
    rows = [
        completion(0, SAID["en"], SAID["en"]),
        completion(1, SAID["en"], SAID["de"]),
        completion(2, SAID["de"], "3"),
        completion(3, "Hi!", SAID["zh"]),
        completion(4, "Hi!", "3"),
    ]
    found = cleaned([Language(["en", "zh"])], completions, rows)
    assert kept(found) == ["r000", "r003", "r004"]
    assert found.aside["detail"].to_list() == ["completion is in de", "prompt is in de"]


# -- caps ------------------------------------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=20), st.integers(1, 4))
def test_caps_keep_as_many_as_they_say(drawn: list[tuple[str, str]], most: int) -> None:
    rows = [completion(n, prompt, source=source) for n, (prompt, source) in enumerate(drawn)]
    for of, place in (("prompt_id", 0), ("source", 1)):
        found = cleaned([Cap(of, most)], completions, rows)
        for value in {each[place] for each in drawn}:
            own = {row["row_id"] for row, each in zip(rows, drawn, strict=True) if each[place] == value}
            assert len(own & set(kept(found))) == min(most, len(own))


def test_which_rows_are_capped_is_drawn_by_seed() -> None:
    rows = [completion(n, "x") for n in range(40)]
    first, again, other = (kept(cleaned([Cap("prompt_id", 5, seed=seed)], completions, rows)) for seed in (0, 0, 1))
    assert first == again != other
    assert first != sorted(row["row_id"] for row in rows)[:5]


# -- private data ----------------------------------------------------------------------------------------------------

PRIVATE = {
    "write to jane.doe+x@mail.co.uk, please": "write to [EMAIL], please",
    "<ab@cd.de>": "<[EMAIL]>",
    "call +49 30 1234567 now": "call [PHONE] now",
    "call +1 (415) 867-5309.": "call [PHONE].",
    "tel: (415) 867-5309": "tel: [PHONE]",
    "415-867-5309 or 0049/30/901820": "[PHONE] or [PHONE]",
    "key sk-proj-abcdefghij0123456789ABCD": "key [KEY]",
    "AKIAIOSFODNN7EXAMPLE": "[KEY]",
    "token=ghp_abcdefghijklmnopqrstuvwxyz0123456789": "token=[KEY]",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH": "[KEY]",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- x": "[KEY] x",
}
PUBLIC = [
    "me@example.com",
    "jane@mail.test",
    "call 555-0123 or (212) 555-0142",
    "@handle and a@b",
    "3.14159265358979",
    "2024-05-17 12:30:00",
    "192.168.100.200",
    "https://x.org/a/+4930123456789",
    "ISBN 978-3-16-148410-0",
    "1,234,567,890",
    "sk-learn and task-oriented-dialogue-systems",
    "x = 415 - 867 - 5309",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_private_data_is_found_and_masked(text: str) -> None:
    masked = PRIVATE[text]
    assert mask(text) == masked
    assert kinds(text) == [kind for kind in ("email", "phone", "key") if f"[{kind.upper()}]" in masked] != []
    assert kinds(masked) == []


@pytest.mark.parametrize("text", PUBLIC)
def test_what_only_looks_private_is_left(text: str) -> None:
    assert (kinds(text), mask(text)) == ([], text)


@QUICK
@given(st.text(alphabet="ab@.+-()0123 sk_\n", max_size=60))
def test_masking_leaves_nothing_to_mask(text: str) -> None:
    assert kinds(mask(text)) == []


def test_rows_are_flagged_wherever_it_stands() -> None:
    rows = [completion(0, "x"), completion(1, "ab@cd.de"), completion(2, "x", "+49 30 1234567 and ab@cd.de")]
    found = cleaned([Flagged()], completions, rows)
    assert found.kept["private_data"].to_list() == [None, ["email"], ["email", "phone"]]


# -- hints -----------------------------------------------------------------------------------------------------------


def pair(number: int, chosen: str, rejected: str, prompt: str = "Why?", **more: Any) -> dict[str, Any]:
    sides = {"chosen": answered(chosen), "rejected": answered(rejected)}
    return {"row_id": f"r{number}", "prompt_id": prompt, "prompt": asked(prompt), **sides, **more}


def hints(kind: Any, rows: list[dict[str, Any]]) -> list[list[str] | None]:
    found = cleaned([NoiseHints(kind.KIND)], kind, rows)
    assert found.aside.is_empty()
    said = dict(found.kept.select("row_id", "noise_hints").rows())
    return [said[row["row_id"]] for row in rows]


def test_pairs_in_both_orders() -> None:
    rows = [pair(0, "a", "b"), pair(1, "B ", "A"), pair(2, "a", "c"), pair(3, "b", "a", "Who?"), pair(4, "d", "d")]
    assert hints(pairs, rows) == [["both_orders"], ["both_orders"], None, None, None]


def test_pairs_whose_scores_disagree() -> None:
    rows = [
        pair(0, "a", "b", chosen_score=1.0, rejected_score=2.0),
        pair(1, "c", "d", margin=-1.0, preference=0.4),
        pair(2, "e", "f", chosen_score=3.0, rejected_score=1.0),
        pair(3, "e", "g", chosen_score=4.0, rejected_score=1.0),
        pair(4, "h", "i", chosen_score=4.0, rejected_score=1.0, preference=0.6),
    ]
    both = ["scores_disagree"]
    assert hints(pairs, rows) == [both, ["scores_disagree", "unlikely"], both, both, None]


def test_completions_whose_scores_disagree() -> None:
    def scored(number: int, answer: str, score: float | None, *named: float, prompt: str = "Why?") -> dict[str, Any]:
        scores = [{"scorer": f"s{n}", "score": each} for n, each in enumerate(named)] or None
        return completion(number, prompt, answer, score=score) | ({"scores": scores} if named else {})

    rows = [
        scored(0, "a", 1.0, prompt="x"),
        scored(1, "A", 2.0, prompt="x"),
        scored(2, "b", 2.0, prompt="x"),
        scored(3, "c", None, prompt="x"),
    ]
    assert hints(completions, rows) == [["scores_disagree"], ["scores_disagree"], None, None]


def test_completions_whose_scorers_disagree_with_the_score() -> None:
    import pyarrow as pa

    from prefdata.steps import chain
    from prefdata.steps.batch import Batch
    from tests.test_steps_duplicates import table

    rows = [completion(n, "Why?", f"{n}", score=float(score)) for n, score in enumerate((3, 2, 1))]
    named = [[1.0, 1.0, 9.0], [2.0, 2.0, 8.0], [0.0, 3.0, 7.0]]  # two of three prefer row 1 to row 0, one row 2
    scores = [[{"scorer": f"s{n}", "score": each} for n, each in enumerate(row)] for row in named]
    told = table(completions, rows).append_column(completions.OPTIONAL.field("scores"), pa.array(scores))
    step = NoiseHints("completions")
    found = chain.clean([step], chain.read([step], Batch("completions", "train", told)))
    assert found.kept["noise_hints"].to_list() == [["scores_disagree"], ["scores_disagree"], None]


def test_answers_judged_both_ways() -> None:
    rows = [
        completion(n, "x", answer, label=label)
        for n, (answer, label) in enumerate((("a", True), ("A", False), ("b", True), ("b", True)))
    ]
    assert hints(unpaired, rows) == [["both_labels"], ["both_labels"], None, None]
    assert hints(prompts, [completion(0, "x")]) == [None]
