"""Records -> rows with token ids, within the length limits. Each row depends on its own record only.

Order of judgement: what the template and the tokens say of the answers first, the limits after it, so that other limits
change the reasons that speak of limits and no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefdata import identity
from prefdata.records import Comparison, Completion, Judged, Messages, Prompt, Record, SetAside, sides
from prefdata.tokens import Conversation, Limits, Rendered, Renderer, Tokenised, shared_prefix

Row = dict[str, Any]
_BATCH = 1024  # records whose texts go through the tokenizer together; enough to keep its threads busy


@dataclass(frozen=True)
class Fitted:
    """The ids of a row within its limits; the answers stand as in `records.sides`."""

    prompt_ids: list[int]
    answers: dict[str, Rendered]


def rows(
    records: Sequence[Record],
    renderer: Renderer,
    limits: Limits,
    *,
    method: str = "human",
    source: str = "",
) -> list[Row | SetAside]:
    """A row of the record's kind for each, or why there is none.

    `source` names where records came from that do not say it themselves.
    """
    return assembled(records, fit(records, renderer, limits), method=method, source=source)


def assembled(
    records: Sequence[Record], fits: Sequence[Fitted | SetAside], *, method: str = "human", source: str = ""
) -> list[Row | SetAside]:
    """`rows`, of records whose texts `fit` has turned into ids."""
    made: list[Row | SetAside] = []
    for record, fitted in zip(records, fits, strict=True):
        if isinstance(fitted, SetAside):
            made.append(fitted)
            continue
        named = isinstance(record, Completion) and record.generator is not None
        provenance = {
            "method": "model" if named else method,
            "source": record.source or source,
            "license": record.license,
        }
        made.append({**_columns(record, fitted), **_prompt_columns(record, fitted), **provenance})
    return made


def fit(records: Sequence[Record], renderer: Renderer, limits: Limits) -> list[Fitted | SetAside]:
    """The ids of each record within the limits, or why it has none. Nearly all of it runs in the tokenizer's own threads."""
    fitted: list[Fitted | SetAside] = []
    for start in range(0, len(records), _BATCH):
        batch = records[start : start + _BATCH]
        tokenised = renderer.render(
            [Conversation(record.prompt, tuple(sides(record).values()), record.tools) for record in batch]
        )
        fitted += [_fit(tuple(sides(record)), found, limits) for record, found in zip(batch, tokenised, strict=True)]
    return fitted


def _fit(names: tuple[str, ...], tokenised: Tokenised | SetAside, limits: Limits) -> Fitted | SetAside:
    if isinstance(tokenised, SetAside):
        return tokenised
    answers: dict[str, Rendered] = {}
    for name, answer in zip(names, tokenised.answers, strict=True):
        if isinstance(answer, SetAside):
            return SetAside(answer.reason, f"{name}: {answer.detail}")
        if answer.content_tokens == 0:
            return SetAside(f"{name}_empty", f"{name} has {len(answer.ids)} tokens and no content")
        answers[name] = answer
    if _identical(answers):
        return SetAside("identical_tokens", f"both are the same {len(answers[names[0]].ids)} tokens")
    return _limited(tokenised.prompt_ids, answers, limits)


def _limited(prompt_ids: list[int], answers: dict[str, Rendered], limits: Limits) -> Fitted | SetAside:
    """The prompt whole, each answer in what room it leaves."""
    if len(prompt_ids) > min(limits.max_prompt_length or limits.max_length, limits.max_length - 1):
        return SetAside("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens; {_told(limits)}")
    room = limits.max_length - len(prompt_ids)
    opening = max((answer.content_start for answer in answers.values()), default=0)
    if room - opening < limits.min_answer_tokens:
        return SetAside("no_room_for_answer", f"a prompt of {len(prompt_ids)} tokens leaves {room}; {_told(limits)}")
    longest = max((len(answer.ids) for answer in answers.values()), default=0)
    if longest > room and limits.overflow == "set_aside":
        return SetAside("answer_too_long", f"an answer has {longest} tokens, the prompt leaves {room}; {_told(limits)}")
    cut = {name: answer.cut(room) for name, answer in answers.items()}
    if _identical(cut):
        return SetAside("identical_after_truncation", f"the first {room} tokens are the same; {_told(limits)}")
    return Fitted(prompt_ids, cut)


def _identical(answers: dict[str, Rendered]) -> bool:
    if len(answers) != 2:
        return False
    one, other = answers.values()
    return one.ids == other.ids


def _told(limits: Limits) -> str:
    return ", ".join(f"{key} {value}" for key, value in limits.as_dict().items() if value is not None)


def _columns(record: Record, fitted: Fitted) -> Row:
    """What differs from kind to kind."""
    if isinstance(record, Prompt):
        return {"row_id": identity.prompt_row_id(record.prompt, record.tools)}
    if isinstance(record, Comparison):
        return _pair_columns(record, fitted)
    answer = _completion_columns(record, fitted)
    if isinstance(record, Judged):
        row_id = identity.judged_row_id(record.prompt, record.completion, record.label, record.tools)
        return {"row_id": row_id, **answer, "label": record.label, "weight": record.weight}
    row_id = identity.completion_row_id(record.prompt, record.completion, record.tools)
    return {"row_id": row_id, **answer, "score": record.score, **_optional(record)}


def _optional(record: Completion) -> Row:
    """The columns that only some versions have."""
    scores = [each._asdict() for each in record.scores]
    return {name: value for name, value in (("scores", scores), ("generator", record.generator)) if value}


def _pair_columns(record: Comparison, fitted: Fitted) -> Row:
    chosen, rejected = fitted.answers["chosen"], fitted.answers["rejected"]
    scores = record.chosen_score, record.rejected_score
    return {
        "row_id": identity.pair_row_id(record.prompt, record.chosen, record.rejected, record.tools),
        "chosen": _turns(record.chosen),
        "rejected": _turns(record.rejected),
        "chosen_ids": chosen.ids,
        "rejected_ids": rejected.ids,
        "chosen_tokens": chosen.scored_tokens,
        "rejected_tokens": rejected.scored_tokens,
        "shared_prefix": shared_prefix(chosen.ids, rejected.ids),
        "chosen_content_start": chosen.content_start,
        "chosen_finish": chosen.finish,
        "rejected_finish": rejected.finish,
        "chosen_loss_mask": chosen.mask,
        "rejected_loss_mask": rejected.mask,
        "chosen_score": record.chosen_score,
        "rejected_score": record.rejected_score,
        "margin": record.margin if scores[0] is None or scores[1] is None else scores[0] - scores[1],
        "preference": record.preference,
    }


def _completion_columns(record: Completion | Judged, fitted: Fitted) -> Row:
    completion = fitted.answers["completion"]
    return {
        "completion": _turns(record.completion),
        "completion_ids": completion.ids,
        "completion_tokens": completion.scored_tokens,
        "completion_content_start": completion.content_start,
        "completion_finish": completion.finish,
        "completion_loss_mask": completion.mask,
    }


def _prompt_columns(record: Record, fitted: Fitted) -> Row:
    return {
        "prompt_id": identity.prompt_id(record.prompt, record.tools),
        "prompt": _turns(record.prompt),
        "tools": record.tools,
        "prompt_ids": fitted.prompt_ids,
        "prompt_tokens": len(fitted.prompt_ids),
    }


def _turns(messages: Messages) -> list[dict[str, str]]:
    return [message.as_dict() for message in messages]
