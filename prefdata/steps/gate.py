"""The gate: what is not worth training on. On text before tokenising, on token ids after it; pure functions."""

from collections.abc import Callable, Iterable, Sequence
from math import isfinite

from prefdata.records import Comparison, Completion, Judged, Message, Record, SetAside, sides
from prefdata.templates import texts_of, unescaped

REPLACEMENT = "\ufffd"


def check(record: Record) -> SetAside | None:
    """Why a record goes no further, judged by its text and scores; None if it does."""
    found = (rule(record) for rule in _RULES)
    return next((reason for reason in found if reason is not None), None)


def gate_ids(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    end_ids: Iterable[int],
    *,
    chosen_mask: Sequence[bool] | None = None,
    rejected_mask: Sequence[bool] | None = None,
) -> SetAside | None:
    """Why a pair of token sequences is no pair; None if it is one. Masks say which tokens are scored (None: all)."""
    ends = frozenset(end_ids)
    for side, ids, mask in (("chosen", chosen_ids, chosen_mask), ("rejected", rejected_ids, rejected_mask)):
        if (reason := gate_answer(ids, ends, mask=mask, name=side)) is not None:
            return reason
    if list(chosen_ids) == list(rejected_ids):
        return SetAside("identical_tokens", f"both are the same {len(chosen_ids)} tokens")
    return None


def gate_answer(
    ids: Sequence[int], end_ids: Iterable[int], *, mask: Sequence[bool] | None = None, name: str = "completion"
) -> SetAside | None:
    """Why a token sequence is no answer; None if it is one."""
    if frozenset(end_ids).issuperset(ids):
        return SetAside(f"{name}_empty", f"{name} has {len(ids)} tokens and no content")
    if mask is not None and not any(mask):
        return SetAside("nothing_scored", f"the mask of {name} leaves none of {len(ids)} tokens")
    return None


def _empty_prompt(record: Record) -> SetAside | None:
    return SetAside("prompt_empty") if all(_blank(turn) for turn in record.prompt) else None


def _empty_side(record: Record) -> SetAside | None:
    empty = [name for name, side in sides(record).items() if all(_blank(turn) for turn in side)]
    return SetAside(f"{empty[0]}_empty", f"{' and '.join(empty)}: no text") if empty else None


def _identical_sides(record: Record) -> SetAside | None:
    if isinstance(record, Comparison) and record.chosen == record.rejected:
        return SetAside("identical_sides")
    return None


def _replacement_character(record: Record) -> SetAside | None:
    for name, messages in {"prompt": record.prompt, **sides(record)}.items():
        for text in (text for message in messages for text in texts_of(message)):
            if REPLACEMENT in text:
                return SetAside("replacement_character", f"{name}: {_around(text, text.index(REPLACEMENT))!r}")
    if record.tools is not None and REPLACEMENT in unescaped(record.tools):
        return SetAside("replacement_character", "tools")
    return None


def _score_out_of_range(record: Record) -> SetAside | None:
    if isinstance(record, Judged):
        return _weight_out_of_range(record.weight)
    for name, score in _scores(record):
        if score is not None and not isfinite(score):
            return SetAside("score_not_finite", f"{name} is {score}")
    preference = record.preference if isinstance(record, Comparison) else None
    if preference is not None and not 0 <= preference <= 1:  # NaN is outside, too
        return SetAside("preference_out_of_range", f"preference is {preference}")
    return None


def _scores(record: Record) -> Iterable[tuple[str, float | None]]:
    if isinstance(record, Comparison):
        return (
            ("chosen_score", record.chosen_score),
            ("rejected_score", record.rejected_score),
            ("margin", record.margin),
        )
    return (("score", record.score), *record.scores) if isinstance(record, Completion) else ()


def _weight_out_of_range(weight: float | None) -> SetAside | None:
    sound = weight is None or (isfinite(weight) and weight > 0)
    return None if sound else SetAside("weight_out_of_range", f"weight is {weight}")


def _blank(turn: Message) -> bool:
    return not turn.content.strip() and turn.tool_calls is None


def _around(text: str, at: int) -> str:
    return text[max(0, at - 20) : at + 20]


_RULES: tuple[Callable[[Record], SetAside | None], ...] = (
    _empty_prompt,
    _empty_side,
    _identical_sides,
    _replacement_character,
    _score_out_of_range,
)
