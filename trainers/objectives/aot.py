"""Alignment via Optimal Transport, on pairs."""

from torch import Tensor

from trainers.objectives.batch import ReferencedPair
from trainers.objectives.dpo import smoothed
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta, LabelSmoothing


@objective(ReferencedPair, source="Melnyk et al. 2024, arXiv:2406.05882, AOT paired", lr=1e-6, across_rows=True)
def aot(lp: ReferencedPair, *, beta: Beta = 0.01, label_smoothing: LabelSmoothing = 0.0) -> Tensor:
    """AOT on pairs: the policy's margins above the reference's as distributions, not pair by pair.

        u = chosen - rejected;   v = ref_chosen - ref_rejected
        loss of the pair with the i-th smallest u = -log sigmoid(beta (u - the i-th smallest v))

    Shapes   every field of lp is (B,); returns (B,), one loss per pair, not reduced.
    Units    log-probs in nats, summed over the scored tokens; beta in 1/nat.
    Params   beta: 0.01 in the paper.
             label_smoothing: as dpo's.
    Data     as dpo. What is sorted are the rows of one forward in one process, so --batch-size matters, and how a step is cut;
             give it as large a batch as memory allows.
    Anchor   a batch of one pair is dpo; where policy equals reference the loss is log 2.
    """
    margins = lp.chosen - lp.rejected
    order = margins.argsort()
    sorted_reference = (lp.ref_chosen - lp.ref_rejected).sort().values
    matched = margins.new_empty(margins.shape).scatter(0, order, sorted_reference)
    return smoothed(beta * (margins - matched), label_smoothing)
