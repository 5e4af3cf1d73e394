"""A run from its options to its checkpoint: contract, rows, model, loop. The command line is in run.py.

Importing this is cheap; torch and transformers come in where a function needs them.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import UserError

if TYPE_CHECKING:
    from prefdata.tokens import Renderer
    from prefdata.versions import Version
    from trainers.data import Rows
    from trainers.loop import Loop
    from trainers.objectives import Objective
    from trainers.progress import Cadence
    from trainers.runs import Run

SCHEDULE = "linear"  # after the warm-up, down to 0 at the last step
# options that stand in a run's configuration in a decided form, or not at all
_DECIDED = ("data", "loss", "set", "model", "chat_template", "root", "out", "fresh", "epochs", "lr", "dtype")


@dataclass(frozen=True)
class Options:
    """What a run is asked for. None: decided from the version, the loss or the machine, and said."""

    data: str
    loss: str
    set: tuple[str, ...] = ()  # knobs of the loss, NAME=VALUE
    model: str | None = None  # the policy to start from
    chat_template: str | None = None  # FILE, plain, or version; None: the model's own
    root: str | None = None  # where versions are
    out: str | None = None
    fresh: bool = False
    epochs: float | None = None  # 1 if steps are not given either
    steps: int | None = None  # instead of epochs
    batch_size: int = 8  # rows per forward
    accumulate: int = 4  # forwards per step
    lr: float | None = None
    warmup: float = 0.1  # share of the steps, or from 1 on a number of steps
    dropout: float = 0.0
    seed: int = 0
    dtype: str | None = None  # float32 or bfloat16
    eval_every: int | None = None
    save_every: int | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class RunResult:
    """What a run came to. `before` and `after` are the held-out metrics; empty if the version has no test rows."""

    folder: Path
    finished: bool  # False: stopped on request, the same command goes on
    steps: int
    continued: bool
    train: Mapping[str, float]  # the last training line
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)


Say = Callable[[str], None]


def train(options: Options, *, say: Say = print) -> RunResult:
    """Run the options to their end: contract, rows, model, loop, final checkpoint. UserError if they can't be run."""
    from prefdata import models, versions
    from trainers import contract, runs
    from trainers.objectives import find
    from trainers.objectives.knobs import resolve

    _check_numbers(options)
    objective = find(options.loss)
    knobs = resolve(objective.name, objective.knobs, options.set)
    version = versions.find(options.data, root=options.root, kinds=_latest_kinds(options.data, objective))
    contract.check(version, objective)
    model = _model_name(version, options.model)
    description = _describe(models, version, model, objective, asked=options.model is not None, say=say)
    renderer = _renderer(version, model, options)
    config = _config(options, version, objective, knobs, description, renderer)
    done = runs.finished(Path(options.out), config) if options.out and not options.fresh else None
    if done:
        say(f"{options.out} holds this very run, finished; nothing was trained")
        return RunResult(
            Path(str(options.out)), True, done["steps"], True, done["train"], done["before"], done["after"]
        )
    run, said = runs.claim(config, out=options.out, fresh=options.fresh)
    say(f"{said}: {objective.name} on {version.name}, starting from {description['name']}@{description['digest'][:12]}")
    try:
        return _train(options, version, objective, renderer, run, model, say)
    finally:
        run.release()


