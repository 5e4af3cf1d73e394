"""Relative Preference Optimization: good answers against bad ones of other prompts too, the nearer the prompts the more."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.objectives.batch import EmbeddedJudged, EmbeddedPair
from trainers.objectives.judged_ratios import log_ratio
from trainers.objectives.knobs import Range
from trainers.objectives.log_ratios import log_ratios
from trainers.objectives.prompt_distance import effective_number, nearness
from trainers.objectives.registry import objective
from trainers.objectives.shared_knobs import Beta

SOURCE = "Yin et al. 2024, arXiv:2402.10958"
Temperature = Annotated[float, Range(above=0, why="distances are divided by it")]


def contrasts(lp: EmbeddedPair, *, beta: float, temperature: float) -> dict[str, Tensor]:
    """The weighed contrasts of true pairs and of the others, and how many rejected answers each chosen one meets."""
    weights = nearness(lp.prompt_embedding, lp.prompt_embedding, temperature)
    chosen, rejected = log_ratios(lp)
    weighed = beta * weights * (chosen[:, None] - rejected[None, :])
    own = weighed.diagonal()
    others = (weighed.sum(dim=1) - own) / max(len(own) - 1, 1)
    return {
        "relative_po/own": own,
        "relative_po/others": others,
        "relative_po/negatives": effective_number(weights),
    }


@objective(EmbeddedPair, source=SOURCE, lr=5e-7, diagnostics=contrasts, across_rows=True)
def relative_po(lp: EmbeddedPair, *, beta: Beta = 0.1, temperature: Temperature = 0.5) -> Tensor:
    """Relative Preference Optimization of pairs: every chosen answer of a forward against every rejected one.

        S_ij = (chosen_i - ref_chosen_i) - (rejected_j - ref_rejected_j)
        W_ij = softmax over j of (cos(prompt_i, prompt_j) - 1) / T
        loss = mean over i and j of -log sigmoid(beta W_ij S_ij)

    Shapes   fields of lp are (B,), prompt_embedding (B, size); returns (B,), the mean over j of each i.
    Units    log-probs in nats, summed over the scored tokens (not means); beta in 1/nat; T in units of the cosine.
    Params   beta: 0.1 in the published code.
             temperature: T, 0.25 to 0.75 was tried. The weight is inside the sigmoid, and a row's weights add up to 1, so
             that B equal prompts are as beta / B.
             The learning rate is a guess [?].
    Data     ref_chosen_logps, ref_rejected_logps, prompt_embedding. Rows are compared within a forward of one process, so
             --batch-size is part of the loss: 8 and more is usual, and of 2 nothing was gained in the paper.
    Anchor   where policy equals reference the loss is log 2. One pair is dpo.
    """
    weights = nearness(lp.prompt_embedding, lp.prompt_embedding, temperature)
    chosen, rejected = log_ratios(lp)
    return F.softplus(-beta * weights * (chosen[:, None] - rejected[None, :])).mean(dim=1)


@objective(EmbeddedJudged, source=SOURCE, lr=5e-7, across_rows=True)
def relative_po_unpaired(lp: EmbeddedJudged, *, beta: Beta = 0.1, temperature: Temperature = 0.5) -> Tensor:
    """Relative Preference Optimization of judged rows: every desirable row of a forward against every undesirable one.

    As relative_po, with i over the desirable rows, j over the undesirable ones, and the embeddings of their own prompts.

    Shapes   fields of lp are (B,), prompt_embedding (B, size); returns (B,), whose mean is the loss: half of each
             contrast goes to either row.
    Units    as relative_po.
    Params   as relative_po.
    Data     ref_completion_logps, prompt_embedding. The rows' weights count within their class. A forward that has rows of
             one class alone gives 0.
    Anchor   where policy equals reference the loss is log 2. One row of each class is dpo of the two.
    """
    ratios = log_ratio(lp)
    if lp.label.all() or not lp.label.any():
        return 0 * ratios
    sides = [lp.label.nonzero().flatten(), (~lp.label).nonzero().flatten()]
    weights = nearness(lp.prompt_embedding[sides[0]], lp.prompt_embedding[sides[1]], temperature)
    contrast = ratios[sides[0]][:, None] - ratios[sides[1]][None, :]
    shares = [lp.weight[side] / lp.weight[side].sum() for side in sides]
    cost = shares[0][:, None] * shares[1][None, :] * F.softplus(-beta * weights * contrast) * (len(ratios) / 2)
    by_row = torch.zeros_like(ratios).index_add(0, sides[0], cost.sum(dim=1))
    return by_row.index_add(0, sides[1], cost.sum(dim=0))
