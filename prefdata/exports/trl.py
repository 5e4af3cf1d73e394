"""TRL's conversational data sets, as Parquet that `datasets.load_dataset` opens, with the stored tokens beside the text.

pairs         prompt, chosen, rejected           for DPOTrainer and its kin
unpaired      prompt, completion, label          for KTOTrainer
completions   messages, input_ids, labels        for SFTTrainer, which trains these ids and labels as they are

A message is a JSON value, so that keys that are not set are absent and the arguments of tool calls are objects, as chat
templates want them. DPOTrainer and KTOTrainer tokenise the text again; `examples/with_trl/stored_reference.py` has
subclasses that train the stored ids and read the stored reference.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.exports.by_rows import RowTarget
from prefdata.exports.target import Form, Mapped
from prefdata.logical import REFERENCE, SIDES, scored
from prefdata.records import Message, SetAside
from prefdata.templates import CLOCK, Malformed, template_turn
from prefdata.versions import Version
from schemas import completions, pairs, unpaired
from schemas.columns import TOKEN_IDS, required

IGNORED = -100  # the label of a token that is not trained
CONVERSATION = pa.list_(pa.json_())

_IDENTITY = ("row_id", "prompt_id")
_ORIGIN = ("method", "source", "license")
# of unpaired rows, where a version has them: the frozen answer to another prompt that KTO's KL term reads
_PARTNER = ("partner_ids", "partner_loss_mask", "ref_partner_logps")


def form(version: Version) -> Form:
    """The form of pairs and unpaired rows: every column that a trainer of TRL or its subclass could read."""
    kind, there = version.kind, version.columns()
    sides = SIDES[kind]
    carried = [
        *_IDENTITY,
        *("prompt", *sides, "label", "tools"),
        *("prompt_ids", *(f"{side}_ids" for side in sides)),
        *(f"{side}_loss_mask" for side in sides),
        *(name for name in REFERENCE[kind].names if not name.endswith("_token_logps")),
        *_PARTNER,
        *("chosen_score", "rejected_score", "margin", "preference", "weight"),
        *_ORIGIN,
    ]
    columns = [name for name in carried if name in there]
    arguments = _template_arguments(version)

    def mapped(table: pa.Table) -> Mapped:
        kept, left_out, conversations = _conversations(table, ("prompt", *sides))
        rows = table.select(columns).take(kept) if left_out else table.select(columns)
        for name, turns in conversations.items():
            rows = _replaced(rows, name, turns)
        return Mapped(_with_arguments(rows, arguments), left_out)

    return Form(frozenset(columns), mapped)


def demonstrations(version: Version) -> Form:
    """The form of completions: a whole conversation, its ids, and labels that leave all but the scored answer out."""
    kept_as_is = ("tools", "score", "ref_completion_logps", "prompt_tokens", *_ORIGIN)
    columns = [name for name in (*_IDENTITY, *kept_as_is) if name in version.columns()]
    read = ("prompt", "completion", "prompt_ids", "completion_ids", "completion_loss_mask")
    arguments = _template_arguments(version)

    def mapped(table: pa.Table) -> Mapped:
        kept, left_out, conversations = _conversations(table, ("prompt", "completion"))
        table = table.take(kept) if left_out else table
        both = zip(conversations["prompt"], conversations["completion"], strict=True)
        whole = pa.array([prompt + answer for prompt, answer in both], pa.list_(pa.string())).cast(CONVERSATION)
        rows = table.select(columns)
        rows = rows.add_column(2, required("messages", CONVERSATION, "the prompt and the answer to it"), whole)
        for name, ids in zip(("input_ids", "labels"), _ids_and_labels(table), strict=True):
            rows = rows.append_column(required(name, TOKEN_IDS, _MEANING[name]), ids)
        return Mapped(_with_arguments(rows, arguments), left_out)

    return Form(frozenset({*columns, *read}), mapped)


_MEANING = {
    "input_ids": "token ids of prompt and completion",
    "labels": f"the same where the completion is scored, elsewhere {IGNORED}",
}


def _conversations(
    table: pa.Table, names: Sequence[str]
) -> tuple[list[int], list[tuple[int, SetAside]], dict[str, list[list[str]]]]:
    """The JSON of every message in these columns, without rows whose tool calls are not JSON."""
    kept: list[int] = []
    left_out: list[tuple[int, SetAside]] = []
    found: dict[str, list[list[str]]] = {name: [] for name in names}
    for place, row in enumerate(table.select(names).to_pylist()):
        try:
            told = {name: [_json(turn) for turn in turns] for name, turns in row.items()}
        except Malformed as problem:
            left_out.append((place, SetAside("wrong_type", str(problem))))
            continue
        kept.append(place)
        for name, turns in told.items():
            found[name].append(turns)
    return kept, left_out, found


def _json(turn: dict[str, str | None]) -> str:
    return json.dumps(template_turn(Message.from_mapping(turn)), ensure_ascii=False)


def _replaced(rows: pa.Table, name: str, turns: list[list[str]]) -> pa.Table:
    field = rows.schema.field(name).with_type(CONVERSATION)
    column = pa.array(turns, pa.list_(pa.string())).cast(CONVERSATION)
    return rows.set_column(rows.schema.get_field_index(name), field, column)


def _ids_and_labels(table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Both (rows) lists of int32: all tokens of a row, and the same with every token that is not scored ignored."""
    answer = table["completion_ids"].combine_chunks()
    values = np.where(scored(table, "completion"), pc.list_flatten(answer).to_numpy(), IGNORED).astype(np.int32)
    labels = pa.ListArray.from_arrays(_offsets(answer), values)
    frame = pl.DataFrame({"prompt": table["prompt_ids"], "answer": answer, "labels": labels})
    ignored = pl.col("prompt").list.eval(pl.element() * 0 + IGNORED)
    found = frame.select(ids=pl.concat_list("prompt", "answer"), labels=pl.concat_list(ignored, "labels"))
    return found["ids"].to_arrow().cast(TOKEN_IDS), found["labels"].to_arrow().cast(TOKEN_IDS)


