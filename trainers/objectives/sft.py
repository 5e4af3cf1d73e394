"""Imitation of one completion."""

from torch import Tensor

from trainers.objectives.batch import Demonstration
from trainers.objectives.registry import objective


@objective(
    Demonstration,
    source="maximum likelihood; InstructGPT, Ouyang et al. 2022, arXiv:2203.02155",
    lr=1e-5,
    reduction="tokens",
)
def sft(lp: Demonstration) -> Tensor:
    """Supervised fine-tuning: negative log-likelihood of the completion, as a token mean.

        loss of a row = -completion;   loss of a step = sum over its rows / sum over its scored tokens

    Shapes   every field of lp is (B,); returns (B,), each row's sum over tokens, not reduced.
    Units    nats. Of the three usual normalisations this is the token mean: every token of the step weighs the same,
             and a long answer more than a short one.
    Params   none; the learning rate, 1e-5, is of the size that full fine-tuning usually takes [unconfirmed].
    Data     the chosen side of a pair, or the completion of a row; the prompt is not scored.
    Anchor   uniform predictions over V tokens give ln V.
    """
    return -lp.completion
