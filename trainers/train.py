"""A run from its options to its checkpoint: contract, rows, model, loop. The command line is in run.py.

Importing this is cheap; torch and transformers come in where a function needs them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import UserError
from trainers import options as asked
from trainers.options import Options
from trainers.processes import Processes, joined

if TYPE_CHECKING:
    from prefdata.tokens import Renderer
    from prefdata.versions import Version
    from trainers.agreement import Agreement
    from trainers.data import Rows
    from trainers.loop import Loop
    from trainers.objectives import Objective
    from trainers.progress import Cadence, EarlyStop
    from trainers.runs import Run
    from trainers.sources import Sources

SCHEDULE = "linear"  # after the warm-up, down to 0 at the last step
# options that stand in a run's configuration in a decided form, or not at all
_DECIDED = (
    *("data", "loss", "set", "model", "chat_template", "root", "out", "fresh", "epochs", "lr", "dtype"),
    *("lora_rank", "lora_alpha", "lora_targets"),
)


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
    best_step: int | None = None  # the step whose weights were kept; None: the last one


Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run is, decided from its options before anything is written."""

    options: Options
    sources: "Sources"
    objective: "Objective"
    model: str
    renderer: "Renderer"
    config: Mapping[str, Any]


def train(options: Options, *, say: Say = print) -> RunResult:
    """Run the options to their end: contract, rows, model, loop, final checkpoint. UserError if they can't be run.

    Under torchrun every process calls this; the first decides and speaks, and all return the same.
    """
    with joined() as processes:
        return _run(options, processes, say if processes.first else _nothing)


def _nothing(text: str) -> None:
    """What the other processes say."""


def _run(options: Options, processes: Processes, say: Say) -> RunResult:
    from trainers import runs

    # `latest` and tags may come to name something else between two looks
    versions = processes.decided(lambda: _versions(options))
    plan = processes.agreed(lambda: _plan(options, versions, processes, say))
    out = Path(options.out) if options.out and not options.fresh else None
    done = processes.decided(lambda: runs.finished(out, plan.config) if out else None)
    if done:
        say(f"{out} holds this very run, finished; nothing was trained")
        facts: dict[str, Any] = {name: done.get(name) for name in ("steps", "train", "before", "after", "best_step")}
        return RunResult(Path(str(out)), True, continued=True, **facts)
    run = _claim(plan, processes, say)
    try:
        return _train(plan, run, processes, say)
    finally:
        run.release()


def _claim(plan: Plan, processes: Processes, say: Say) -> "Run":
    """The run folder, held by the first process and followed by the others."""
    from trainers import runs

    held: list[Run] = []

    def claim() -> tuple[Path, bool, str]:
        run, said = runs.claim(plan.config, out=plan.options.out, fresh=plan.options.fresh)
        held.append(run)
        return run.folder, run.continues, said

    folder, continues, said = processes.decided(claim)
    policy = plan.config["policy"]
    say(
        f"{said}: {plan.objective.name} on {plan.sources.name}, starting from {policy['name']}@{policy['digest'][:12]}"
        + (f", in {processes.size} processes" if processes.size > 1 else "")
    )
    return held[0] if held else runs.Run(folder, plan.config, continues, None)


def _train(plan: Plan, run: "Run", processes: Processes, say: Say) -> RunResult:
    from trainers import checkpoints

    try:
        train_rows, test_rows = processes.agreed(lambda: _rows(plan, run, say))
        model = processes.agreed(lambda: _model(plan, say))
    except UserError:
        run.discard_if_new()
        raise
    checkpoint = processes.decided(lambda: checkpoints.last(run.folder))
    if run.continues:
        say(f"from {checkpoint.name}" if checkpoint else "it had no checkpoint yet, so from the start")
    loop = _loop(plan, run, model, train_rows, test_rows, processes, say)
    if checkpoint is None:
        processes.decided(lambda: _step_zero(plan, model, loop, say))
    if _go(loop, run, checkpoint, say):
        say(f"stopped at step {loop.state.global_step} of {loop.state.max_steps}; the same command goes on from there")
        return _result(loop, run, finished=False)
    best = _keep_best(loop, run, say)
    loop.refuse_ruined_weights()
    result = _result(loop, run, finished=True, best=best)

    def end() -> None:
        _save(loop, plan, run)
        facts = {"steps": result.steps, "train": result.train, "before": result.before, "after": result.after}
        run.write("finished", **facts, best_step=result.best_step)
        checkpoints.clear(run.folder)

    processes.decided(end)
    return result