def _train(
    options: Options,
    version: "Version",
    objective: "Objective",
    renderer: "Renderer",
    run: "Run",
    model_name: str,
    say: Say,
) -> RunResult:
    from prefdata import models
    from trainers import contract
    from trainers.loop import set_dropout

    try:
        train_rows, test_rows = _rows(version, objective, run)
        room = models.max_positions(model_name, trust_remote_code=options.trust_remote_code)
        contract.check_lengths(version, max(rows.longest for rows in (train_rows, test_rows) if rows), room, model_name)
        model = models.load_model(model_name, dtype="float32", trust_remote_code=options.trust_remote_code)
    except UserError:
        run.discard_if_new()
        raise
    _make_savable(model)
    if options.dropout:
        set_dropout(model, options.dropout)
    checkpoint = run.last_checkpoint()
    if run.continues:
        say(f"from {checkpoint.name}" if checkpoint else "it had no checkpoint yet, so from the start")
    loop = _loop(version, objective, renderer, run, model, train_rows, test_rows, say)
    if checkpoint is None:
        _step_zero(version, run, model, loop, say)
    if _go(loop, run, checkpoint, say):
        say(f"stopped at step {loop.state.global_step} of {loop.state.max_steps}; the same command goes on from there")
        return _result(loop, run, finished=False)
    _save(loop, renderer, run)
    result = _result(loop, run, finished=True)
    run.write("finished", steps=result.steps, train=result.train, before=result.before, after=result.after)
    run.clear_checkpoints()
    return result


def _rows(version: "Version", objective: "Objective", run: "Run") -> tuple["Rows", "Rows | None"]:
    from trainers import data

    train_rows = data.load(version, "train", objective.batch, run.folder)
    return train_rows, data.load(version, "test", objective.batch, run.folder) if "test" in version.splits else None


# -- what is asked -------------------------------------------------------------------------------------------------


def _check_numbers(options: Options) -> None:
    """Numbers that make no sense are refused before anything is read."""
    positive = {
        "--epochs": options.epochs,
        "--steps": options.steps,
        "--batch-size": options.batch_size,
        "--accumulate": options.accumulate,
        "--lr": options.lr,
        "--eval-every": options.eval_every,
        "--save-every": options.save_every,
    }
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} is {value:g}; it must be above 0.")
    if options.steps is not None and options.epochs is not None:
        raise UserError(
            f"--steps {options.steps} and --epochs {options.epochs:g} both say how long the run is: give one of them."
        )
    if not (math.isfinite(options.warmup) and options.warmup >= 0):
        raise UserError(
            f"--warmup is {options.warmup:g}; it must be a share of the steps (0 to 1), or a number of steps."
        )
    if not 0 <= options.dropout < 1:
        raise UserError(f"--dropout is {options.dropout:g}; it must be at least 0 and below 1.")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed is {options.seed}; it must be at least 0 and below 2**32.")
    if options.dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"--dtype {options.dtype}: it can be float32 or bfloat16.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training in several processes (torchrun) is not offered here yet: start it with python alone.")


def _latest_kinds(data: str, objective: "Objective") -> tuple[str, ...] | None:
    """`latest` means the newest version of a kind that the loss reads; a version named outright is judged by the contract."""
    return tuple(objective.batch.sides) if data == "latest" else None


def _model_name(version: "Version", given: str | None) -> str:
    """The model asked for, else the one whose log-probs the version stores, that wrote its answers, or that it was tokenised for."""
    if given is not None:
        return given
    manifest = version.manifest
    for entry in (manifest.get("reference"), manifest.get("generator"), manifest.get("tokenizer")):
        if entry and entry.get("name"):
            return str(entry["name"])
    raise UserError(f"data version {version.name} names no model: say which to train with --model.")


def _describe(
    models: Any, version: "Version", model: str, objective: "Objective", *, asked: bool, say: Say
) -> dict[str, Any]:
    try:
        found: dict[str, Any] = models.describe(model)
    except UserError as problem:
        if asked:
            raise
        raise UserError(
            f"data version {version.name} was made with a model that is not there now: {problem}\nSay which to train with --model."
        ) from problem
    if not asked:
        _check_weights(version, model, found["digest"], objective, say)
    return found


def _check_weights(version: "Version", model: str, digest: str, objective: "Objective", say: Say) -> None:
    """Other weights than the manifest's are refused where the loss compares with them, and said where it does not."""
    for role in ("reference", "generator"):
        entry: Mapping[str, Any] = version.manifest.get(role) or {}  # type: ignore[assignment]
        if entry.get("name") != model or entry.get("digest") == digest:
            continue
        found = (
            f"the {role} of data version {version.name} was {model} with digest {str(entry.get('digest'))[:12]}, and the"
            f" model there now has {digest[:12]}"
        )
        if role == "reference" and objective.batch.referenced:
            raise UserError(f"{found}.\nIf that is the one to train, say so with --model {model}")
        say(f"notice: {found}; --loss {objective.name} does not read that {role}, so the model there now is trained")


