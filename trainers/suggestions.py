"""Knobs that fit a version, worked out from its reference log-probs and lengths: one rule per family of losses.

All rules lean on two rules of thumb. A policy that improves moves by about 0.1 nats per token (`MOVE`): DPO's published betas
of 0.5 for summaries of 35 tokens and of 0.1 for dialogues of 150 both come to that. And a pair has little left to teach
once its margin is 3, where a sigmoid passes 5 % of its gradient (`MARGIN`). Proposals are where to begin a search, no more.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefdata.select.kto_weights import class_weights

Numbers = np.ndarray[Any, np.dtype[np.float64]]

MOVE = 0.1  # nats per token
MARGIN = 3.0
RATIO_SHARE = 0.1  # of the likelihood term, that the odds-ratio term begins with
SIMPO_RATIO = (0.1, 0.8)  # gamma / beta in the paper
SIMPO_BETA = (1.0, 10.0)
ALPHAPO_ALPHA = 0.25  # the default that beta and gamma are proposed for
ODPO_ALPHA = 1.0  # in most of the paper's runs
LIKELIHOOD = (0.05, 1.0)  # weights of likelihood terms in published runs
OTHER_TERM = 0.2  # of the first term of a sum, that another begins with; Llama 3.1's weight of the likelihood


@dataclass(frozen=True)
class PairFacts:
    """The train rows of a version of pairs; every field is (rows,)."""

    chosen_tokens: Numbers
    rejected_tokens: Numbers
    ref_chosen: Numbers  # nats, sums
    ref_rejected: Numbers
    chosen_score: Numbers | None = None  # in the scorer's unit; read for losses that read it
    rejected_score: Numbers | None = None

    @property
    def margin(self) -> Numbers:
        """By how much the reference finds chosen likelier: nats, sums."""
        return self.ref_chosen - self.ref_rejected

    @property
    def margin_per_token(self) -> Numbers:
        """The same of means per token."""
        return self.ref_chosen / self.chosen_tokens - self.ref_rejected / self.rejected_tokens

    @property
    def nll(self) -> float:
        """Of chosen under the reference: mean over pairs of nats per token."""
        return float(np.mean(-self.ref_chosen / self.chosen_tokens))


@dataclass(frozen=True)
class JudgedFacts:
    """The train rows of an unpaired version; every field is (rows,)."""

    tokens: Numbers
    label: Numbers  # 1 or 0
    weight: Numbers


@dataclass(frozen=True)
class Proposal:
    """A value of a knob, and why."""

    knob: str
    value: float
    why: str


def _rounded(value: float) -> float:
    """Two digits: the rules are no better than that."""
    return float(f"{value:.2g}")


def _room(margin: Numbers, moved: float, unit: str) -> tuple[float, str]:
    """How far apart both sides may move: what the answers' length gives, or what turns half of the wrongly ranked pairs."""
    wrong = -margin[margin < 0]
    need = float(np.median(wrong)) if len(wrong) else 0.0
    told = (
        f"at {MOVE:g} nats per token the sides move {moved:.3g} {unit} apart; the reference ranks {len(wrong) / len(margin):.0%}"
        f" of the pairs wrongly, and half of those are turned by {need:.3g} {unit}: the larger of the two is allowed for"
    )
    return max(moved, need), told


def _sums(facts: PairFacts) -> tuple[float, str]:
    both = float(np.mean(facts.chosen_tokens + facts.rejected_tokens))
    room, told = _room(facts.margin, MOVE * both, "nats")
    return room, f"both sides together have {both:.3g} scored tokens on average; {told}"


def logistic(facts: PairFacts, knob: str = "beta") -> list[Proposal]:
    """Losses of a sigmoid of beta times d: d is where the margin is 3 once both sides have moved as far as is allowed."""
    room, told = _sums(facts)
    return [Proposal(knob, _rounded(MARGIN / room), f"{told}; there {knob} times the log-ratio margin is {MARGIN:g}")]


def per_side(facts: PairFacts) -> list[Proposal]:
    """Losses of a sigmoid of beta times one side's log-ratio each."""
    tokens = float(np.mean(facts.chosen_tokens + facts.rejected_tokens)) / 2
    why = f"an answer has {tokens:.3g} scored tokens on average; at {MOVE:g} nats per token a side moves {MOVE * tokens:.3g} nats, and beta times that is {MARGIN:g}"
    return [Proposal("beta", _rounded(MARGIN / (MOVE * tokens)), why)]


def temperature(facts: PairFacts) -> list[Proposal]:
    """The same where the knob is called gamma (RSO's sigmoid-norm)."""
    return logistic(facts, "gamma")


