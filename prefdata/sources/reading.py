"""Reading: from what the user named to (row as read, what it says), one item for every row, in order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from typing import Any

from prefdata.blocks import Blocks, texts_in
from prefdata.errors import UserError
from prefdata.records import Completion, Message, Origin, Parsed, RawRow, Record, SetAside, Several, sides
from prefdata.sources import formats, hub, inputs
from prefdata.sources.splits import split_of_name

ROWS_TRIED = 200  # of each input, to find the format


class Reading:
    """Inputs in one format. Iterating streams them and fills `sources`; iterating again starts anew."""

    def __init__(
        self, found: Sequence[inputs.Input], format_: formats.Format, why: str, stated: Sequence["Stated"]
    ) -> None:
        self.format, self.kind = format_.NAME, format_.KIND
        self._split_column = format_.SPLIT if isinstance(format_, formats.SplitFormat) else None
        self.grouped = isinstance(format_, formats.GroupFormat)  # what a row says depends on others of its file
        self.why = why  # how the format was found, in a sentence
        self.sources: list[dict[str, Any]] = []  # the manifest's: one entry per input that was read to its end
        self._inputs, self._parse, self._said = found, formats.parser(format_), stated
        self._stated = [said.or_else(each) for said, each in zip(stated, found, strict=True)]
        self._stamps: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[RawRow, Parsed]]:
        self.sources = []
        for each, stated in zip(self._inputs, self._stated, strict=True):
            tally = inputs.Tally()
            for raw_row, parsed in self._parse(self._rows(each, tally, stated)):
                yield raw_row, _with_source(parsed, stated)
            self._refuse_changed(each, tally)
            self.sources.append(
                {
                    "name": stated.name,
                    "path": each.shown,
                    "sha256": tally.hash.hexdigest(),
                    "bytes": tally.size,
                    "rows": tally.rows,
                    "format": self.format,
                    "license": stated.license,
                    "origin": stated.origin,
                }
            )

    def stamps(self) -> list[str]:
        """What the inputs hold now, by content, without parsing rows: equal stamps mean equal rows."""
        self._stamps = {each.shown: each.stamp() for each in self._inputs}
        return list(self._stamps.values())

    def count(self) -> int:
        """How many rows there are, read without asking what they say."""
        return sum(1 for each in self._inputs for _ in each.read())

    def splits(self) -> list[tuple[str, str | None]]:
        """Each input, and the split that its rows are in; None: neither the user nor the input names one."""
        return [(each.shown, stated.split) for each, stated in zip(self._inputs, self._stated, strict=True)]

    def _refuse_changed(self, each: inputs.Input, tally: inputs.Tally) -> None:
        """What is read must be what was stamped, or a build would be recognised by what it was not made from."""
        stamp = self._stamps.get(each.shown)
        if stamp is not None and stamp != each.stamp_of(tally.hash.hexdigest()):
            raise UserError(f"{each.shown} changed while it was read. Give the same command again when it is at rest.")

    def _rows(self, each: inputs.Input, tally: inputs.Tally, stated: "Stated") -> Iterator[RawRow]:
        for value, raw in each.read(tally):
            origin = Origin(each.shown, tally.rows, self._split_of(value) or stated.split)
            tally.rows += 1
            yield RawRow(origin, value, sha256(raw).hexdigest())

    def _split_of(self, value: Mapping[str, object] | SetAside) -> str | None:
        """The split that a row names, where its format has a column for it and the user names none."""
        if self._split_column is None or isinstance(value, SetAside) or any(said.split for said in self._said):
            return None
        named = value.get(self._split_column)
        return split_of_name(named) if isinstance(named, str) else None


@dataclass(frozen=True)
class Stated:
    """What is said of a source, by the user or else by the source itself."""

    split: str | None = None
    name: str | None = None
    license: str | None = None
    origin: str | None = None

    def or_else(self, source: inputs.Input) -> "Stated":
        """What the user left open, from the source."""
        facts = source.facts()
        return Stated(
            self.split or source.split,
            self.name or source.name,
            self.license or facts.get("license"),
            self.origin or facts.get("origin"),
        )


def read(
    paths: Sequence[str] | str,
    *,
    format: str | None = None,
    split: str | None = None,
    name: str | None = None,
    license: str | Sequence[str | None] | None = None,
    origin: str | Sequence[str | None] | None = None,
    hub_config: str | None = None,
    hub_revision: str | None = None,
    hub_splits: Sequence[str] = (),
) -> Reading:
    """Open files, folders, globs, fsspec URLs or hub data sets as one reading.

    format    one of `formats.FORMATS`; None: the one that fits the first rows, see `formats.detect`
    split     train or test for every row; None: what the source's own names say
    name      what the rows call their source; None: the data set's, folder's or file's name
    license, origin     what the user says of them, and not the source itself: of all paths, or of each in order
    hub_*     which configuration, revision and splits of a hub data set; the splits by its own names, all if empty
    """
    if split not in (None, "train", "test"):
        raise UserError(f"There is no split {split!r}: rows go to train or to test.")
    given = formats.named(format) if format is not None else None
    names = [str(path) for path in ([paths] if isinstance(paths, str) else paths)]
    if not names:
        raise UserError("Nothing to read was named. Give files, folders, globs, URLs or hub data sets.")
    licenses, origins = _of_each(names, "license", license), _of_each(names, "origin", origin)
    inputs.refuse_unwritable(name, *licenses, *origins)
    located = inputs.locate(names, hub_options=hub.Options(hub_config, hub_revision, tuple(hub_splits)))
    stated = [Stated(split, name, licenses[number], origins[number]) for number, _ in located]
    found = [each for _, each in located]
    samples = _samples(found)
    if given is not None:
        return Reading(found, given, f"{given.NAME} was asked for", stated)
    return Reading(found, *formats.detect(samples), stated)


def _of_each(names: Sequence[str], what: str, said: str | Sequence[str | None] | None) -> Sequence[str | None]:
    """What is said of each name."""
    if said is None or isinstance(said, str):
        return [said] * len(names)
    if len(said) != len(names):
        raise UserError(
            f"{what}: {len(said)} are given ({', '.join(map(str, said))}) for {len(names)} sources. "
            "Give one for all of them, or as many as there are sources."
        )
    return said


def _samples(found: Sequence[inputs.Input]) -> list[formats.Sample]:
    """The first rows of each input; refused when there is no row at all."""
    samples = [formats.Sample(each.shown, [v for v, _ in islice(each.read(), ROWS_TRIED)]) for each in found]
    if not any(sample.values for sample in samples):
        raise UserError(f"There are no rows in {formats.listed(samples)}.")
    return samples


def _with_source(parsed: Parsed, stated: Stated) -> Parsed:
    """What a row says, with the name and licence of its source; text that UTF-8 can't hold is refused."""
    if isinstance(parsed, Several):
        return replace(parsed, parts=tuple(_sourced(part, stated) for part in parsed.parts))
    return _sourced(parsed, stated)


def _sourced(part: Record | SetAside, stated: Stated) -> Record | SetAside:
    if isinstance(part, SetAside):  # what it quotes of the row may be text that no file can hold
        return replace(part, detail=part.detail.encode("utf-8", "replace").decode())
    said = [*_turns(part)]
    if any(map(_has_lone_surrogate, (part.tools, *(text for turn in said for text in _texts(turn)), *_names(part)))):
        return SetAside("lone_surrogate", "half of a surrogate pair stands alone in the text")
    if any(texts_in(turn.content) and not isinstance(turn.content, Blocks) for turn in said):
        return SetAside("text_like_blocks")
    return replace(part, source=stated.name, license=stated.license)


def _turns(record: Record) -> Iterator[Message]:
    """Every turn of a record."""
    yield from record.prompt
    for side in sides(record).values():
        yield from side


def _has_lone_surrogate(text: str | None) -> bool:
    if text is None or text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _texts(turn: Message) -> tuple[str | None, ...]:
    return turn.content, turn.name, turn.tool_calls, turn.tool_call_id


def _names(record: Record) -> tuple[str | None, ...]:
    if not isinstance(record, Completion):
        return ()
    return record.generator, *(each.scorer for each in record.scores)
