"""Token trees in, per-token log-probs out: the one forward of the scorer and of every trainer.

    forward(model, trees)           differentiable; the caller sizes the batch
    score(model, trees)             no gradients; any number of trees
    Pool(loading, gpus()).score     the same with a process for each GPU
    states(model, trees)            last hidden states; no gradients, a few rows
    rewards, score_rewards          the scores of a model with a scalar head, in the same two ways

What the forward does inside is its own affair; callers hand it trees and read `Scores`. Tokens that branches share run
once (shared.py) with every model that allows it; with another, every branch is a row of its own (padded.py).
"""

from prefdata.logprobs.pool import Pool, gpus
from prefdata.logprobs.route import forward
from prefdata.logprobs.scalar import rewards, score_rewards
from prefdata.logprobs.score import score
from prefdata.logprobs.states import states
from prefdata.logprobs.trees import Scores, Tree

__all__ = ["Pool", "Scores", "Tree", "forward", "gpus", "rewards", "score", "score_rewards", "states"]