def _renderer(version: "Version", model: str, options: Options) -> "Renderer":
    """The model's tokenizer and template, checked against those of the version's tokens."""
    from prefdata.tokens import Renderer, differences
    from trainers import contract

    stored = version.manifest["tokenizer"]
    trust = options.trust_remote_code
    if options.chat_template == "version":
        renderer = Renderer.like(stored, model, trust_remote_code=trust)
    else:
        renderer = Renderer.load(model, chat_template=options.chat_template, trust_remote_code=trust)
        args = stored["template_args"]
        if args and not renderer.plain:
            renderer = Renderer.load(
                model, chat_template=options.chat_template, template_args=args, trust_remote_code=trust
            )
    contract.check_tokenizer(version, differences(stored, renderer.fingerprint), model)
    return renderer


def _config(
    options: Options,
    version: "Version",
    objective: "Objective",
    knobs: Mapping[str, Any],
    description: Mapping[str, Any],
    renderer: "Renderer",
) -> dict[str, Any]:
    """What makes two runs the same run; everything undecided is decided here."""
    plain = {name: value for name, value in asdict(options).items() if name not in _DECIDED}
    return {
        **plain,
        "data": {
            "version": version.name,
            "logical_hash": version.logical_hash,
            "reference": (version.manifest["reference"] or {}).get("digest"),
        },
        "loss": objective.name,
        "knobs": dict(knobs),
        "policy": {"name": description["name"], "digest": description["digest"], "commit": description.get("commit")},
        "chat_template": renderer.fingerprint["template_digest"],  # a file's name would not say that it was edited
        "epochs": None if options.steps else options.epochs or 1.0,
        "lr": options.lr or objective.lr,
        "dtype": options.dtype or _default_dtype(),
        "schedule": SCHEDULE,
    }


def _default_dtype() -> str:
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


# -- the loop ------------------------------------------------------------------------------------------------------


def _loop(
    version: "Version",
    objective: "Objective",
    renderer: "Renderer",
    run: "Run",
    model: Any,
    train_rows: "Rows",
    test_rows: "Rows | None",
    say: Say,
) -> "Loop":
    from trainers.loop import Loop, Task

    config = run.config
    rows_per_step = config["batch_size"] * config["accumulate"]
    steps = config["steps"] or math.ceil(config["epochs"] * math.ceil(len(train_rows) / rows_per_step))
    held_out = f"{len(test_rows):,}" if test_rows else "none"
    say(
        f"{len(train_rows):,} train rows, {held_out} held out; {steps:,} steps of {rows_per_step} rows,"
        f" lr {config['lr']:g}, {config['dtype']}"
    )
    return Loop(
        model,
        _arguments(run, steps),
        task=Task(objective, config["knobs"], version.kind),
        train_rows=train_rows,
        test_rows=test_rows,
        cadence=_cadence(config, steps, held_out=test_rows is not None),
        bfloat16=config["dtype"] == "bfloat16",
        tokenizer=_tokenizer(renderer),
    )


