"""The shortcut probe on a version's rows: chosen against rejected, and what was regenerated against what it replaced."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prefdata.report import probe
from prefdata.report.pieces import Decoder
from prefdata.report.probe import Features, Finding

MOST_PAIRS = 2000


@dataclass(frozen=True)
class Line:
    """What one kind of feature alone gives away of one question."""

    question: str
    feature: str
    finding: Finding


def probed(sample: pa.Table, decoder: Decoder | None) -> list[Line]:
    """Every question that the rows of pairs allow. Without a tokenizer, segments are told by token ids alone."""
    rows = sample.slice(0, MOST_PAIRS)
    if not rows.num_rows:
        return []
    found = list(_lines("chosen from rejected", _sides(rows), _groups(rows)))
    if "segment_start" in rows.column_names:
        regenerated = rows.filter(pa.compute.is_valid(rows["segment_start"]))
        if regenerated.num_rows:
            features = _segments(regenerated, decoder)
            found += _lines("the original from the regenerated segment", features, _groups(regenerated))
    return found


def _lines(question: str, features: dict[str, Callable[[], Features]], groups: Sequence[str]) -> Iterator[Line]:
    for name, make in features.items():
        yield Line(question, name, probe.probe(make(), groups))


def _groups(rows: pa.Table) -> list[str]:
    """Pairs that share a prompt or an answer, by tokens."""
    answers = (map(tuple, rows[f"{side}_ids"].to_pylist()) for side in ("chosen", "rejected"))
    return probe.joined(rows["prompt_id"].to_pylist(), *map(list, answers))


def _sides(rows: pa.Table) -> dict[str, Callable[[], Features]]:
    chosen, rejected = (_texts(rows[side]) for side in ("chosen", "rejected"))
    return {
        "length": lambda: probe.lengths(rows["chosen_tokens"].to_pylist(), rows["rejected_tokens"].to_pylist()),
        "format": lambda: probe.formats(chosen, rejected),
        "bag of words": lambda: probe.words(chosen, rejected),
    }


def _segments(rows: pa.Table, decoder: Decoder | None) -> dict[str, Callable[[], Features]]:
    starts = rows["segment_start"].to_pylist()
    original = _slices(rows["chosen_ids"], starts, rows["segment_source_end"].to_pylist())
    written = _slices(rows["rejected_ids"], starts, rows["segment_end"].to_pylist())
    length = {"length": lambda: probe.lengths(map(len, original), map(len, written))}
    if decoder is None:
        bags = [[{f"token {id_}" for id_ in ids} for ids in side] for side in (original, written)]
        return {**length, "bag of tokens": lambda: probe.bags(*bags)}
    texts = [[decoder.text(ids) for ids in side] for side in (original, written)]
    return {**length, "format": lambda: probe.formats(*texts), "bag of words": lambda: probe.words(*texts)}


def _slices(ids: pa.ChunkedArray, starts: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    return [row[start:end] for row, start, end in zip(ids.to_pylist(), starts, ends, strict=True)]


def _texts(messages: pa.ChunkedArray) -> list[str]:
    return ["\n".join(_text(message) for message in row) for row in messages.to_pylist()]


def _text(message: dict[str, Any]) -> str:
    return "\n".join(part for part in (message["content"], message["tool_calls"]) if part)
