"""What a build is expected to make and to cost, from what it reads and its options. Plain arithmetic on means."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prefdata import scorers
from schemas import completions, pairs, prompts, unpaired

# bytes of a published row: text, id and log-prob of every token, compressed, and what is there once
TOKEN_BYTES, ROW_BYTES = 9.0, 350.0
SEGMENT_SHARE = 3  # build-sapo-negatives writes a third of the answer anew, if it is not told otherwise
_ANSWERS = {pairs.KIND: 2, completions.KIND: 1, unpaired.KIND: 1, prompts.KIND: 0}


@dataclass(frozen=True)
class Expected:
    """Rows of a version that may not be there yet; tokens are means of a prompt and of an answer."""

    kind: str
    rows: float
    prompts: float
    prompt_tokens: float
    answer_tokens: float
    model: str | None  # what its manifest will name as model
    reference: str | None  # whose log-probs it will carry

    @property
    def answers(self) -> float:
        """Answers in all rows."""
        return self.rows * _ANSWERS[self.kind]

    @property
    def tokens(self) -> float:
        """Tokens that one pass over all rows computes, each prompt once."""
        return self.prompts * self.prompt_tokens + self.answers * self.answer_tokens

    @property
    def bytes(self) -> float:
        """On disk."""
        stored = self.rows * self.prompt_tokens + self.answers * self.answer_tokens
        return stored * TOKEN_BYTES + self.rows * ROW_BYTES


@dataclass(frozen=True)
class Spending:
    """Tokens that a stage has one model compute."""

    stage: str
    model: str | None
    tokens: float
    engine: str | None = None  # None: the project's own forward


Estimate = tuple[Expected, list[Spending]]


def ingested(read: Expected, options: Any) -> Estimate:
    """`read` is what the source holds."""
    return _scored(read, options.reference) if options.reference else (read, [])


def cleaned(parent: Expected, options: Any) -> Estimate:
    """At most what is there."""
    return parent, []


def generated(parent: Expected, options: Any) -> Estimate:
    """Samples of every prompt, scored by the reference."""
    models = options.model or (parent.model,)
    draws = options.samples + options.greedy
    answer = parent.answer_tokens or options.max_new_tokens or parent.prompt_tokens
    if options.max_new_tokens is not None:
        answer = min(answer, options.max_new_tokens)
    made = replace(
        parent,
        kind=completions.KIND,
        rows=parent.prompts * draws * len(models),
        answer_tokens=answer,
        model=models[0],
        reference=None,
    )
    written = parent.prompts * (parent.prompt_tokens + draws * answer)
    costs = [Spending("generate", model, written, options.engine) for model in models]
    if not options.with_reference:
        return made, costs
    made, scoring = _scored(made, options.reference or models[0])
    return made, costs + scoring


def score_rewarded(parent: Expected, options: Any) -> Estimate:
    """The same rows; a pass over all of them for each reward model."""
    models = [each.what for each in scorers.parse_all(options.scorer) if each.kind == "reward_model"]
    made, costs = (
        _scored(parent, options.reference or parent.model) if _adds_reference(parent, options) else (parent, [])
    )
    return made, [*(Spending("score", model, parent.tokens) for model in models), *costs]


def _adds_reference(parent: Expected, options: Any) -> bool:
    return options.reference is not None or (options.with_reference and parent.reference is None)


def paired(parent: Expected, options: Any) -> Estimate:
    """At most so many pairs a prompt; pairs stay what they are."""
    rows = parent.rows if parent.kind == pairs.KIND else parent.prompts * options.pairs_per_prompt
    return _selected(replace(parent, kind=pairs.KIND, rows=rows), options)


def unpaired_of(parent: Expected, options: Any) -> Estimate:
    """Every answer once, and its partner's log-probs."""
    made = replace(parent, kind=unpaired.KIND, rows=parent.answers)
    made, _ = _selected(made, options)
    reference = made.reference
    return made, [Spending("reference", reference, made.tokens + made.rows * made.answer_tokens)]


def accepted(parent: Expected, options: Any) -> Estimate:
    """What is accepted of each prompt, or pairs of it."""
    if options.output == pairs.KIND:
        return paired(parent, options)
    rows = min(parent.rows, parent.prompts * options.accept)
    return _selected(replace(parent, rows=rows), options)


def compared(parent: Expected, options: Any) -> Estimate:
    """Samples with advantages, or pairs."""
    return paired(parent, options) if options.output == pairs.KIND else _selected(parent, options)


def regenerated(parent: Expected, options: Any) -> Estimate:
    """A segment of every good answer anew."""
    writer = options.model or parent.model
    segment = options.segment_tokens or parent.answer_tokens / SEGMENT_SHARE
    rows = parent.rows * (options.segments_per_answer or options.negatives)
    made = replace(parent, kind=pairs.KIND, rows=rows, model=writer, reference=None)
    made, scoring = _scored(made, options.reference or writer)  # all that are drawn, of which some are kept
    made = replace(made, rows=parent.rows * options.negatives)
    # each negative reads its prompt and, on average, half of what it does not write
    read = parent.prompt_tokens + (parent.answer_tokens - segment) / 2
    return made, [Spending("generate", writer, rows * (read + segment), options.engine), *scoring]


def referenced(parent: Expected, options: Any) -> Estimate:
    """The same rows, scored, unless they are."""
    if options.model in (None, parent.reference) and parent.reference is not None:
        return parent, []
    return _scored(parent, options.model or parent.model)


def _selected(made: Expected, options: Any) -> Estimate:
    if options.reference in (None, made.reference) and made.reference is not None:
        return made, []
    return _scored(made, options.reference or made.model)


def _scored(made: Expected, reference: str | None) -> Estimate:
    return replace(made, reference=reference or "?"), [Spending("reference", reference, made.tokens)]


ESTIMATES: dict[str, Callable[[Expected, Any], Estimate]] = {
    "ingest": ingested,
    "clean": cleaned,
    "generate": generated,
    "score-rewards": score_rewarded,
    "build-paired": paired,
    "build-unpaired": unpaired_of,
    "build-rejection-samples": accepted,
    "build-greedy-baselines": compared,
    "build-sapo-negatives": regenerated,
    "add-reference": referenced,
}
