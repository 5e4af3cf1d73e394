"""Good answers of a version, whatever its kind, and the pairs that drawn segments make of them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from prefdata.identity import pair_row_id, tokens_id
from prefdata.records import Message, SetAside
from prefdata.select.segments import Cut, splice, unchanged
from prefdata.steps.gate import gate_ids
from prefdata.tokens import shared_prefix
from schemas import completions, pairs, unpaired
from schemas.columns import TOKEN_IDS

# the side of each kind that holds the good answer
SIDE = {pairs.KIND: "chosen", completions.KIND: "completion", unpaired.KIND: "completion"}

_SHARED = ("row_id", "prompt_id", "prompt", "tools", "prompt_ids", "prompt_tokens", "source", "license")


def winners(kind: str, table: pa.Table) -> pa.Table:
    """Prompts and good answers under one set of names; `answer_id` names prompt and answer by their tokens."""
    side = SIDE[kind]
    score = f"{side}_score" if kind == pairs.KIND else "score"
    columns = {
        **{name: table[name] for name in _SHARED},
        "answer": table[side],
        "answer_ids": table[f"{side}_ids"],
        "answer_tokens": table[f"{side}_tokens"],
        "content_start": table[f"{side}_content_start"],
        "finish": table[f"{side}_finish"],
        "loss_mask": table[f"{side}_loss_mask"],
        "score": _column(table, score, pa.float64()),
        "preference": _column(table, "preference", pa.float64()),
        "label": _column(table, "label", pa.bool_()),
    }
    tokens = zip(table["prompt_ids"].to_pylist(), table[f"{side}_ids"].to_pylist(), strict=True)
    columns["answer_id"] = pa.array([tokens_id(prompt, answer) for prompt, answer in tokens], pa.string())
    return pa.table(columns)


def _column(table: pa.Table, name: str, type_: pa.DataType) -> Any:
    """Of those that not every kind has."""
    return table[name] if name in table.column_names else pa.nulls(table.num_rows, type_)


@dataclass
class Draw:
    """One negative on its way: its cut, and what the model wrote for it so far."""

    answer_id: str
    index: int
    cut: Cut | None
    reason: str | None = None  # set once it can't be made
    detail: str = ""
    ids: list[int] | None = None  # the spliced negative, once it differs from the good answer
    segment_start: int = 0
    segment_end: int = 0
    segment_source_end: int = 0
    ended_early: bool = False
    attempt: int = 0
    seed: int = 0

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            ("answer_id", pa.string()),
            ("index", pa.int32()),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("ids", TOKEN_IDS),
            ("segment_start", pa.int32()),
            ("segment_end", pa.int32()),
            ("segment_source_end", pa.int32()),
            ("ended_early", pa.bool_()),
            ("attempt", pa.int32()),
            ("seed", pa.int64()),
        ]
    )

    @property
    def key(self) -> str:
        """What the engine's request is called."""
        return f"{self.answer_id}/{self.index}"

    @property
    def pending(self) -> bool:
        """Whether it still has to be drawn (again)."""
        return self.cut is not None and self.ids is None

    @property
    def required_cut(self) -> Cut:
        """The cut of a draw that has one."""
        assert self.cut is not None
        return self.cut

    def take(self, answer_ids: Sequence[int], new_ids: Sequence[int], end_ids: Sequence[int]) -> None:
        """Splice what the model wrote; if that gives the good answer back, the draw stays pending."""
        negative = splice(answer_ids, self.required_cut, new_ids, end_ids)
        if unchanged(answer_ids, negative):
            return
        self.ids = negative.ids
        self.segment_start, self.segment_end = negative.segment_start, negative.segment_end
        self.segment_source_end, self.ended_early = negative.segment_source_end, negative.ended_early

    def as_row(self) -> dict[str, Any]:
        """A row of SCHEMA. A draw that is still pending has used up its redraws."""
        reason, detail = self.reason, self.detail
        if self.pending:
            reason, detail = "segment_unchanged", f"{self.attempt + 1} draws gave the original tokens"
        return {**{name: getattr(self, name) for name in self.SCHEMA.names}, "reason": reason, "detail": detail}


