"""The formats, in order, and which of them a file's rows are in.

A new format is one file with NAME, NEEDS and `parse`, and one line here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from prefdata.errors import UserError
from prefdata.records import Parsed, RawRow, SetAside
from prefdata.sources import (
    alpaca,
    alpaca_pairs,
    conversations,
    demonstrations,
    explicit,
    fine_grained_qa,
    helpsteer,
    helpsteer_pairs,
    hh,
    index_label,
    oasst,
    openai_preference,
    prompts,
    scored,
    ultrafeedback,
    unpaired,
)
from prefdata.sources.refusal import LAYOUT_REASONS, Parse, Row


class Format(Protocol):
    """One layout of rows: a module of this package."""

    NAME: str  # what the user calls it
    KIND: str  # what its rows become: a kind of `prefdata.logical.BASE`
    NEEDS: str  # the columns it reads, in words
    parse: Parse  # what a row says, or why it is set aside; raises on nothing that a row can hold


@runtime_checkable
class GroupFormat(Format, Protocol):
    """A format in which what a row says depends on others of its file, such as the messages of a tree."""

    # every row of a file with what it says among the others, in the file's order
    parse_file: Callable[[Iterator[RawRow]], Iterator[tuple[RawRow, Parsed]]]


@runtime_checkable
class CautiousFormat(Format, Protocol):
    """A format that needs so few columns that rows of other layouts have them too: found only where it is `sure`."""

    sure: Callable[[Row], bool]  # of a row that the format can read


@runtime_checkable
class SplitFormat(Format, Protocol):
    """A format whose rows themselves name the split that they are in."""

    SPLIT: str  # the column


FORMATS: tuple[Format, ...] = (
    hh,
    explicit,
    conversations,
    demonstrations,
    unpaired,
    scored,
    index_label,
    fine_grained_qa,
    oasst,
    alpaca,
    alpaca_pairs,
    helpsteer,
    helpsteer_pairs,
    ultrafeedback,
    openai_preference,
    prompts,
)

# columns in which some format finds what was asked; rows without any of them are told so in a sentence
_ASKED_IN = frozenset(
    ("prompt", "instruction", "input", "question", "messages", "conversations", "context", "chosen", "turns")
)


@dataclass(frozen=True)
class Sample:
    """The first rows of one input, those that could not be read among them."""

    shown: str
    values: Sequence[Row | SetAside]

    @property
    def rows(self) -> list[Row]:
        """Those that could be read."""
        return [value for value in self.values if not isinstance(value, SetAside)]


def parser(format_: Format) -> Callable[[Iterator[RawRow]], Iterator[tuple[RawRow, Parsed]]]:
    """What turns the rows of one file into what they say; a row that could not be read says why itself."""
    if isinstance(format_, GroupFormat):
        return format_.parse_file
    return partial(_one_by_one, format_.parse)


def _one_by_one(parse: Parse, rows: Iterator[RawRow]) -> Iterator[tuple[RawRow, Parsed]]:
    return ((row, row.value if isinstance(row.value, SetAside) else parse(row.value)) for row in rows)


def named(name: str) -> Format:
    """The format of that name."""
    for format_ in FORMATS:
        if name == format_.NAME:
            return format_
    raise UserError(f"There is no format {name!r}. Known are {', '.join(each.NAME for each in FORMATS)}.")


def detect(samples: Sequence[Sample]) -> tuple[Format, str]:
    """The format that fits the most rows, and a sentence of why.

    A row fits when it parses, or when it is set aside for what it says and not for how it is laid out. Of formats that
    fit equally many, the one that parses more of them is it, and of those the first in order.
    """
    total = sum(len(sample.rows) for sample in samples)
    if not total:
        problem = next(value.detail for sample in samples for value in sample.values if isinstance(value, SetAside))
        raise UserError(f"None of the first rows of {listed(samples)} could be read ({problem}).")
    fits = {format_.NAME: sum(_fits(format_, sample) for sample in samples) for format_ in FORMATS}
    best = max(FORMATS, key=lambda format_: (fits[format_.NAME], _parsed(format_, samples)))
    if not fits[best.NAME]:
        raise UserError(_nothing_fits(samples, total))
    _refuse_mixture(best, samples)
    others = ", ".join(f"{name} {count}" for name, count in fits.items() if name != best.NAME)
    return best, f"{best.NAME} fits {fits[best.NAME]} of the first {total} rows (others: {others})"


def listed(samples: Sequence[Sample]) -> str:
    """The inputs by name, as many as fit in a sentence."""
    return ", ".join(sample.shown for sample in samples[:3]) + (" ..." if len(samples) > 3 else "")


def _fits(format_: Format, sample: Sample) -> int:
    rows = sample.rows if not isinstance(format_, CautiousFormat) else filter(format_.sure, sample.rows)
    return sum(_layout_problem(format_.parse(row)) is None for row in rows)


def _parsed(format_: Format, samples: Sequence[Sample]) -> int:
    return sum(not isinstance(format_.parse(row), SetAside) for sample in samples for row in sample.rows)


def _layout_problem(parsed: Parsed) -> str | None:
    return parsed.detail if isinstance(parsed, SetAside) and parsed.reason in LAYOUT_REASONS else None


def _refuse_mixture(best: Format, samples: Sequence[Sample]) -> None:
    """A file in which another format fits most rows, and this one none, would be set aside as a whole."""
    for sample in samples:
        if _fits(best, sample):
            continue
        for format_ in FORMATS:
            if _fits(format_, sample) * 2 > len(sample.rows):
                others = ", ".join(other.shown for other in samples if _fits(best, other))
                raise UserError(
                    f"{sample.shown} is in the format {format_.NAME}, and {others} in {best.NAME}. "
                    "Ingest them one by one, or name one format for all."
                )


def _nothing_fits(samples: Sequence[Sample], total: int) -> str:
    columns = Counter(str(key) for sample in samples for row in sample.rows for key in row)
    found = ", ".join(ascii(name[:40]) for name, _ in columns.most_common(12)) or "none"
    if _ASKED_IN.isdisjoint(columns):
        return (
            f"{listed(samples)} says nowhere what was asked (columns: {found}), and an answer is compared, imitated or "
            "judged only as the answer to a prompt: add a prompt column, or name a source that has one."
        )
    lines = [f"No known format fits {listed(samples)}: none of the first {total} rows (columns: {found}). Tried:"]
    for format_ in FORMATS:
        problems = (_problem(format_, row) for sample in samples for row in sample.rows)
        lines.append(f"  {format_.NAME}: {next(filter(None, problems), 'no row')}. It needs {format_.NEEDS}.")
    lines.append("Rename the columns to fit one of these, or write the rows anew in its layout.")
    return "\n".join(lines)


def _problem(format_: Format, row: Row) -> str | None:
    """Why a row does not fit."""
    problem = _layout_problem(format_.parse(row))
    if problem is None and isinstance(format_, CautiousFormat) and not format_.sure(row):
        return "other columns may hold answers"
    return problem
