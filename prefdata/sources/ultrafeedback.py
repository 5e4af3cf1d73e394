"""UltraFeedback as its authors publish it: an instruction and several models' answers, each rated in several aspects.

Each completion becomes one with its scores. `score` is the mean of the aspects' ratings (1 to 5), as the authors' own
fine-grained score is; an aspect rated N/A is left out of it. The overall score stands beside the aspects in `scores` and
is never `score`: where it should be 1, published files hold 10. The prompt is the instruction alone, which is what the
raters saw; the system prompt that a model was given to vary its answers is no part of it.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from prefdata.records import Completion, Message, Messages, Score, SetAside, Several
from prefdata.sources import turns
from prefdata.sources.refusal import Refused, Row, refusable
from prefdata.sources.repeats import told_once
from prefdata.sources.scores import number
from schemas import completions

NAME = "ultrafeedback"
KIND = completions.KIND
NEEDS = "instruction, and completions: a list of {model, response, annotations: {ASPECT: {Rating}}, overall_score}"

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
OVERALL = "overall_score"
_RATING = "Rating"
_UNRATED = "N/A"


@refusable
def parse(row: Row) -> Several:
    """One completion for each answer that was rated."""
    answers = turns.column(row, "completions")
    if not isinstance(answers, Sequence) or not all(isinstance(each, Mapping) for each in answers):
        raise Refused("wrong_type", "completions is not a list of objects")
    prompt = (Message("user", turns.text(row, "instruction")),)
    if not answers:
        raise Refused("completion_empty", "completions is empty")
    return Several(tuple(told_once([_completion(prompt, each) for each in answers])))


def _completion(prompt: Messages, answer: Row) -> Completion | SetAside:
    """One answer, or why it can't be used; the others of its row are no worse for it."""
    try:
        ratings = _ratings(answer)
        context, completion = turns.split_answer((*prompt, Message("assistant", turns.text(answer, "response"))), "it")
        overall = number(answer, OVERALL)
        model = turns.text(answer, "model") if answer.get("model") is not None else None
    except Refused as refused:
        return refused.aside
    if not ratings:
        return SetAside("not_rated", "no aspect of the answer has a rating")
    scores = ratings if overall is None else (*ratings, Score(OVERALL, overall))
    return Completion(context, completion, score=fmean(each.score for each in ratings), scores=scores, generator=model)


def _ratings(answer: Row) -> tuple[Score, ...]:
    annotations = turns.column(answer, "annotations")
    if not isinstance(annotations, Mapping):
        raise Refused("wrong_type", "annotations is no object")
    found = ((aspect, annotations.get(aspect)) for aspect in ASPECTS)
    rated = ((aspect, _rating(aspect, each)) for aspect, each in found if each is not None)
    return tuple(Score(aspect, rating) for aspect, rating in rated if rating is not None)


def _rating(aspect: str, annotation: object) -> float | None:
    if not isinstance(annotation, Mapping):
        raise Refused("wrong_type", f"the annotation of {aspect} is no object")
    unrated = annotation.get(_RATING) == _UNRATED
    return None if unrated else number({aspect: annotation.get(_RATING)}, aspect)