def _go(loop: "Loop", run: "Run", checkpoint: Path | None, say: Say) -> bool:
    """Train to the last step. True if it was stopped on request before."""
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback
    from transformers.integrations.integration_utils import TensorBoardCallback
    from transformers.utils import logging

    from trainers.progress import Interrupt, Progress

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of its own, for every file it writes
    begun = _step_of(checkpoint) if checkpoint else 0
    if checkpoint and begun >= loop.args.max_steps:
        loop.restore(checkpoint)  # all its steps are done; it was killed between the last one and the end
        return False
    loop.remove_callback(PrinterCallback)
    loop.args.eval_on_start = checkpoint is None and loop.eval_dataset is not None
    with (
        Interrupt(say) as interrupt,
        Progress(say) as progress,
        SummaryWriter(str(run.folder / "tensorboard"), purge_step=begun) as writer,
    ):
        for callback in (loop.cadence, interrupt, progress, TensorBoardCallback(writer)):  # type: ignore[no-untyped-call]
            loop.add_callback(callback)
        try:
            loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as problem:
            raise UserError(
                f"the device has no memory for {loop.args.per_device_train_batch_size} rows at once. Give a smaller"
                " --batch-size and as much larger --accumulate: a step stays the same."
            ) from problem
    return interrupt.asked and loop.state.global_step < loop.args.max_steps


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _cadence(config: Mapping[str, Any], steps: int, *, held_out: bool) -> "Cadence":
    from trainers.progress import Cadence

    return Cadence(
        log_every=max(1, min(10, steps // 20)),
        eval_every=(config["eval_every"] or math.ceil(steps / 3)) if held_out else None,
        save_every=config["save_every"] or min(math.ceil(steps / 5), 500),
    )


def _arguments(run: "Run", steps: int) -> Any:
    from transformers import TrainingArguments

    config = run.config
    warmup = config["warmup"] if config["warmup"] >= 1 else math.floor(config["warmup"] * steps)
    return TrainingArguments(
        output_dir=str(run.folder),
        max_steps=steps,
        per_device_train_batch_size=config["batch_size"],
        per_device_eval_batch_size=config["batch_size"],
        gradient_accumulation_steps=config["accumulate"],
        learning_rate=config["lr"],
        warmup_steps=int(warmup),
        lr_scheduler_type=SCHEDULE,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=config["seed"],
        # Cadence decides when to log, evaluate and save
        log_level="error",
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def _step_zero(version: "Version", run: "Run", model: Any, loop: "Loop", say: Say) -> None:
    """How policy and stored reference agree; what the held-out metrics are before the first step."""
    from trainers import agreement
    from trainers.contract import reference_of

    sides = tuple(loop.task.objective.batch.sides[version.kind].values())
    rows = agreement.probe(version, version.splits[-1], sides)
    reference = reference_of(version.manifest)
    if rows is None or not reference:
        say(f"step 0: {version.name} stores no reference log-probs, so there is nothing to compare the policy with")
        return
    policy = run.config["policy"]
    found = agreement.measure(
        model,
        rows,
        sides,
        same_model=policy["digest"] == reference.get("digest"),
        dtype=run.config["dtype"],
        context=loop.autocast_smart_context_manager(),
    )
    say(found.sentence(policy, reference))


def _tokenizer(renderer: "Renderer") -> Any:
    """The tokenizer with the template that the rows were made with, so that the saved model is used as it was trained."""
    tokenizer = renderer.tokenizer
    source = renderer.template.source
    tokenizer.chat_template = None if renderer.plain else source
    return tokenizer


def _make_savable(model: Any) -> None:
    """Sampling defaults that transformers reads with a warning and refuses to write, as some hub models have them.

    A temperature without do_sample means that sampling was intended; what is wrong beyond that is left out.
    """
    from transformers import GenerationConfig

    settings = getattr(model, "generation_config", None)
    if settings is None or _writable(settings):
        return
    settings.do_sample = True
    if not _writable(settings):
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]


def _writable(settings: Any) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True


def _save(loop: "Loop", renderer: "Renderer", run: "Run") -> None:
    """The trained model in the run folder, as transformers loads it."""
    model: Any = loop.accelerator.unwrap_model(loop.model)
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = list(renderer.end_ids)
    loop.save_model(str(run.folder))


def _result(loop: "Loop", run: "Run", *, finished: bool) -> RunResult:
    history: list[dict[str, float]] = loop.state.log_history
    held_out = [_held_out(entry) for entry in history if "eval_loss" in entry]
    train = [entry for entry in history if "loss" in entry]
    return RunResult(
        folder=run.folder,
        finished=finished,
        steps=loop.state.global_step,
        continued=run.continues,
        train=train[-1] if train else {},
        before=held_out[0] if held_out else {},
        after=held_out[-1] if held_out else {},
    )


def _held_out(entry: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
