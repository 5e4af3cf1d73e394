"""A dict and a decorator. `trainers.objectives` imports each file of losses by name: no scanning, no plugins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from prefdata.errors import UserError
from trainers.objectives.batch import Batch, Pair, Rule
from trainers.objectives.knobs import Knob, knobs_of
from trainers.objectives.weighting import WEIGHTING

Loss = Callable[..., Tensor]
Diagnostics = Callable[..., Mapping[str, Tensor]]
Rules = Callable[..., tuple[Rule, ...]]
Reduction = Literal["rows", "tokens"]
Reward = Literal["sums", "means"]


@dataclass(frozen=True)
class Objective:
    """A loss and what the loop needs to know of it."""

    name: str
    loss: Loss
    batch: type[Batch]
    source: str
    reduction: Reduction  # what the summed losses of a step are divided by: its rows, or its scored tokens
    lr: float  # learning rate unless --lr is given: full fine-tuning, AdamW
    diagnostics: (
        Diagnostics | None
    )  # what only this loss has to show: called as the loss is, named (B,) values, logged as means
    across_rows: bool = False  # whether the rows of a forward are compared with each other, so that its size matters
    rules: Rules | None = None  # what it refuses of a row beyond its contract: called with its knobs
    rewards: Reward | None = None  # what a side's logged reward is of; None: sums over a reference, means without one

    @cached_property
    def knobs(self) -> dict[str, Knob]:
        """Its keyword-only arguments."""
        return knobs_of(self.loss)

    @property
    def weighable(self) -> bool:
        """Whether each pair has a loss of its own that can be weighted, apart from what its neighbours are."""
        return issubclass(self.batch, Pair) and not self.across_rows and not self.batch.pools

    @cached_property
    def options(self) -> dict[str, Knob]:
        """All that --set takes: its knobs, and what is done to its losses afterwards."""
        return {**self.knobs, **({WEIGHTING.name: WEIGHTING} if self.weighable else {})}


OBJECTIVES: dict[str, Objective] = {}

# Names that mean several things in the literature, and what each meaning is or will be called here.
AMBIGUOUS: dict[str, tuple[tuple[str, str], ...]] = {
    "rpo": (
        ("Relative Preference Optimization (Yin et al. 2024)", "relative_po"),
        ("DPO with a likelihood term on chosen (IRPO, Llama 3.1)", "dpo_nll"),
        ("Reward-aware Preference Optimization (Nemotron-4)", ""),
    )
}


def objective(
    batch: type[Batch],
    *,
    source: str,
    lr: float,
    reduction: Reduction = "rows",
    diagnostics: Diagnostics | None = None,
    across_rows: bool = False,
    rules: Rules | None = None,
    rewards: Reward | None = None,
) -> Callable[[Loss], Loss]:
    """Register a loss under its own function name; the function itself is left as it is.

    A loss returns one value per row. The step's loss is their sum over the step's rows (reduction "rows") or
    scored tokens (reduction "tokens", for a loss that sums over a row's tokens), counted over every micro-batch and
    process of the step, so that how a step is cut into micro-batches changes nothing; but for a loss that compares the
    rows of a forward with each other (across_rows), whose values add up to what that forward's rows are worth together.
    """

    def register(loss: Loss) -> Loss:
        if loss.__name__ in OBJECTIVES:
            raise ValueError(f"two losses are called {loss.__name__!r}: rename the one in {loss.__module__}")
        OBJECTIVES[loss.__name__] = Objective(
            loss.__name__, loss, batch, source, reduction, lr, diagnostics, across_rows, rules, rewards
        )
        return loss

    return register


def find(name: str) -> Objective:
    """The objective of that name; an error names what there is."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if name.lower() in AMBIGUOUS:
        raise UserError(_ambiguous(name, AMBIGUOUS[name.lower()]))
    raise UserError(
        f"--loss {name}: there is no such loss; there are {_names()} (python -m trainers.run --list says what each reads)."
    )


def _ambiguous(name: str, meanings: Sequence[tuple[str, str]]) -> str:
    listed = "; ".join(f"{text}{called and f' = {called}'}" for text, called in meanings)
    offered = [called for _, called in meanings if called in OBJECTIVES]
    then = f"Of these there is {' and '.join(offered)}" if offered else "None of these is offered yet"
    return f"--loss {name} has {len(meanings)} meanings: {listed}. {then}; the losses there are: {_names()}."


def _names() -> str:
    return ", ".join(sorted(OBJECTIVES))