# -- what is asked -------------------------------------------------------------------------------------------------


def _versions(options: Options) -> tuple[str, ...]:
    """What the options name, by URL."""
    from trainers import sources
    from trainers.objectives import find

    asked.check(options)
    return sources.find(options.data, find(options.loss), options.root).urls


def _plan(options: Options, versions: Sequence[str], processes: Processes, say: Say) -> Plan:
    from prefdata import models
    from trainers import sources
    from trainers.objectives import find
    from trainers.objectives.knobs import resolve

    objective = find(options.loss)
    knobs = resolve(objective.name, objective.knobs, options.set)
    data = sources.opened(versions)
    sources.check(data, objective)
    if options.early_stop and not data.holding("test"):
        raise UserError(f"--early-stop watches the held-out loss, and data version {data.name} holds out no rows.")
    model = _model_name(data, options.model)
    description = _describe(models, data, model, objective, asked=options.model is not None, say=say)
    renderer = _renderer(data, model, options)
    config = _config(options, data, objective, knobs, description, renderer, processes)
    return Plan(options, data, objective, model, renderer, config)


def _model_name(sources: "Sources", given: str | None) -> str:
    """The model asked for, else the one whose log-probs the versions store, that wrote their answers, or that they were tokenised for."""
    if given is not None:
        return given
    for role in ("reference", "generator", "tokenizer"):
        for version in sources.versions:
            entry: Mapping[str, Any] = version.manifest.get(role) or {}  # type: ignore[assignment]
            if entry.get("name"):
                return str(entry["name"])
    raise UserError(f"data version {sources.name} names no model: say which to train with --model.")


def _describe(
    models: Any, sources: "Sources", model: str, objective: "Objective", *, asked: bool, say: Say
) -> dict[str, Any]:
    try:
        found: dict[str, Any] = models.describe(model)
    except UserError as problem:
        if asked:
            raise
        raise UserError(
            f"data version {sources.name} was made with a model that is not there now: {problem}\nSay which to train with --model."
        ) from problem
    if not asked:
        for version in sources.versions:
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


def _renderer(sources: "Sources", model: str, options: Options) -> "Renderer":
    """The model's tokenizer and template, checked against those of the versions' tokens."""
    from prefdata.tokens import Renderer, differences
    from trainers import contract

    stored = sources.versions[0].manifest["tokenizer"]
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
    for version in sources.versions:
        contract.check_tokenizer(version, differences(version.manifest["tokenizer"], renderer.fingerprint), model)
    return renderer


def _config(
    options: Options,
    sources: "Sources",
    objective: "Objective",
    knobs: Mapping[str, Any],
    description: Mapping[str, Any],
    renderer: "Renderer",
    processes: Processes,
) -> dict[str, Any]:
    """What makes two runs the same run; everything undecided is decided here."""
    from trainers import lora

    plain = {name: value for name, value in asdict(options).items() if name not in _DECIDED}
    adapter = lora.settings(options.lora_rank, options.lora_alpha, options.lora_targets) if options.lora_rank else None
    return {
        **plain,
        "data": sources.describe(),
        "loss": objective.name,
        "knobs": dict(knobs),
        "policy": {"name": description["name"], "digest": description["digest"], "commit": description.get("commit")},
        "chat_template": renderer.fingerprint["template_digest"],  # a file's name would not say that it was edited
        "epochs": None if options.steps else options.epochs or 1.0,
        "lr": options.lr or objective.lr * (lora.LR if adapter else 1),
        "lora": adapter,
        "dtype": options.dtype or _default_dtype(),
        "schedule": SCHEDULE,
        "processes": processes.size,
    }


def _default_dtype() -> str:
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


# -- rows and model ------------------------------------------------------------------------------------------------


def _rows(plan: Plan, run: "Run", say: Say) -> tuple["Rows", "Rows | None"]:
    """The rows to train on and those held out, every one checked and no longer than the model allows."""
    from prefdata import models
    from trainers import contract, sources
    from trainers.data import Rows

    room = models.max_positions(plan.model, trust_remote_code=plan.options.trust_remote_code)
    found: dict[str, Rows | None] = {}
    for split in ("train", "test"):
        parts, left = sources.rows(plan.sources, split, plan.objective, run.folder)
        for version, rows in parts.items():
            contract.check_lengths(version, rows.longest, room, plan.model)
        for sentence in left.sentences(split):
            say(sentence)
        found[split] = Rows.joined(list(parts.values())) if parts else None
    if found["train"] is None:
        raise UserError(f"data version {plan.sources.name}: no train rows are left to train on.")
    return found["train"], found["test"]