def per_token_logistic(facts: PairFacts) -> list[Proposal]:
    """Losses of a sigmoid of beta times the difference of mean log-ratios."""
    room, told = _room(facts.margin_per_token, 2 * MOVE, "nats per token")
    return [Proposal("beta", _rounded(MARGIN / room), f"{told}; there beta times the margin is {MARGIN:g}")]


def squared(facts: PairFacts) -> list[Proposal]:
    """IPO on sums: the target 1 / (2 tau) is how far apart both sides may move."""
    room, told = _sums(facts)
    return [Proposal("tau", _rounded(1 / (2 * room)), f"{told}; the target 1 / (2 tau) is that")]


def squared_per_token(facts: PairFacts) -> list[Proposal]:
    """IPO on means: the same target per token."""
    room, told = _room(facts.margin_per_token, 2 * MOVE, "nats per token")
    return [Proposal("tau", _rounded(1 / (2 * room)), f"{told}; the target 1 / (2 tau) is that")]


def absolute_target(facts: PairFacts) -> list[Proposal]:
    """SPPO: each side's log-ratio is led to a target 1 / (2 beta) of its own."""
    tokens = float(np.mean(facts.chosen_tokens + facts.rejected_tokens)) / 2
    why = f"an answer has {tokens:.3g} scored tokens on average, and the target 1 / (2 beta) of a side is {MOVE:g} nats for each"
    return [Proposal("beta", _rounded(1 / (2 * MOVE * tokens)), why)]


def hinge(facts: PairFacts) -> list[Proposal]:
    """RSO's hinge-norm: no more gradient once d is 1 / gamma."""
    room, told = _sums(facts)
    return [Proposal("gamma", _rounded(1 / room), f"{told}; from there on the hinge asks for no more")]


def raw_hinge(facts: PairFacts) -> list[Proposal]:
    """SLiC: the hinge is on the policy's own sums, which begin where the reference's are."""
    room, told = _sums(facts)
    start = float(np.median(facts.margin))
    why = f"{told}; half of the pairs begin with chosen {start:.3g} nats likelier, and delta is that far beyond, at least 1"
    return [Proposal("delta", _rounded(max(start + room, 1.0)), why)]


def _likelihood(facts: PairFacts) -> Proposal:
    low, high = LIKELIHOOD
    value = min(max(math.log(2) / facts.nll, low), high) if facts.nll > 0 else high
    why = f"chosen costs the reference {facts.nll:.3g} nats per token, and the preference term begins at log 2: alpha makes both equal, within {low:g} and {high:g}"
    return Proposal("alpha", _rounded(value), why)


def with_likelihood(facts: PairFacts) -> list[Proposal]:
    """DPO and a likelihood term."""
    return [*logistic(facts), _likelihood(facts)]


def raw_logistic(facts: PairFacts) -> list[Proposal]:
    """CPO: a sigmoid of the policy's own sums, which may saturate before training starts."""
    high = float(np.quantile(np.abs(facts.margin), 0.9))
    why = f"without a reference the margin begins at that of the sums, beyond {high:.3g} nats for a tenth of the pairs: beta times that is {MARGIN:g}, so that few begin saturated"
    return [Proposal("beta", _rounded(MARGIN / max(high, 1e-6)), why), _likelihood(facts)]


def length_regularised(facts: PairFacts) -> list[Proposal]:
    """R-DPO: the length term is one nat where the lengths differ most."""
    high = float(np.quantile(np.abs(facts.chosen_tokens - facts.rejected_tokens), 0.9))
    why = f"a tenth of the pairs differ by more than {high:.3g} tokens, and alpha times that is 1: there length decides a good part"
    return [*logistic(facts), Proposal("alpha", _rounded(1 / max(high, 1.0)), why)]


def with_offset(facts: PairFacts) -> list[Proposal]:
    """ODPO: offsets that beta times the log-ratio margin gets to."""
    (beta,) = logistic(facts)
    if facts.chosen_score is None or facts.rejected_score is None:
        return [beta]
    gaps = facts.chosen_score - facts.rejected_score
    high = float(np.quantile(gaps, 0.9))
    asked = math.log(high) if high > 1 else 0.0
    value = ODPO_ALPHA if asked * ODPO_ALPHA <= MARGIN else MARGIN / asked
    why = f"scores differ by more than {high:.3g} in a tenth of the pairs, whose logarithm is {math.log(max(high, 1e-6)):.3g}: alpha is {ODPO_ALPHA:g} as in the paper, or less where alpha times that would be beyond {MARGIN:g}"
    return [beta, Proposal("alpha", _rounded(value), why)]


def mean_margin(facts: PairFacts) -> list[Proposal]:
    """SimPO: a margin that three quarters of the pairs do not have yet, on a scale where few are saturated."""
    return _apart(facts.margin_per_token)