@dataclass
class Assembled:
    """Rows of one unit, and why others were not made: (parent row_id, stage, reason)."""

    parents: list[str]
    rows: pa.Table
    failures: list[tuple[str, str, SetAside]] = field(default_factory=list)


SCHEMA = pa.unify_schemas([pairs.BASE, pairs.SEGMENT])


def assemble(answers: pa.Table, draws: pa.Table, making: Mapping[str, Any]) -> Assembled:
    """Join draws to their answers by id and gate the pairs they make.

    `making` holds what all rows share: method, generator, sampling, round, end_ids, and `decode` for the text.
    """
    by_id = {row["answer_id"]: row for row in answers.to_pylist()}
    rows: list[dict[str, Any]] = []
    failures: list[tuple[str, str, SetAside]] = []
    for draw in draws.to_pylist():
        answer = by_id[draw["answer_id"]]
        if draw["reason"] is not None:
            failures.append((answer["row_id"], "generate", SetAside(draw["reason"], draw["detail"])))
            continue
        mask = spliced_mask(answer["loss_mask"], draw)
        refused = gate_ids(answer["answer_ids"], draw["ids"], making["end_ids"], rejected_mask=mask)
        if refused is not None:
            failures.append((answer["row_id"], "gate", refused))
            continue
        rows.append(_pair(answer, draw, mask, making))
    return Assembled(answers["row_id"].to_pylist(), pa.Table.from_pylist(rows, schema=SCHEMA), failures)


def spliced_mask(mask: Sequence[bool] | None, draw: Mapping[str, Any]) -> list[bool] | None:
    """The negative's loss mask: the good answer's over A and C, and every token of B' scored. None: all scored."""
    if mask is None:
        return None
    start, end, length = draw["segment_start"], draw["segment_end"], len(draw["ids"])
    rest = mask[draw["segment_source_end"] :][: length - end]
    return [*mask[:start], *([True] * (end - start)), *rest]


def _pair(
    answer: dict[str, Any], draw: dict[str, Any], mask: list[bool] | None, making: Mapping[str, Any]
) -> dict[str, Any]:
    prompt = tuple(Message.from_mapping(turn) for turn in answer["prompt"])
    chosen = tuple(Message.from_mapping(turn) for turn in answer["answer"])
    ids = draw["ids"]
    return {
        "row_id": pair_row_id(prompt, chosen, ids, answer["tools"]),
        "prompt_id": answer["prompt_id"],
        "prompt": answer["prompt"],
        "chosen": answer["answer"],
        "rejected": [{"role": "assistant", "content": making["decode"](ids[answer["content_start"] :])}],
        "tools": answer["tools"],
        "prompt_ids": answer["prompt_ids"],
        "chosen_ids": answer["answer_ids"],
        "rejected_ids": ids,
        "prompt_tokens": answer["prompt_tokens"],
        "chosen_tokens": answer["answer_tokens"],
        "rejected_tokens": len(ids) if mask is None else sum(mask),
        "shared_prefix": shared_prefix(answer["answer_ids"], ids),
        "chosen_content_start": answer["content_start"],
        "chosen_finish": answer["finish"],
        "rejected_finish": "stop" if ids[-1] in making["end_ids"] else "length",
        "chosen_loss_mask": answer["loss_mask"],
        "rejected_loss_mask": mask,
        "chosen_score": answer["score"],
        "method": making["method"],
        "source": answer["source"],
        "license": answer["license"],
        "parent_row_id": answer["row_id"],
        "generator": making["generator"],
        "sampling": making["sampling"],
        "sample_index": draw["index"],
        "round": making["round"],
        "seed": draw["seed"],
        "attempt": draw["attempt"],
        "segment_start": draw["segment_start"],
        "segment_end": draw["segment_end"],
        "segment_source_end": draw["segment_source_end"],
        "ended_early": draw["ended_early"],
    }
