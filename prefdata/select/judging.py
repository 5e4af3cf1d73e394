"""Answers of a version's rows as judged rows, with frozen partners. Tables in, tables out; rows are matched by their place,
which whoever calls this has made sure of by their ids.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.identity import judged_row_id
from prefdata.logical import SIDES, scored
from prefdata.records import Message
from prefdata.select.pairing import GENERATED
from schemas import completions, pairs, unpaired
from schemas.columns import TOKEN_IDS, TOKEN_MASK

_SHARED = ("prompt_id", "prompt", "tools", "prompt_ids", "prompt_tokens", "source", "license")
_ANSWER = pa.unify_schemas(
    [
        pa.schema([field for field in unpaired.BASE if field.name not in ("row_id", "label", "weight")]),
        unpaired.MADE,
        pa.schema([("by_tokens", pa.bool_())]),  # whether its tokens name it, as they do where a model wrote them here
        completions.REFERENCE,
    ]
)
SCHEMA = pa.unify_schemas([unpaired.BASE, unpaired.MADE])
Counts = np.ndarray[Any, np.dtype[np.int64]]


def answers_of(kind: str, rows: pa.Table, sides: Sequence[str]) -> pa.Table:
    """Of each row the answer on the side that is named for it, under the names that completions have."""
    known = SIDES[kind]
    parts = pa.concat_tables([_side(kind, rows, side) for side in known])
    places = np.asarray([known.index(side) for side in sides], np.int64) * rows.num_rows + np.arange(rows.num_rows)
    return parts.take(places).combine_chunks()


def judged(answers: pa.Table, labels: Sequence[bool], weights: Sequence[float]) -> pa.Table:
    """Rows of SCHEMA, and the reference's log-probs as far as they are known."""
    prompts, tools = (answers[name].to_pylist() for name in ("prompt", "tools"))
    named = zip(prompts, _stated(answers), labels, tools, strict=True)
    made = {
        "row_id": pa.array([judged_row_id(_turns(prompt), *rest) for prompt, *rest in named], pa.string()),
        "label": pa.array(labels, pa.bool_()),
        "weight": pa.array(weights, pa.float64()),
    }
    columns = [made[field.name] if field.name in made else answers[field.name] for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA).combine_chunks()


def with_partners(rows: pa.Table, partners: pa.Table, longest: int | None) -> pa.Table:
    """The rows with another answer each, cut to what room the row's prompt leaves among `longest` tokens.

    Its loss mask goes with it, but where the cut leaves no scored token: there all that is left is scored.
    """
    lengths: Counts = pc.list_value_length(partners["completion_ids"]).to_numpy().astype(np.int64)
    room = lengths if longest is None else np.maximum(longest - rows["prompt_tokens"].to_numpy(), 1)
    kept = np.minimum(lengths, room)
    inside = _inside(lengths, kept)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    counted = np.bincount(owners, weights=scored(partners, "completion") & inside, minlength=len(lengths))
    masks = partners["completion_loss_mask"].combine_chunks()
    masked = masks.is_valid().to_numpy(zero_copy_only=False)
    stays = masked & (counted > 0)
    added = {
        "partner_row_id": partners["parent_row_id"],
        "partner_ids": _lists(pc.list_flatten(partners["completion_ids"]).filter(pa.array(inside)), kept, TOKEN_IDS),
        "partner_tokens": pa.array(np.where(counted > 0, counted, kept).astype(np.int32), pa.int32()),
        "partner_loss_mask": _lists(
            pc.list_flatten(masks).filter(pa.array((inside & stays[owners])[masked[owners]])),
            np.where(stays, kept, 0),
            TOKEN_MASK,
            absent=~stays,
        ),
    }
    for field in unpaired.PARTNER:
        rows = rows.append_column(field, added[field.name])
    return rows.combine_chunks()


def _side(kind: str, rows: pa.Table, side: str) -> pa.Table:
    there = set(rows.column_names)
    own = {
        f"completion{name.removeprefix(side)}": name for name in there if name == side or name.startswith(f"{side}_")
    }
    own |= {f"ref_completion{end}": name for end in ("_token_logps", "_logps") if (name := f"ref_{side}{end}") in there}
    own |= {name: name for name in (*_SHARED, "method", "score", "generator") if name in there}
    own["parent_row_id"] = "row_id"
    if kind == pairs.KIND:
        # of a negative that was written anew the row names the generator, and none of the good answer's
        written = {"chosen": ()}.get(side, ("generator",))
        own = {name: source for name, source in own.items() if name != "generator" or source in written}
        own["completion_content_start"] = "chosen_content_start"  # the template puts the same before either side
        for name in ("method", "score", "generator"):
            if f"{side}_{name}" in there:
                own.setdefault(name, f"{side}_{name}")
    columns = {name: rows[source] for name, source in own.items()}
    columns |= {"parent_side": pa.array([side] * rows.num_rows), "by_tokens": _by_tokens(rows, side)}
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(rows.num_rows, field.type)
        for field in _ANSWER
    ]
    return pa.table(arrays, schema=pa.schema([pa.field(field.name, field.type) for field in _ANSWER]))


def _by_tokens(rows: pa.Table, side: str) -> pa.Array:
    """Whether a model wrote the side here: its method says so, or it is the negative of a regenerated segment."""
    method = f"{side}_method" if f"{side}_method" in rows.column_names else "method"
    written = pc.fill_null(pc.is_in(rows[method], pa.array(GENERATED)), False)
    if side == "rejected" and "sampling" in rows.column_names:
        written = pc.or_(written, rows["sampling"].is_valid())
    return written


def _stated(answers: pa.Table) -> list[Any]:
    """What names each answer: its messages, or its token ids where a model wrote it here."""
    both = zip(*(answers[name].to_pylist() for name in ("by_tokens", "completion_ids", "completion")), strict=True)
    return [ids if by_tokens else _turns(turns) for by_tokens, ids, turns in both]


def _turns(turns: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message.from_mapping(turn) for turn in turns)


def _inside(lengths: Counts, kept: Counts) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For every token of every list whether it is among the first `kept` of its list."""
    starts = np.cumsum(lengths) - lengths
    within: np.ndarray[Any, np.dtype[np.bool_]] = np.arange(int(lengths.sum())) - np.repeat(
        starts, lengths
    ) < np.repeat(kept, lengths)
    return within


def _lists(values: Any, lengths: Counts, kind: pa.DataType, absent: Any = None) -> pa.Array:
    """One list after another; null where it is absent."""
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = None if absent is None else pa.array(absent)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=mask).cast(kind)
