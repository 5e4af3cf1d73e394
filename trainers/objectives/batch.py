"""The data contracts: what a loss is handed, and what a version must hold for it.

Every field is a tensor of shape (B,), one entry per row, unless it says otherwise. Log-probs are in nats, summed over
the scored tokens, never averaged; the matching `_tokens` field counts those tokens (at least 1), so a mean can always
be formed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """A number, a truth value or a vector that stands in a column of the row."""

    column: str
    default: float | None = None  # what a null, or a version without the column, stands for; None: it must be there
    is_truth: bool = False  # true or false, and no number


@dataclass(frozen=True)
class Rule:
    """What a contract refuses of a row beyond what every row must satisfy."""

    bad: Callable[[pa.Table], Any]  # bool, one per row
    what: str  # what is wrong with it
    then: str  # what to do
    flow: str = ""  # that helps, of the version


Pool = Callable[[Any], tuple[Tensor, Tensor]]  # a batch to a sum and the count it is taken over


@dataclass(frozen=True)
class Batch:
    """What every contract says of itself."""

    # kind of version -> field of this batch -> the side of a row it is read from
    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    # columns beyond the tokens that a version must hold
    columns: ClassVar[tuple[str, ...]] = ()
    # whether `ref_` fields with the reference's sums stand beside the policy's
    referenced: ClassVar[bool] = False
    # fields that stand in columns of the row
    values: ClassVar[Mapping[str, Value]] = {}
    # whether `_head` fields hold the sums over as many scored tokens as the shorter side has
    partial: ClassVar[bool] = False
    # whether a row of the batch is all scored completions of a prompt: fields are (B, K), `present` says which are there
    grouped: ClassVar[bool] = False
    # what a side's number is: the log-prob of its tokens, or a model's score of it
    head: ClassVar[Literal["logits", "score"]] = "logits"
    # fields that are means over the rows of a forward in all processes together: scalars without gradient
    pools: ClassVar[Mapping[str, Pool]] = {}
    # whether those are moving averages over the run
    remembered: ClassVar[bool] = False
    # fields that are the mean of a side's scored tokens over the rows of a whole step, in all its micro-batches and
    # processes: field -> side; scalars
    per_step: ClassVar[Mapping[str, str]] = {}
    # what else is refused
    rules: ClassVar[tuple[Rule, ...]] = ()
    # a column of truth values both of which must occur among the train rows
    both: ClassVar[str | None] = None
    # in words, for --list
    reads: ClassVar[str] = ""


@dataclass(frozen=True)
class Demonstration(Batch):
    """A completion to imitate: the chosen side of a pair, or the one completion of a row."""

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "pairs": {"completion": "chosen"},
        "completions": {"completion": "completion"},
    }
    reads = "pairs (chosen only) or completions"

    completion: Tensor  # log pi of the completion
    completion_tokens: Tensor


@dataclass(frozen=True)
class Pair(Batch):
    """Two completions of one prompt under the policy, the better one called chosen."""

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {"pairs": {"chosen": "chosen", "rejected": "rejected"}}
    reads = "pairs"

    chosen: Tensor  # log pi of the better completion
    rejected: Tensor  # log pi of the worse one
    chosen_tokens: Tensor
    rejected_tokens: Tensor


@dataclass(frozen=True)
class ReferencedPair(Pair):
    """A Pair plus the same sums under the frozen reference, read from the data."""

    columns: ClassVar[tuple[str, ...]] = ("ref_chosen_logps", "ref_rejected_logps")
    referenced = True
    reads = "pairs, reference log-probs"

    ref_chosen: Tensor  # no gradient
    ref_rejected: Tensor  # no gradient


@dataclass(frozen=True)
class ReferencedPairOfStep(ReferencedPair):
    """A ReferencedPair that knows how long the chosen sides of its step are."""

    per_step: ClassVar[Mapping[str, str]] = {"mean_chosen_tokens": "chosen"}

    mean_chosen_tokens: Tensor  # ()


@dataclass(frozen=True)
class ScoredPair(ReferencedPair):
    """A ReferencedPair whose sides were scored."""

    values: ClassVar[Mapping[str, Value]] = {
        "chosen_score": Value("chosen_score"),
        "rejected_score": Value("rejected_score"),
    }
    reads = "pairs with scores, reference log-probs"

    chosen_score: Tensor  # in the scorer's own unit
    rejected_score: Tensor


def preference_of(rows: pa.Table) -> Any:
    """How probable it is that chosen is better: 1 where it is not stated."""
    if "preference" not in rows.column_names:
        return pa.array([1.0] * len(rows))
    return pc.fill_null(rows["preference"], 1.0)


@dataclass(frozen=True)
class PreferredPair(ReferencedPair):
    """A ReferencedPair and how sure it is that chosen is better."""

    values: ClassVar[Mapping[str, Value]] = {"preference": Value("preference", default=1.0)}
    rules = (
        Rule(
            lambda rows: pc.or_(pc.less(preference_of(rows), 0), pc.greater(preference_of(rows), 1)),
            "preference is not between 0 and 1",
            "it is the probability that chosen is better; build the version again",
        ),
    )
    reads = "pairs (with a preference probability, else 1), reference log-probs"

    preference: Tensor  # probability that chosen is better, in [0, 1]


@dataclass(frozen=True)
class PartialPair(ReferencedPair):
    """A ReferencedPair and the same sums over as many scored tokens as its shorter side has."""

    columns: ClassVar[tuple[str, ...]] = (*ReferencedPair.columns, "ref_chosen_token_logps", "ref_rejected_token_logps")
    partial = True
    reads = "pairs, reference log-probs per token"

    chosen_head: Tensor
    rejected_head: Tensor
    ref_chosen_head: Tensor
    ref_rejected_head: Tensor


def mean_log_ratio(side: str) -> Pool:
    """How far the policy has moved on one side of the pairs: sum of log-ratios, and of how many."""

    def pool(batch: ReferencedPair) -> tuple[Tensor, Tensor]:
        moved = getattr(batch, side).detach() - getattr(batch, f"ref_{side}")
        return moved.sum(), _count(moved)

    return pool


@dataclass(frozen=True)
class PairWithMeans(ReferencedPair):
    """A ReferencedPair, and how far the policy has moved on either side: moving averages over the run."""

    pools: ClassVar[Mapping[str, Pool]] = {
        "chosen_mean": mean_log_ratio("chosen"),
        "rejected_mean": mean_log_ratio("rejected"),
    }
    remembered = True

    chosen_mean: Tensor  # (), nats
    rejected_mean: Tensor  # (), nats


@dataclass(frozen=True)
class EmbeddedPair(ReferencedPair):
    """A ReferencedPair and where its prompt lies among prompts."""

    values: ClassVar[Mapping[str, Value]] = {"prompt_embedding": Value("prompt_embedding")}
    reads = "pairs, reference log-probs, prompt embeddings"

    prompt_embedding: Tensor  # (B, size), of any length above 0


@dataclass(frozen=True)
class RewardPair(Batch):
    """The scores that a reward model gives two completions of one prompt, the better one called chosen."""

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = Pair.sides
    head = "score"
    values: ClassVar[Mapping[str, Value]] = {"margin": Value("margin", default=0.0)}
    reads = "pairs; trains a model with one score"

    chosen: Tensor  # score of the better completion
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    margin: Tensor  # how much better chosen is, in the unit of its source; 0 where unsaid


@dataclass(frozen=True)
class Judged(Batch):
    """A completion that was judged by itself, and its sum under the reference."""

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {"unpaired": {"completion": "completion"}}
    columns: ClassVar[tuple[str, ...]] = ("ref_completion_logps",)
    referenced = True
    values: ClassVar[Mapping[str, Value]] = {
        "label": Value("label", is_truth=True),
        "weight": Value("weight", default=1.0),
    }
    rules = (
        Rule(
            lambda rows: pc.less_equal(rows["weight"], 0.0) if "weight" in rows.column_names else pa.nulls(len(rows)),
            "weight is not above 0",
            "leave such rows out, or weigh them again with build-unpaired",
        ),
    )
    both = "label"
    reads = "unpaired rows, reference log-probs"

    completion: Tensor
    completion_tokens: Tensor
    ref_completion: Tensor
    label: Tensor  # bool, true: desirable
    weight: Tensor  # above 0


def mismatched(batch: "JudgedWithPartner") -> tuple[Tensor, Tensor]:
    """How far the policy has moved on answers to other prompts: sum of log-ratios, and of how many."""
    moved = batch.partner.detach() - batch.ref_partner
    return moved.sum(), _count(moved)


def _count(values: Tensor) -> Tensor:
    """How many there are, on their device."""
    return values.new_tensor(len(values))


@dataclass(frozen=True)
class JudgedWithPartner(Judged):
    """A Judged row and its frozen partner: the answer to another prompt, behind this row's prompt.

    Both completions hang on one trunk, so the partner costs its own tokens only.
    """

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {"unpaired": {"completion": "completion", "partner": "partner"}}
    columns: ClassVar[tuple[str, ...]] = ("ref_completion_logps", "partner_ids", "ref_partner_logps")
    pools: ClassVar[Mapping[str, Pool]] = {"divergence": mismatched}
    reads = "unpaired rows with partners, reference log-probs"

    partner: Tensor
    partner_tokens: Tensor
    ref_partner: Tensor
    divergence: Tensor  # (), nats: mean over all processes' rows of partner - ref_partner


def mean_of_class(desirable: bool) -> Pool:
    """How far the policy has moved on the rows of one class: sum of log-ratios, and of how many."""

    def pool(batch: Judged) -> tuple[Tensor, Tensor]:
        own = (batch.label if desirable else ~batch.label).to(batch.ref_completion.dtype)
        return ((batch.completion.detach() - batch.ref_completion) * own).sum(), own.sum()

    return pool


@dataclass(frozen=True)
class JudgedWithMeans(Judged):
    """A Judged row, and how far the policy has moved on the rows of each class: moving averages over the run."""

    pools: ClassVar[Mapping[str, Pool]] = {
        "desirable_mean": mean_of_class(True),
        "undesirable_mean": mean_of_class(False),
    }
    remembered = True

    desirable_mean: Tensor  # (), nats
    undesirable_mean: Tensor  # (), nats


@dataclass(frozen=True)
class EmbeddedJudged(Judged):
    """A Judged row and where its prompt lies among prompts."""

    values: ClassVar[Mapping[str, Value]] = {**Judged.values, "prompt_embedding": Value("prompt_embedding")}
    reads = "unpaired rows, reference log-probs, prompt embeddings"

    prompt_embedding: Tensor  # (B, size), of any length above 0


@dataclass(frozen=True)
class Ranked(Batch):
    """All scored completions of a prompt, in any order. K is the largest group's; what is absent counts 0 nats, 1 token."""

    sides: ClassVar[Mapping[str, Mapping[str, str]]] = {"completions": {"completion": "completion"}}
    values: ClassVar[Mapping[str, Value]] = {"score": Value("score")}
    grouped = True
    reads = "completions with scores, several per prompt"

    completion: Tensor  # (B, K)
    completion_tokens: Tensor  # (B, K)
    score: Tensor  # (B, K)
    present: Tensor  # (B, K) bool


@dataclass(frozen=True)
class ReferencedRanked(Ranked):
    """Ranked, plus the same sums under the reference."""

    columns: ClassVar[tuple[str, ...]] = ("ref_completion_logps",)
    referenced = True
    reads = "completions with scores, several per prompt, reference log-probs"

    ref_completion: Tensor  # (B, K)
