"""A few held-out rows, the same at every evaluation, asked what the averages over a loss's own rows don't tell.

Dispersion: does probability go to answers that have nothing to do with the prompt, and does the policy begin to repeat itself?
Sensitivity: how large are the gradients
of the chosen and the rejected side, and does a step that lowers one lower the other (arXiv:2406.07327)?
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefdata import logprobs
from prefdata.engines import Sampling
from prefdata.logprobs import Tree
from trainers.data import Row, Rows, Side
from trainers.drift import answers
from trainers.groups import Groups
from trainers.precision import widest

ROWS = 32
PAIRS = 8  # of them, those whose gradients are taken
ANSWERS = 4  # of them, those whose prompts are answered
ANSWER_TOKENS = 32
NGRAM = 4


@dataclass(frozen=True)
class Probe:
    """The rows, and the longest that a prompt with an answer may be (tokens)."""

    rows: tuple[Row, ...]
    longest: int

    @classmethod
    def of(cls, rows: Rows | Groups, *, most: int = ROWS) -> "Probe":
        """So many rows, evenly spread over the split."""
        places = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)) if len(rows) else ()
        return cls(tuple(rows[int(place)] for place in places), rows.longest)

    def measure(self, model: Any, *, pairs: int = PAIRS) -> dict[str, float]:
        """Named numbers; the caller sets precision and puts the model into evaluation. `pairs` bounds the memory."""
        found = self.dispersion(model) | repetition(model, self.rows[:ANSWERS])
        own = [row for row in self.rows if row.names == ("chosen", "rejected")][:pairs]
        return found | (gradients(model, own) | similarity(model, own) if own else {})

    @torch.no_grad()
    def dispersion(self, model: Any) -> dict[str, float]:
        """Nats per token: of each prompt's own answer, of the answer to another prompt, and the entropy along the own.

        The other answer is cut where it would make the text longer than any row is.
        """
        told: dict[str, list[Tensor]] = {"unseen_per_token": [], "unrelated_per_token": [], "entropy": []}
        for row, other in zip(self.rows, (*self.rows[1:], *self.rows[:1]), strict=True):
            own, foreign = _answer(row), _answer(other)
            room = self.longest - len(row.prompt_ids)
            scored = foreign.scored[:room]
            unrelated = bool(scored.any()) and not np.array_equal(row.prompt_ids, other.prompt_ids)
            branches = [own.ids, foreign.ids[:room]] if unrelated else [own.ids]
            scores = logprobs.forward(model, [Tree(row.prompt_ids, branches)], extras=True)
            assert scores.entropies is not None
            told["unseen_per_token"].append(_kept(scores.logps[0], own.scored))
            told["entropy"].append(_kept(scores.entropies[0], own.scored))
            if unrelated:
                told["unrelated_per_token"].append(_kept(scores.logps[1], scored))
        means = {name: torch.cat(parts).to(widest(parts[0].device)).mean() for name, parts in told.items() if parts}
        return {f"probe/{name}": float(mean) for name, mean in means.items()}


def _answer(row: Row) -> Side:
    """The good answer of a row, or the best of a group."""
    if row.is_group and "score" in row.values:
        return row.sides[int(np.argmax(row.values["score"]))]
    return row.sides[row.names.index("chosen") if "chosen" in row.names else 0]


def _kept(values: Tensor, scored: np.ndarray[Any, np.dtype[np.bool_]]) -> Tensor:
    return values[torch.from_numpy(np.array(scored)).to(values.device)]


def gradients(model: Any, pairs: Sequence[Row]) -> dict[str, float]:
    """Gradients G_w and G_l of the pairs' summed log-probs of chosen and rejected, in the weights that are trained.

    gradient_ratio is |G_l| / |G_w|, displacement <G_w, G_l> / |G_w|^2: above 1, a step of DPO lowers chosen too. The inner
    product comes from a third backward pass, |G_w + G_l|^2, so that no more than one gradient is in memory.
    """
    chosen, rejected, both = (_squared(model, pairs, weights) for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
    inner = (both - chosen - rejected) / 2
    found = {"gradient_chosen": math.sqrt(chosen), "gradient_rejected": math.sqrt(rejected)}
    if chosen > 0 and rejected > 0:
        found |= {
            "gradient_ratio": math.sqrt(rejected / chosen),
            "gradient_cosine": inner / math.sqrt(chosen * rejected),
            "displacement": inner / chosen,
        }
    return {f"probe/{name}": value for name, value in found.items()}


def _squared(model: Any, pairs: Sequence[Row], weights: tuple[float, float]) -> float:
    """|G|^2 of the weighted sum of both sides' log-probs."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.enable_grad():
        trees = [Tree(row.prompt_ids, [side.ids for side in row.sides]) for row in pairs]
        logps = logprobs.forward(model, trees).logps
        sides = [side for row in pairs for side in row.sides]
        total = torch.stack(
            [
                weights[place % 2] * _kept(own, side.scored).sum()
                for place, (own, side) in enumerate(zip(logps, sides, strict=True))
            ]
        ).sum()
        found = torch.autograd.grad(total, trained, allow_unused=True)
    return float(sum(each.square().sum(dtype=widest(each.device)) for each in found if each is not None))


def similarity(model: Any, pairs: Sequence[Row]) -> dict[str, float]:
    """CHES, a cheap stand-in for how much a pair displaces (Razin et al. 2024, arXiv:2410.08847, definition 2): mean over pairs.

    <sum h_w, sum h_l> - |sum h_w|^2, with h the last hidden states that scored tokens are predicted from. Equal sides
    give 0; the higher, the likelier it is that a step lowers chosen too.
    """
    scores = []
    for row in pairs:
        found = logprobs.states(model, [Tree(row.prompt_ids, [side.ids for side in row.sides])])
        chosen, rejected = (
            _kept(each, side.scored).to(widest(each.device)).sum(0) for each, side in zip(found, row.sides, strict=True)
        )
        scores.append(float(chosen @ rejected - chosen @ chosen))
    return {"probe/ches": float(np.mean(scores))}


def repetition(model: Any, rows: Sequence[Row]) -> dict[str, float]:
    """How far greedy answers repeat themselves: of all their runs of four tokens, the share that came before in the answer."""
    prompts = {row.row_id: row.prompt_ids.tolist() for row in rows}
    found = answers(model, prompts, ANSWER_TOKENS, Sampling(temperature=0), least=NGRAM)
    return {"probe/greedy_repetition": float(np.mean([repeated(each.token_ids) for each in found]))} if found else {}


def repeated(tokens: Sequence[int]) -> float:
    """Share of the runs of four tokens that occurred before; 0 of fewer tokens."""
    runs = [tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
