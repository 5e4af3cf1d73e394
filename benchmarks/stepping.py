"""One optimiser step of a transformers Trainer, as its own loop makes it, but called from outside: so that two trainers
can take steps in turn."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import TrainingArguments

LR = 1e-6
BETA = 0.1


class Stepper:
    """A trainer with an optimiser, ready to step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer()
        self.model, self.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        self.model.train()

    def step(self, inputs: Any, items: Any = None) -> float:
        """Forward, backward, clipping and update; the loss before the update."""
        loss = self.trainer.training_step(self.model, inputs, items)
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.trainer.state.global_step += 1
        return float(loss)


@contextlib.contextmanager
def arguments(make: Callable[..., TrainingArguments], **more: Any) -> Iterator[TrainingArguments]:
    """What both trainers are told alike. The folder lives as long as the context and stays empty."""
    with tempfile.TemporaryDirectory(prefix="prefdata-benchmark-") as folder:
        yield make(
            output_dir=folder,
            learning_rate=LR,
            weight_decay=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            logging_strategy="no",
            save_strategy="no",
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            **more,
        )
