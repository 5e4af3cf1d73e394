"""How long a run is, and what happens when: steps, warm-up, evaluations, checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from trainers.options import check_warmup
from trainers.processes import Processes
from trainers.progress import Cadence
from trainers.runs import Run

SCHEDULE = "linear"  # after the warm-up, down to 0 at the last step


def rows_per_step(config: Mapping[str, Any], processes: Processes) -> int:
    """Rows of a step, over all micro-batches and processes."""
    rows: int = config["batch_size"] * config["accumulate"] * processes.size
    return rows


def length(config: Mapping[str, Any], rows: int, processes: Processes) -> int:
    """How many steps a run takes. UserError for a warm-up that it ends in."""
    steps: int = config["steps"] or math.ceil(config["epochs"] * math.ceil(rows / rows_per_step(config, processes)))
    check_warmup(config["warmup"], steps)
    return steps


def cadence(config: Mapping[str, Any], steps: int, *, held_out: bool) -> Cadence:
    """When a run of so many steps logs, evaluates and saves."""
    return Cadence(
        log_every=max(1, min(10, steps // 20)),
        eval_every=(config["eval_every"] or math.ceil(steps / _evaluations(config))) if held_out else None,
        save_every=config["save_every"] or min(math.ceil(steps / 5), 500),
    )


def _evaluations(config: Mapping[str, Any]) -> int:
    """How often a run is evaluated unless --eval-every is given: thrice, or enough for early stopping to do something."""
    return max(3, 5 * (config["early_stop"] or 0))


def arguments(run: Run, steps: int, processes: Processes) -> TrainingArguments:
    """What transformers' Trainer is told."""
    config = run.config
    warmup = config["warmup"] if config["warmup"] >= 1 else math.floor(config["warmup"] * steps)
    return TrainingArguments(
        output_dir=str(run.folder),
        max_steps=steps,
        per_device_train_batch_size=config["batch_size"],
        per_device_eval_batch_size=config["batch_size"],
        gradient_accumulation_steps=1,  # a step comes whole, in micro-batches of its own: see trainers.steps
        gradient_checkpointing=config["gradient_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=config["lr"],
        warmup_steps=int(warmup),
        lr_scheduler_type=SCHEDULE,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=config["seed"],
        # several processes find each other over gloo only where a CPU is asked for by name
        use_cpu=processes.size > 1 and not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        # Cadence decides when to log, evaluate and save, and checkpoints which are kept
        log_level="error",
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
