"""Knobs that several losses have in common, each with its range and the reason."""

from typing import Annotated, Literal

from trainers.objectives.knobs import Only, Range

Beta = Annotated[float, Range(above=0, why="at 0 the loss is the same whatever the policy does")]

LabelSmoothing = Annotated[
    float, Range(at_least=0, below=0.5, why="from 0.5 on the labels would say nothing, or the opposite")
]

LikelihoodWeight = Annotated[float, Range(at_least=0, why="below 0 chosen would be made less likely")]

Tau = Annotated[float, Range(above=0, why="the target is 1 / (2 tau)")]

# what the losses of pairs are multiplied by; see trainers.objectives.weighting
Weighting = Literal["none", "wpo"]

# which divergence from the reference a loss of margins stands for; see trainers.objectives.log_ratios
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

DivergenceAlpha = Annotated[
    float, Range(at_least=0, at_most=1, why="0 is the forward KL and 1 the reverse"), Only("divergence", "alpha")
]
