"""Which language a text is in, as far as its script and its commonest words tell. No model, no data to load.

It can tell
  - by script: Chinese, Japanese (kana), Korean, Russian and Ukrainian (by letters that the other lacks), Greek, Hebrew, Arabic and
    Persian (by letters that Arabic lacks), Hindi and other Devanagari (as hi), Bengali, Tamil, Telugu, Thai;
  - by their commonest words, in Latin letters: English, German, French, Spanish, Portuguese, Italian, Dutch, Swedish, Polish, Turkish,
    Indonesian, Vietnamese.
A text of few words, of code or of numbers, in another language of Latin letters or in none of these scripts is not told (None). A
text in two languages is told as the one it has most of.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import polars as pl

from prefdata.steps.batch import Batch
from prefdata.steps.chain import Verdict

_READ = 2000  # characters of a text that are looked at
_LEAST_WORDS = 3  # common words of a language that make a text one of it
_LEAD = 1.3  # times as many of them as of any other language
_LEAST_SHARE = 0.3  # of a text's letters that a script has, for it to be told by script

# first characters of Unicode's names of letters -> language
_SCRIPTS = {
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "GREEK": "el",
    "HEBREW": "he",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
_COMMON = {
    "en": "the of and to in is that it for you with this are be what how not have from which would can do",
    "de": "der die das und ist nicht ein eine zu den mit von für auf wie was ich sie es im dem sich auch als werden",
    "fr": "le la les et est un une des du que qui dans pour pas vous je il au sur avec ce sont par quel comment",
    "es": "el la los las es un una que de en por para con no se del al como qué cómo lo su más está son",
    "pt": "os as um uma que de em para com não se do da dos na no como por mais são você está",
    "it": "il lo la gli un una che di in per con non si del della sono come nel più ho alla questo cosa",
    "nl": "de het een en is van niet dat in op te met voor zijn wat hoe ik je er aan worden ook naar bij",
    "sv": "och att det en ett är som för inte på med av jag du hur vad kan om till den har vi de från",
    "pl": "na nie się jest to że do jak co czy dla po od przez są ale tym być który jako tak",
    "tr": "ve bir bu ne için ile da de nasıl mi olarak daha çok gibi var ben en olan değil ki sonra her kadar",
    "id": "yang dan di ini itu dengan untuk dari pada adalah tidak dalam akan apa bagaimana saya ke atau bisa oleh juga",
    "vi": "và của là có cho không một các những được trong với người này đã như khi tôi để về làm thế nào gì",
}
LANGUAGES = tuple(sorted({*_SCRIPTS.values(), *_COMMON, "uk", "fa"}))
_BY_WORD = {
    word: tuple(code for code, words in _COMMON.items() if word in words.split())
    for words in _COMMON.values()
    for word in words.split()
}
_UKRAINIAN, _RUSSIAN, _PERSIAN = frozenset("іїєґ"), frozenset("ыэъё"), frozenset("پچژگ")
_WORD = re.compile(r"[^\W\d_]{2,}")  # a letter alone is a variable as often as a word


def identify(text: str) -> str | None:
    """One of LANGUAGES (ISO 639-1), or None."""
    text = text[:_READ]
    if not text.isascii():
        scripts = Counter(_script(letter) for letter in text if letter.isalpha())
        told = Counter({script: n for script, n in scripts.items() if script is not None})
        if told and told.total() >= _LEAST_SHARE * scripts.total():
            return _of_script(told, text.lower())
    return _by_words(text)


class Language:
    """Rows whose prompt or answers are in another language than those named; what can't be told stays."""

    name = "language"

    def __init__(self, languages: Sequence[str]) -> None:
        self._languages = list(languages)
        self.reads = "language"

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """The language of what the user says, and of each side."""
        said = {"prompt": [" ".join(texts) for texts in batch.user_texts], **batch.answer_texts}
        return {
            f"{side}_language": pl.Series(list(map(identify, texts)), dtype=pl.String) for side, texts in said.items()
        }

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """Rows with any part in another one."""
        parts = [name for name in rows.columns if name.endswith("_language")]
        details = [
            pl.when(~pl.col(name).is_in(self._languages)).then(
                pl.format(f"{name.removesuffix('_language')} is in {{}}", name)
            )
            for name in parts
        ]
        judged = rows.select("row_id", reason=pl.lit("other_language"), detail=pl.coalesce(details))
        return Verdict(judged.drop_nulls("detail"))


def _script(letter: str) -> str | None:
    return None if letter.isascii() else _SCRIPTS.get(unicodedata.name(letter, "").partition(" ")[0].partition("-")[0])


def _of_script(told: Counter[str], text: str) -> str:
    if told["ja"] and told["ja"] + told["zh"] >= told.total() / 2:
        return "ja"  # Chinese has no kana
    language = told.most_common(1)[0][0]
    letters = Counter(text)
    if language == "ru" and sum(letters[each] for each in _UKRAINIAN) > sum(letters[each] for each in _RUSSIAN):
        return "uk"
    if language == "ar" and any(letters[each] for each in _PERSIAN):
        return "fa"
    return language


def _by_words(text: str) -> str | None:
    found: Counter[str] = Counter()
    for word in _WORD.findall(text.lower()):
        codes = _BY_WORD.get(word, ())
        for code in codes:
            found[code] += 1
    if not found:
        return None
    (language, most), *others = found.most_common(2)
    second = others[0][1] if others else 0
    return language if most >= _LEAST_WORDS and most >= _LEAD * second else None