def _model(plan: Plan, say: Say) -> Any:
    """The policy, with its adapter if it is to have one."""
    from prefdata import models
    from trainers import lora
    from trainers.loop import set_dropout

    config, options = plan.config, plan.options
    model: Any = models.load_model(plan.model, dtype="float32", trust_remote_code=options.trust_remote_code)
    if options.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"--gradient-checkpointing: {plan.model} ({type(model).__name__}) does not offer it.")
    _make_savable(model)
    if config["lora"]:
        model = lora.attach(model, config["lora"], policy=config["policy"], seed=options.seed)
        trained, every = model.get_nb_trainable_parameters()
        say(
            f"LoRA of rank {config['lora']['rank']}, alpha {config['lora']['alpha']:g}: {trained:,} weights are trained,"
            f" {every - trained:,} stay as they are"
        )
    if options.dropout:
        set_dropout(model, options.dropout)
    return model


# -- the loop ------------------------------------------------------------------------------------------------------


def _loop(
    plan: Plan,
    run: "Run",
    model: Any,
    train_rows: "Rows",
    test_rows: "Rows | None",
    processes: Processes,
    say: Say,
) -> "Loop":
    from trainers.loop import Loop, Task

    config = plan.config
    rows_per_step = config["batch_size"] * config["accumulate"] * processes.size
    steps = config["steps"] or math.ceil(config["epochs"] * math.ceil(len(train_rows) / rows_per_step))
    held_out = f"{len(test_rows):,}" if test_rows else "none"
    say(
        f"{len(train_rows):,} train rows, {held_out} held out; {steps:,} steps of {rows_per_step} rows,"
        f" lr {config['lr']:g}, {config['dtype']}"
    )
    return Loop(
        model,
        _arguments(run, steps, processes),
        task=Task(plan.objective, config["knobs"], plan.sources.kind),
        train_rows=train_rows,
        test_rows=test_rows,
        cadence=_cadence(config, steps, held_out=test_rows is not None),
        bfloat16=config["dtype"] == "bfloat16",
        tokenizer=_tokenizer(plan.renderer),
        processes=processes,
    )


def _go(loop: "Loop", run: "Run", checkpoint: Path | None, say: Say) -> bool:
    """Train to the last step. True if it was stopped on request before."""
    import torch
    from transformers import PrinterCallback, TrainerState
    from transformers.utils import logging

    from trainers import checkpoints
    from trainers.progress import Interrupt

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of its own, for every file it writes
    early = _early_stop(run, say)
    if checkpoint and _over(TrainerState.load_from_json(str(checkpoint / checkpoints.STATE)), loop, early):
        loop.restore(checkpoint)  # it was killed between its last step and its end
        return False
    loop.remove_callback(PrinterCallback)
    loop.args.eval_on_start = checkpoint is None and loop.eval_dataset is not None
    stopping = Interrupt(say, loop.processes, evaluates=early is not None)
    with stopping as interrupt, _shown(loop, run, checkpoint, say):
        for callback in (loop.cadence, early, interrupt):
            if callback:
                loop.add_callback(callback)
        try:
            loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as problem:
            raise UserError(
                f"the device has no memory for {loop.args.per_device_train_batch_size} rows at once. Give a smaller"
                " --batch-size and as much larger --accumulate, or --gradient-checkpointing: a step stays the same."
            ) from problem
    return interrupt.asked and loop.state.global_step < loop.args.max_steps


def _over(state: Any, loop: "Loop", early: "EarlyStop | None") -> bool:
    """Whether a run in that state has no step left to take."""
    return state.global_step >= loop.args.max_steps or (early is not None and early.exhausted(state))