def _offsets(lists: pa.Array) -> pa.Array:
    lengths = pc.list_value_length(lists).to_numpy()
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _template_arguments(version: Version) -> dict[str, Any]:
    """What the stored tokens' template was given, but for the clock, which TRL has no way to stop."""
    given = version.manifest["tokenizer"].get("template_args") or {}
    return {name: value for name, value in given.items() if name != CLOCK}


def _with_arguments(rows: pa.Table, arguments: dict[str, Any]) -> pa.Table:
    if not arguments:
        return rows
    column = pa.array([json.dumps(arguments)] * rows.num_rows, pa.string()).cast(pa.json_())
    meaning = "arguments of the chat template, the same for all rows"
    return rows.append_column(required("chat_template_kwargs", pa.json_(), meaning), column)


TARGET = RowTarget(
    name="trl",
    about="TRL (DPO, KTO, SFT): conversational Parquet with the stored tokens and reference log-probs",
    forms={pairs.KIND: form, unpaired.KIND: form, completions.KIND: demonstrations},
    usage=(
        "`datasets.load_dataset(FOLDER, split=SPLIT)` opens it. SFTTrainer trains the stored `input_ids` and `labels` as "
        "they are. DPOTrainer and KTOTrainer tokenise the text again, cut it anew at their `max_length`, and compute the "
        "reference anew; `examples/with_trl/stored_reference.py` of prefdata has subclasses that train the stored ids, "
        "keep loss masks and read `ref_chosen_logps`, `ref_rejected_logps` or `ref_completion_logps`. TRL reads neither "
        "`preference` nor `weight`."
    ),
    data_files=True,
)
