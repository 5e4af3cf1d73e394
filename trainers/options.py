"""What a run can be asked for, and which numbers make no sense. The command line is in run.py."""

import math
from dataclasses import dataclass

from prefdata.errors import UserError


@dataclass(frozen=True)
class Options:
    """What a run is asked for. None: decided from the version, the loss or the machine, and said."""

    data: str  # one version, or several with commas between them
    loss: str
    weights: str | None = None  # of the terms of a loss, with commas between them; None: all 1
    set: tuple[str, ...] = ()  # knobs of the loss, NAME=VALUE
    model: str | None = None  # the policy to start from
    chat_template: str | None = None  # FILE, plain, or version; None: the model's own
    root: str | None = None  # where versions are
    out: str | None = None
    fresh: bool = False
    epochs: float | None = None  # 1 if steps are not given either
    steps: int | None = None  # instead of epochs
    batch_size: int = 8  # rows per forward and process
    accumulate: int = 4  # forwards per step
    batch_tokens: int | None = None  # tokens per forward, in the place of batch_size rows
    lr: float | None = None
    warmup: float = 0.1  # share of the steps, or from 1 on a number of steps
    dropout: float = 0.0
    seed: int = 0
    dtype: str | None = None  # float32 or bfloat16
    gradient_checkpointing: bool = False
    lora_rank: int | None = None  # None: every weight is trained
    lora_alpha: float | None = None
    lora_targets: str | None = None  # names of layers, with commas between them
    merge: bool = False
    early_stop: int | None = None  # evaluations in a row without a better one
    eval_every: int | None = None
    save_every: int | None = None
    trust_remote_code: bool = False


def check(options: Options) -> None:
    """UserError for numbers that make no sense, before anything is read."""
    _check_positive(options)
    if options.steps is not None and options.epochs is not None:
        raise UserError(
            f"--steps {options.steps} and --epochs {options.epochs:g} both say how long the run is: give one of them."
        )
    if not (math.isfinite(options.warmup) and options.warmup >= 0) or (options.warmup > 1 and options.warmup % 1):
        raise UserError(
            f"--warmup is {options.warmup:g}; it must be a share of the steps (at least 0, below 1), or a whole number of"
            " steps."
        )
    if options.steps is not None:
        check_warmup(options.warmup, options.steps)
    if not 0 <= options.dropout < 1:
        raise UserError(f"--dropout is {options.dropout:g}; it must be at least 0 and below 1.")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed is {options.seed}; it must be at least 0 and below 2**32.")
    if options.dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"--dtype {options.dtype}: it can be float32 or bfloat16.")
    _check_lora(options)


def check_warmup(warmup: float, steps: int) -> None:
    """UserError for a warm-up that the run ends in."""
    if warmup >= 1 and warmup >= steps:
        raise UserError(
            f"--warmup is {warmup:g} steps and the run has {steps:,}: the learning rate would never come to its peak. Give"
            " fewer, or a share of the steps below 1."
        )


def _check_positive(options: Options) -> None:
    positive = {
        "--epochs": options.epochs,
        "--steps": options.steps,
        "--batch-size": options.batch_size,
        "--accumulate": options.accumulate,
        "--batch-tokens": options.batch_tokens,
        "--lr": options.lr,
        "--lora-rank": options.lora_rank,
        "--lora-alpha": options.lora_alpha,
        "--early-stop": options.early_stop,
        "--eval-every": options.eval_every,
        "--save-every": options.save_every,
    }
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} is {value:g}; it must be above 0.")


def _check_lora(options: Options) -> None:
    """What shapes an adapter says nothing of a run without one."""
    if options.lora_rank is not None:
        return
    shaping = {
        "--lora-alpha": options.lora_alpha is not None,
        "--lora-targets": options.lora_targets is not None,
        "--merge": options.merge,
    }
    for name, given in shaping.items():
        if given:
            raise UserError(
                f"{name} is about a LoRA adapter, and without --lora-rank there is none: give one, or neither."
            )
