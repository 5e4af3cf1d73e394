"""The rows that a page shows: prompts, answers in pieces shaded by their reference log-probs, what was regenerated."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prefdata.report.charts import MINUS
from prefdata.report.pieces import Decoder

MOST_ROWS = 200
MOST_TOKENS = 80_000  # of answers on a page, which is then some 3 MB
MOST_TOKENS_OF_ANSWER = 2_000
MOST_CHARACTERS = 6_000  # of a turn of a prompt, or of an answer without tokens
_LEVELS = (0.1, 0.5, 1.5, 3.0, 6.0, 10.0)  # nats below zero at which the next shade begins


@dataclass(frozen=True)
class Shaded:
    """A piece of text and how likely it was."""

    text: str
    level: int | None  # 0: certain; higher: more surprising; None: not known, or not scored
    logp: float | None


@dataclass(frozen=True)
class Answer:
    """One side of a row. Pieces before, in and after what a regeneration wrote or replaced."""

    name: str
    facts: tuple[str, ...]
    parts: tuple[tuple[str, tuple[Shaded, ...]], ...]  # ("", pieces) or ("segment", pieces), in order
    more: str = ""  # what was left out


@dataclass(frozen=True)
class Turn:
    """A message of a prompt."""

    role: str
    text: str


@dataclass(frozen=True)
class Row:
    """A row as it is shown."""

    row_id: str
    split: str
    begins: str
    badges: tuple[str, ...]
    facts: tuple[str, ...]
    turns: tuple[Turn, ...]
    answers: tuple[Answer, ...]


def shown(sample: pa.Table, sides: Sequence[str], decoder: Decoder | None) -> list[Row]:
    """The first rows of a sample, as many as `MOST_ROWS` and `MOST_TOKENS` allow."""
    found: list[Row] = []
    tokens = 0
    for row in _rows(sample.slice(0, MOST_ROWS)):
        tokens += sum(min(len(row[f"{side}_ids"]), MOST_TOKENS_OF_ANSWER) for side in sides)
        if found and tokens > MOST_TOKENS:
            break
        found.append(_row(row, sides, decoder))
    return found


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=32):
        yield from batch.to_pylist()


def _row(row: Mapping[str, Any], sides: Sequence[str], decoder: Decoder | None) -> Row:
    turns = tuple(_turn(message) for message in row["prompt"])
    asked = " ".join(turns[-1].text.split()) if turns else ""
    return Row(
        row["row_id"],
        row["split"],
        asked[:160],
        tuple(_badges(row, sides)),
        tuple(_facts(row)),
        turns,
        tuple(_answer(row, side, decoder) for side in sides),
    )


def _turn(message: Mapping[str, Any]) -> Turn:
    text = message["content"] or ""
    if message["tool_calls"]:
        text += f"\n{message['tool_calls']}"
    cut = f"{text[:MOST_CHARACTERS]} … ({len(text) - MOST_CHARACTERS:,} more characters)"
    return Turn(message["role"], cut if len(text) > MOST_CHARACTERS else text)


def _badges(row: Mapping[str, Any], sides: Sequence[str]) -> Iterator[str]:
    """Marks that the page can be narrowed down to."""
    if len(sides) == 2:
        chosen, rejected = row["chosen_tokens"], row["rejected_tokens"]
        if chosen != rejected:
            yield "chosen longer" if chosen > rejected else "rejected longer"
        one, other = row.get("ref_chosen_logps"), row.get("ref_rejected_logps")
        if one is not None and other is not None and one < other:
            yield "reference prefers rejected"
    if row.get("label") is not None:
        yield "desirable" if row["label"] else "undesirable"
    if any(row[f"{side}_finish"] == "length" for side in sides):
        yield "cut"
    if row.get("ended_early"):
        yield "ended early"


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"row {row['row_id'][:12]}"
    yield row["split"]
    yield f"{row['source']}, {row['method']}"
    if row.get("generator"):
        yield f"by {row['generator']}"
    for name in ("margin", "score", "preference", "weight"):
        if row.get(name) is not None:
            yield f"{name} {row[name]:.3g}"
    yield from (f"{each['scorer']} {each['score']:.3g}" for each in row.get("scores") or ())
    if row.get("segment_start") is not None:
        start, end, source_end = row["segment_start"], row["segment_end"], row["segment_source_end"]
        yield f"{source_end - start} tokens regenerated as {end - start}, from token {start}"


def _answer(row: Mapping[str, Any], side: str, decoder: Decoder | None) -> Answer:
    tokens, total = row[f"{side}_tokens"], row.get(f"ref_{side}_logps")
    facts = [f"{tokens:,} tokens"]
    if total is not None:
        facts.append(f"{total:.1f} nats, {total / max(tokens, 1):.2f} per token".replace("-", MINUS))
    if row.get(f"{side}_score") is not None:
        facts.append(f"score {row[f'{side}_score']:.3g}")
    facts.append("ends by itself" if row[f"{side}_finish"] == "stop" else "cut, no end token")
    if decoder is None:
        text = "\n".join(message["content"] or "" for message in row[side])
        more = f"{len(text) - MOST_CHARACTERS:,} more characters" if len(text) > MOST_CHARACTERS else ""
        return Answer(side, tuple(facts), (("", (Shaded(text[:MOST_CHARACTERS], None, None),)),), more)
    ids = row[f"{side}_ids"][:MOST_TOKENS_OF_ANSWER]
    more = f"{len(row[f'{side}_ids']) - len(ids):,} more tokens" if len(ids) < len(row[f"{side}_ids"]) else ""
    return Answer(side, tuple(facts), tuple(_parts(row, side, ids, decoder)), more)


def _parts(
    row: Mapping[str, Any], side: str, ids: Sequence[int], decoder: Decoder
) -> Iterator[tuple[str, tuple[Shaded, ...]]]:
    """Cut where a segment begins and ends; each part is decoded as it stands in the whole answer."""
    logps, mask = row.get(f"ref_{side}_token_logps"), row.get(f"{side}_loss_mask")
    start, end = _segment(row, side)
    parts: dict[str, list[Shaded]] = {"before": [], "segment": [], "after": []}
    for piece in decoder.pieces(ids):
        where = "before" if piece.start < start else "segment" if piece.start < end else "after"
        # the sum over the scored tokens of a character that is spread over several
        within = range(piece.start, piece.end)
        scored = [logps[at] for at in within if mask is None or mask[at]] if logps is not None else []
        logp = sum(scored) if scored else None
        parts[where].append(Shaded(piece.text, None if logp is None else bisect_left(_LEVELS, -logp), logp))
    yield from ((name if name == "segment" else "", tuple(found)) for name, found in parts.items() if found)


def _segment(row: Mapping[str, Any], side: str) -> tuple[int, int]:
    """Token offsets of B' in the rejected side, or of B, which it replaced, in the chosen one."""
    if row.get("segment_start") is None or side not in ("chosen", "rejected"):
        return len(row[f"{side}_ids"]), len(row[f"{side}_ids"])
    return row["segment_start"], row["segment_end" if side == "rejected" else "segment_source_end"]
