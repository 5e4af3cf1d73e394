"""How a pairwise judge does beside people, and what its verdicts are worth as probabilities. Pure: numbers in, numbers out.

Votes are 1 for chosen, -1 for rejected, 0 for neither. All that is fitted is antisymmetric (logistic, no constant term), so
that it does not matter which side is called chosen: with the sides swapped every probability p becomes 1 - p.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefdata.errors import UserError

Numbers = np.ndarray[Any, np.dtype[np.float64]]

FEWEST = 20  # pairs that a calibration may stand on
FOLDS = 5
BINS = 10
_PENALTY = 0.1  # keeps weights finite where the judge is never wrong
_MOST_STEPS = 100


@dataclass(frozen=True)
class Votes:
    """Of n pairs: chosen_first, rejected_first (n,), the vote when that side stood first; longer (n,), log of the length of
    chosen over that of rejected."""

    chosen_first: Numbers
    rejected_first: Numbers
    longer: Numbers

    @classmethod
    def joined(cls, parts: Sequence["Votes"]) -> "Votes":
        """One after the other."""
        names = ("chosen_first", "rejected_first", "longer")
        return cls(*(np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)]) for name in names))

    def mean(self) -> Numbers:
        """(n,) of both orders, in [-1, 1]."""
        return (self.chosen_first + self.rejected_first) / 2

    def share(self) -> Numbers:
        """(n,) the share of votes for chosen, a tie being half of one."""
        return (self.mean() + 1) / 2

    def features(self) -> Numbers:
        """(n, 2)."""
        return np.stack([self.mean(), self.longer], axis=1)


@dataclass(frozen=True)
class Calibration:
    """P(chosen is better) = sigmoid(vote_weight * mean vote + length_weight * log length ratio), and what the judge is like.

    accuracy            share of pairs on which it sides with people, ties half; pairs that people leave open do not count
    disagreement        share of pairs with another verdict in the other order
    position_bias       votes for what stands first minus votes for what stands second, per vote: from -1 to 1
    length_coefficient  log-odds of its votes per unit of log length ratio, beside people's preference: above 0 it likes the
                        longer answer more than people do
    calibration_error   mean |probability - people's share| over ten bins (ECE, Guo et al. 2017, arXiv:1706.04599), with
                        weights fitted on other prompts than those they are measured on
    """

    pairs: int
    vote_weight: float
    length_weight: float
    accuracy: float
    disagreement: float
    position_bias: float
    length_coefficient: float
    calibration_error: float

    def probability(self, votes: Votes) -> Numbers:
        """(n,) that chosen is better."""
        return sigmoid(votes.features() @ np.array([self.vote_weight, self.length_weight]))

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def calibrate(votes: Votes, human: Numbers, groups: Sequence[str]) -> Calibration:
    """human (n,): the share of people who find chosen better; pairs of a group (a prompt) are never fitted and measured
    together. UserError if there are too few."""
    if len(human) < FEWEST or len(set(groups)) < FOLDS:
        raise UserError(
            f"the judge gave verdicts on {len(human)} pairs of {len(set(groups))} prompts that people judged, and to"
            f" calibrate it takes {FEWEST} pairs of {FOLDS} prompts: name a larger version with --calibrate-on."
        )
    x, people = votes.features(), 2 * human - 1
    vote_weight, length_weight = fit(x, human)
    beside = fit(np.stack([people, votes.longer], axis=1), votes.share())
    clear = people != 0
    right = (np.sign(votes.mean()) * np.sign(people))[clear]
    return Calibration(
        pairs=len(human),
        vote_weight=float(vote_weight),
        length_weight=float(length_weight),
        accuracy=float((right + 1).mean() / 2) if clear.any() else 0.5,
        disagreement=float((votes.chosen_first != votes.rejected_first).mean()),
        position_bias=float(((votes.chosen_first - votes.rejected_first) / 2).mean()),
        length_coefficient=float(beside[1]),
        calibration_error=calibration_error(_held_out(x, human, groups), human),
    )


def fit(x: Numbers, share: Numbers) -> Numbers:
    """(k,) weights w that minimise the cross-entropy of `share` (n,) and sigmoid(x w), plus 0.1 |w|^2 / 2; by Newton."""
    w = np.zeros(x.shape[1])
    for _ in range(_MOST_STEPS):
        p = sigmoid(x @ w)
        gradient = x.T @ (p - share) + _PENALTY * w
        if np.abs(gradient).max() < 1e-9 * max(1, len(x)):
            break
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + _PENALTY * np.eye(len(w)), gradient)
        size = 1.0
        while size > 1e-6 and _loss(x, share, w - size * step) > _loss(x, share, w):
            size /= 2
        w = w - size * step
    return w


def calibration_error(probability: Numbers, share: Numbers) -> float:
    """Over pairs and their mirror images, so that it is the same whichever side is called chosen."""
    p, q = np.concatenate([probability, 1 - probability]), np.concatenate([share, 1 - share])
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=p - q, minlength=BINS)
    return float(np.abs(gaps).sum() / len(p))


def sigmoid(z: Numbers) -> Numbers:
    """Without overflow."""
    return 0.5 * (1 + np.tanh(z / 2))


def _loss(x: Numbers, share: Numbers, w: Numbers) -> float:
    z = x @ w
    return float((np.logaddexp(0, z) - share * z).sum() + _PENALTY * (w @ w) / 2)


def _held_out(x: Numbers, share: Numbers, groups: Sequence[str]) -> Numbers:
    place = {group: number for number, group in enumerate(sorted(set(groups)))}
    fold = np.array([place[group] % FOLDS for group in groups])
    found = np.zeros(len(share))
    for each in range(FOLDS):
        found[fold == each] = sigmoid(x[fold == each] @ fit(x[fold != each], share[fold != each]))
    return found
