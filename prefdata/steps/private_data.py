"""Private data in texts: e-mail addresses, phone numbers, and keys of services; found by how they are written.

What is found is what has an unmistakable form; names, addresses and numbers in words are not looked for. Examples that
standards set apart (example.com, 555-01xx) are no one's, and are left.
"""

import re
from collections.abc import Callable
from typing import Any

import polars as pl

from prefdata.steps.batch import Batch
from prefdata.steps.chain import ASIDE, Verdict
from schemas.cleaned import PRIVATE_DATA

FLAG, MASK = "flag", "mask"
COLUMN = PRIVATE_DATA.name

EMAIL, PHONE, KEY = "email", "phone", "key"
MASKS = {EMAIL: "[EMAIL]", PHONE: "[PHONE]", KEY: "[KEY]"}
_DIGITS = (9, 15)  # of a phone number; 15 is the most that E.164 allows

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])")
_NO_ONES = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|org|net|edu)|\w+\.(?:example|invalid|test|localhost))$", re.IGNORECASE
)
# with a country's code, or an area code in brackets, or three groups as North America writes them
_PHONE = re.compile(
    r"(?<![\w+.,/=-])(?:"
    r"(?:\+|00)\d{1,3}[ .\-/]?(?:\(\d{1,4}\)[ .\-/]?)?\d{1,5}(?:[ .\-/]?\d{2,5}){1,4}"
    r"|\(\d{2,5}\)[ .\-/]?\d{2,4}(?:[ .\-/]?\d{2,5}){1,3}"
    r"|[2-9]\d{2}([ .\-])[2-9]\d{2}\1\d{4}"
    r")(?![\w/=]|[.,-]\d)"
)
_FICTION = re.compile(r"55501\d\d$")
_KEY = re.compile(
    r"(?<![\w/+-])(?:"
    r"sk-(?:proj-|ant-|or-|live-)?[\w-]{20,200}"  # OpenAI, Anthropic and others
    r"|(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,99}"  # Stripe
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[0-9A-Za-z]{36,251}|github_pat_\w{22,255}"  # GitHub
    r"|glpat-[\w-]{20,64}"  # GitLab
    r"|hf_[0-9A-Za-z]{30,64}"  # Hugging Face
    r"|AIza[\w-]{35}"  # Google
    r"|xox[abeoprs]-[0-9A-Za-z-]{10,250}"  # Slack
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,2000}\.[\w-]{10,2000}"  # signed JSON web tokens
    r")(?![\w/+-])"
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----[\s\S]{0,8000}?(?:-----END (?:[A-Z]+ )?PRIVATE KEY-----|\Z)"
)


def kinds(text: str) -> list[str]:
    """Which kinds of private data a text holds, in a fixed order."""
    return [kind for kind in MASKS if any(True for _ in _found(kind, text))]


def mask(text: str) -> str:
    """The text with [EMAIL], [PHONE] or [KEY] in place of what is found."""
    for kind, stands in MASKS.items():
        parts, last = [], 0
        for match in _found(kind, text):
            parts += [text[last : match.start()], stands]
            last = match.end()
        text = "".join([*parts, text[last:]])
    return text


def kinds_of(batch: Batch) -> pl.Series:
    """The kinds in prompt and answers of each row; null: none."""
    parts = [batch.prompts, *batch.answers.values()]
    found = [
        sorted({kind for turns in row for turn in turns for kind in kinds(turn.text)}) or None
        for row in zip(*parts, strict=True)
    ]
    return pl.Series(found, dtype=pl.List(pl.String))


class Flagged:
    """A column that says which kinds a row holds; null: none."""

    name = COLUMN
    reads: Any = COLUMN

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """The kinds."""
        return {COLUMN: kinds_of(batch)}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """Nothing is set aside."""
        return Verdict(columns=rows.select("row_id", COLUMN))


class Masked:
    """Of rows that were masked before they came here, the column says which kinds; those that can't be are set aside.

    So are those that are equal to another row now; a row of the test split stands before others, then the smallest id.
    """

    name = COLUMN
    reads: Any = "masked"

    def read(self, batch: Batch) -> dict[str, pl.Series]:
        """What was said when they were masked, and what they are called now."""
        assert batch.before is not None
        said = {name: batch.before[name] for name in (COLUMN, "reason", "detail")}
        return {**said, "masked_id": pl.Series(batch.rows["row_id"])}

    def judge(self, rows: pl.DataFrame) -> Verdict:
        """The column, and who goes."""
        refused = pl.col("reason").is_not_null()
        left = rows.filter(~refused).sort(pl.col("split") != "test", "row_id")
        again = left.filter(~pl.col("masked_id").is_first_distinct()).select(
            "row_id", reason=pl.lit("duplicate_row"), detail=pl.format("row {}, once masked", "masked_id")
        )
        return Verdict(pl.concat([rows.filter(refused).select(*ASIDE), again]), rows.select("row_id", COLUMN))


def _found(kind: str, text: str) -> "list[re.Match[str]]":
    """A look at a sign that all of a kind have saves most texts the search."""
    sign, pattern, counts = _LOOKED_FOR[kind]
    return [match for match in pattern.finditer(text) if counts(match.group())] if sign(text) else []


def _is_someones(address: str) -> bool:
    return _NO_ONES.search(address) is None


def _is_number(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return _DIGITS[0] <= len(digits) <= _DIGITS[1] and _FICTION.search(digits) is None


_LOOKED_FOR: dict[str, tuple[Callable[[str], Any], "re.Pattern[str]", Callable[[str], bool]]] = {
    EMAIL: (lambda text: "@" in text, _EMAIL, _is_someones),
    PHONE: (re.compile(r"\d[\d ()./-]{7}").search, _PHONE, _is_number),
    KEY: (
        re.compile(r"sk[-_]|[pr]k_|A[KS]IA|gh[pousr]_|github_|glpat-|hf_|AIza|xox|eyJ|-----BEGIN").search,
        _KEY,
        bool,
    ),
}