@contextmanager
def _shown(loop: "Loop", run: "Run", checkpoint: Path | None, say: Say) -> Iterator[None]:
    """Lines or a bar, and curves; from the first process alone."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    from trainers import checkpoints
    from trainers.progress import Progress

    if not loop.processes.first:
        yield
        return
    begun = checkpoints.step_of(checkpoint) if checkpoint else 0
    with Progress(say) as progress, SummaryWriter(str(run.folder / "tensorboard"), purge_step=begun) as writer:
        loop.add_callback(progress)
        loop.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
        yield


def _early_stop(run: "Run", say: Say) -> "EarlyStop | None":
    from trainers.progress import EarlyStop

    return EarlyStop(run.config["early_stop"], say) if run.config["early_stop"] else None


def _keep_best(loop: "Loop", run: "Run", say: Say) -> int | None:
    """With early stopping, the weights of the step whose held-out loss was the lowest."""
    from trainers import checkpoints

    best: int | None = loop.state.best_global_step
    if best is None:
        return None
    say(f"kept step {best}, whose held-out loss of {loop.state.best_metric:.4g} was the lowest")
    if best != loop.state.global_step:
        loop.load_weights(checkpoints.path(run.folder, best))
    return best


def _cadence(config: Mapping[str, Any], steps: int, *, held_out: bool) -> "Cadence":
    from trainers.progress import Cadence

    return Cadence(
        log_every=max(1, min(10, steps // 20)),
        eval_every=(config["eval_every"] or math.ceil(steps / _evaluations(config))) if held_out else None,
        save_every=config["save_every"] or min(math.ceil(steps / 5), 500),
    )


def _evaluations(config: Mapping[str, Any]) -> int:
    """How often a run is evaluated unless --eval-every is given: thrice, or enough for early stopping to do something."""
    return max(3, 5 * (config["early_stop"] or 0))


def _arguments(run: "Run", steps: int, processes: Processes) -> Any:
    import torch
    from transformers import TrainingArguments

    config = run.config
    warmup = config["warmup"] if config["warmup"] >= 1 else math.floor(config["warmup"] * steps)
    return TrainingArguments(
        output_dir=str(run.folder),
        max_steps=steps,
        per_device_train_batch_size=config["batch_size"],
        per_device_eval_batch_size=config["batch_size"],
        gradient_accumulation_steps=config["accumulate"],
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


def _step_zero(plan: Plan, model: Any, loop: "Loop", say: Say) -> None:
    """How policy and stored reference agree, for every version; said, and kept in the run folder for its report."""
    from trainers import agreement

    several = len(plan.sources.versions) > 1
    every: dict[str, Agreement | None] = {}
    for version in plan.sources.versions:
        found = every[version.name] = _agreement(plan, version, model, loop)
        if found is None:
            said = f"{version.name} stores no reference log-probs, so there is nothing to compare the policy with"
        else:
            sentence = found.sentence(plan.config["policy"], version.manifest["reference"] or {})
            said = f"{version.name}: {sentence}" if several else sentence
        say(f"step 0: {said}")
    agreement.keep(Path(str(loop.args.output_dir)), every)


def _agreement(plan: Plan, version: "Version", model: Any, loop: "Loop") -> "Agreement | None":
    from trainers import agreement

    sides = tuple(plan.objective.batch.sides[version.kind].values())
    rows = agreement.probe(version, version.splits[-1], sides)
    reference = version.manifest["reference"]
    if rows is None or not reference:
        return None
    return agreement.measure(
        model,
        rows,
        sides,
        same_model=plan.config["policy"]["digest"] == reference.get("digest"),
        dtype=plan.config["dtype"],
        context=loop.autocast_smart_context_manager(),
    )


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


def _save(loop: "Loop", plan: Plan, run: "Run") -> None:
    """The trained model in the run folder, as transformers loads it: whole, or as an adapter of the model it is for."""
    from trainers import lora
    from trainers.runs import saving

    model: Any = loop.accelerator.unwrap_model(loop.model)
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = list(plan.renderer.end_ids)
    with saving(run.folder):
        if plan.config["merge"]:
            lora.save(model, run.folder / lora.ADAPTER)
            loop.model = model.merge_and_unload()
        loop.save_model(str(run.folder))


def _result(loop: "Loop", run: "Run", *, finished: bool, best: int | None = None) -> RunResult:
    history: list[dict[str, float]] = loop.state.log_history
    held_out = [(entry["step"], _held_out(entry)) for entry in history if "eval_loss" in entry]
    train = [entry for entry in history if "loss" in entry]
    kept = [metrics for step, metrics in held_out if best in (None, step)]
    return RunResult(
        folder=run.folder,
        finished=finished,
        steps=loop.state.global_step,
        continued=run.continues,
        train=train[-1] if train else {},
        before=held_out[0][1] if held_out else {},
        after=kept[-1] if kept else {},
        best_step=best,
    )


def _held_out(entry: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
