"""Contrastive Preference Optimization."""

from torch import Tensor

from trainers.objectives.batch import Pair
from trainers.objectives.dpo import smoothed
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, LabelSmoothing, LikelihoodWeight


@objective(Pair, source="Xu et al. 2024, arXiv:2401.08417, eq. 3", lr=1e-5, rewards="sums")
def cpo(lp: Pair, *, beta: Beta = 0.1, alpha: LikelihoodWeight = 1.0, label_smoothing: LabelSmoothing = 0.0) -> Tensor:
    """Contrastive Preference Optimization: DPO with a uniform reference, and the likelihood of chosen.

        h = chosen - rejected
        loss = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h) - alpha * chosen

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens in both terms, as in the paper; beta in 1/nat. For the token
             mean that TRL takes of the likelihood, train cpo+sft with --set alpha=0.
    Params   beta: 0.1 in the paper.
             alpha: 1 in the paper.
             label_smoothing: eps in [0, 0.5), the share of pairs thought to be labelled backwards.
    Data     no reference. Sums of sides of different lengths are hundreds of nats apart, and their sigmoid is saturated.
    Anchor   it is dpo with a reference whose sums are equal, less alpha * chosen.
    """
    return smoothed(beta * (lp.chosen - lp.rejected), label_smoothing) - alpha * lp.chosen
