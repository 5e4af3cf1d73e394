"""Our side of a DPO step: the trainer's own loop on rows that carry reference log-probs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import TrainingArguments

from benchmarks.stepping import BETA, Stepper, arguments
from prefdata.logprobs import Tree
from trainers.data import Row, RowBatch, Side, collate
from trainers.loop import Loop
from trainers.loss import parse
from trainers.progress import Cadence
from trainers.steps import Step
from trainers.task import Task, count_items

LOG_EVERY = 10  # steps, as a run of the trainer has it


class OurStep:
    """Steps of `trainers.loop`. Entropy and accuracy of tokens are measured in the steps that it logs, as in a run."""

    def __init__(self, model: Any, *, bfloat16: bool = False) -> None:
        task = Task(parse("dpo", None, [f"beta={BETA}"]), "pairs")
        with arguments(TrainingArguments) as told:
            cadence = Cadence(log_every=LOG_EVERY, eval_every=None, save_every=10**9)
            loop = Loop(model, told, task=task, train_rows=None, test_rows=None, cadence=cadence, bfloat16=bfloat16)  # type: ignore[arg-type]
        loop.state.max_steps = 10**9
        loop.state.global_step = 1  # the first is logged
        self._stepper, self._task = Stepper(loop), task

    def __call__(self, rows: RowBatch) -> float:
        """One step; its loss."""
        return self._stepper.step(Step((rows,)), count_items(self._task, [rows]))


def batch(trees: Sequence[Tree], reference: Sequence[Sequence[float]]) -> RowBatch:
    """Pairs and the sums of their completions under the reference, in nats, as the trainer's reader gives them."""
    return collate(
        [
            Row(
                row_id=str(number),
                prompt_ids=np.asarray(tree.trunk, np.int32),
                sides=tuple(_side(*each) for each in zip(tree.branches, sums, strict=True)),
                names=("chosen", "rejected"),
                values={},
            )
            for number, (tree, sums) in enumerate(zip(trees, reference, strict=True))
        ]
    )


def _side(ids: Any, reference: float) -> Side:
    return Side(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_), len(ids), reference)