def bent_margin(facts: PairFacts) -> list[Proposal]:
    """AlphaPO: the same of its bent rewards, at the alpha that it has unless set."""
    chosen, rejected = facts.ref_chosen / facts.chosen_tokens, facts.ref_rejected / facts.rejected_tokens
    bent = (np.exp(-ALPHAPO_ALPHA * rejected) - np.exp(-ALPHAPO_ALPHA * chosen)) / ALPHAPO_ALPHA
    told = f"bent at alpha {ALPHAPO_ALPHA:g}: "
    return [Proposal(each.knob, each.value, told + each.why) for each in _apart(bent)]


def _apart(margins: Numbers) -> list[Proposal]:
    low, high = SIMPO_RATIO
    quartile = float(np.quantile(margins, 0.75))
    ratio = min(max(quartile, low), high)
    far = float(np.quantile(np.abs(margins - ratio), 0.9))
    beta = _rounded(min(max(MARGIN / max(far, 1e-6), SIMPO_BETA[0]), SIMPO_BETA[1]))
    return [
        Proposal("beta", beta, f"a tenth of the pairs begin more than {far:.3g} nats per token from the margin; beta times that is {MARGIN:g}, within {SIMPO_BETA[0]:g} and {SIMPO_BETA[1]:g}"),
        Proposal("gamma", _rounded(ratio * beta), f"a quarter of the pairs begin with chosen likelier by {quartile:.3g} nats per token; the margin gamma / beta is that, within the paper's {low:g} to {high:g}"),
    ]  # fmt: skip


def odds(facts: PairFacts) -> list[Proposal]:
    """ORPO: the odds-ratio term begins with a tenth of the likelihood term."""
    chosen, rejected = (
        _log_odds(facts.ref_chosen / facts.chosen_tokens),
        _log_odds(facts.ref_rejected / facts.rejected_tokens),
    )
    term = float(np.mean(np.logaddexp(0, rejected - chosen)))
    why = f"chosen costs the reference {facts.nll:.3g} nats per token and the odds-ratio term begins at {term:.3g}: lam makes it {RATIO_SHARE:.0%} of the likelihood term, as in the paper's runs"
    return [Proposal("lam", _rounded(RATIO_SHARE * facts.nll / max(term, 1e-6)), why)]


def _log_odds(mean: Numbers) -> Numbers:
    mean = np.minimum(mean, -1e-6)
    found: Numbers = mean - np.log(-np.expm1(mean))
    return found


def judged(facts: JudgedFacts) -> list[Proposal]:
    """Losses of rows judged by themselves: a sigmoid of beta times one log-ratio."""
    tokens = float(np.mean(facts.tokens))
    why = f"an answer has {tokens:.3g} scored tokens on average; at {MOVE:g} nats per token it moves {MOVE * tokens:.3g} nats, and beta times that is {MARGIN:g}"
    return [Proposal("beta", _rounded(MARGIN / (MOVE * tokens)), why)]


def weighted_classes(facts: JudgedFacts) -> list[Proposal]:
    """KTO: its beta, and weights that make both classes count the same."""
    good, bad = (float(facts.weight[facts.label == each].sum()) for each in (1, 0))
    why = f"the rows weigh {good:.6g} desirable against {bad:.6g} undesirable; the paper keeps the weighted ratio between 1 and 3/2, one weight at 1, and here it is 1"
    weights = zip(("desirable_weight", "undesirable_weight"), class_weights(good, bad), strict=True)
    return [*judged(facts), *(Proposal(knob, float(f"{value:.3g}"), why) for knob, value in weights)]


OF_PAIRS: Mapping[str, Callable[[PairFacts], list[Proposal]]] = {
    **dict.fromkeys(("dpo", "robust", "ldpo", "exo", "discopop", "aot"), logistic),
    "odpo": with_offset,
    **dict.fromkeys(("nca", "apo_zero", "apo_down", "bco_pair"), per_side),
    "rso_sigmoid": temperature,
    "rso_hinge": hinge,
    "slic": raw_hinge,
    "dpo_norm": per_token_logistic,
    **dict.fromkeys(("dpo_nll", "dpo_nll_token"), with_likelihood),
    "cpo": raw_logistic,
    "rdpo": length_regularised,
    "ipo": squared,
    "psi_po": squared,
    "ipo_mean": squared_per_token,
    **dict.fromkeys(("sppo", "sppo_hard"), absolute_target),
    "simpo": mean_margin,
    "alphapo": bent_margin,
    "orpo": odds,
}
OF_JUDGED: Mapping[str, Callable[[JudgedFacts], list[Proposal]]] = {
    "kto": weighted_classes,
    **dict.fromkeys(("bco", "apo_zero_unpaired", "aot_unpaired"), judged),
}
