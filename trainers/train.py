"""A run from its options to its checkpoint: contract, rows, model, loop. The command line is in run.py.

Importing this is cheap; torch and transformers come in where a function needs them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import UserError
from trainers.options import Options
from trainers.processes import Processes, Say, joined

if TYPE_CHECKING:
    from trainers.data import Rows
    from trainers.groups import Groups
    from trainers.loop import Loop
    from trainers.plan import Plan
    from trainers.progress import EarlyStop
    from trainers.runs import Run


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


def train(options: Options, *, say: Say = print) -> RunResult:
    """Run the options to their end: contract, rows, model, loop, final checkpoint. UserError if they can't be run.

    Under torchrun every process calls this; the first decides and speaks, and all return the same.
    """
    with joined() as processes:
        return _run(options, processes, say if processes.first else _nothing)


def _nothing(text: str) -> None:
    """What the other processes say."""


def _run(options: Options, processes: Processes, say: Say) -> RunResult:
    from trainers import plan as planning
    from trainers import runs

    # `latest` and tags may come to name something else between two looks
    urls = processes.decided(lambda: planning.versions(options))
    plan = processes.agreed(lambda: planning.make(options, urls, processes, say))
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


def _claim(plan: "Plan", processes: Processes, say: Say) -> "Run":
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
        f"{said}: {plan.loss.name} on {plan.sources.name}, starting from {policy['name']}@{policy['digest'][:12]}"
        + (f", in {processes.size} processes" if processes.size > 1 else "")
    )
    return held[0] if held else runs.Run(folder, plan.config, continues, None)


def _train(plan: "Plan", run: "Run", processes: Processes, say: Say) -> RunResult:
    from trainers import agreement, checkpoints, policy, schedule

    try:
        train_rows, test_rows = processes.agreed(lambda: _rows(plan, run, say))
        steps = processes.agreed(lambda: schedule.length(plan.config, len(train_rows), processes))
        model = processes.agreed(lambda: policy.load(plan, say))
    except UserError:
        run.discard_if_new()
        raise
    checkpoint = processes.decided(lambda: checkpoints.last(run.folder))
    if run.continues:
        say(f"from {checkpoint.name}" if checkpoint else "it had no checkpoint yet, so from the start")
    loop = _loop(plan, run, model, train_rows, test_rows, steps, processes, say)
    if checkpoint is None:
        processes.decided(lambda: agreement.step_zero(plan, model, loop, say))
    if _go(loop, run, checkpoint, say):
        say(f"stopped at step {loop.state.global_step} of {loop.state.max_steps}; the same command goes on from there")
        return _result(loop, run, finished=False)
    best = _keep_best(loop, run, say)
    loop.refuse_ruined_weights()
    result = _result(loop, run, finished=True, best=best)

    def end() -> None:
        policy.save(loop, plan, run)
        facts = {"steps": result.steps, "train": result.train, "before": result.before, "after": result.after}
        run.write("finished", **facts, best_step=result.best_step)
        checkpoints.clear(run.folder)

    processes.decided(end)
    _warn(loop, result, say)
    return result


def _warn(loop: "Loop", result: RunResult, say: Say) -> None:
    """What the report of the run will warn of."""
    from transformers.integrations.integration_utils import rewrite_logs

    from prefdata.report import training

    curves: dict[str, dict[int, float]] = {}
    for entry in loop.state.log_history:
        for name, value in rewrite_logs(entry).items():  # type: ignore[no-untyped-call]
            curves.setdefault(name, {})[int(entry["step"])] = value
    about = {"status": "finished", "before": result.before, "after": result.after}
    for alarm in training.check(about, curves, {}).serious:
        say(f"{alarm.level}: {alarm.title.lower()}: {alarm.found}. {alarm.advice}")


# -- rows -----------------------------------------------------------------------------------------------------------


def _rows(plan: "Plan", run: "Run", say: Say) -> tuple["Rows | Groups", "Rows | Groups | None"]:
    """The rows to train on and those held out, every one checked and no longer than the model allows."""
    from trainers import contract

    found = {split: _split(plan, run, split, say) for split in ("train", "test")}
    train_rows = found["train"]
    if train_rows is None or not len(train_rows):
        raise UserError(f"data version {plan.sources.name}: no train rows are left to train on.")
    for value in train_rows.reading.values.values():
        if value.column in {objective.batch.both for objective in plan.loss.objectives}:
            contract.check_classes(train_rows.column(value.column), plan.loss, plan.sources.name)
    return train_rows, found["test"]


def _split(plan: "Plan", run: "Run", split: str, say: Say) -> "Rows | Groups | None":
    from prefdata import models
    from trainers import contract, sources
    from trainers.data import Rows
    from trainers.groups import Groups

    model = models.load_config(plan.model, trust_remote_code=plan.options.trust_remote_code)
    room, known = models.config_positions(model), getattr(model.get_text_config(), "vocab_size", None)
    parts, overlap = sources.rows(plan.sources, split, plan.loss, run.folder)
    for version, rows in parts.items():
        contract.check_lengths(version, rows.longest, room, plan.model)
        contract.check_ids(version, rows.largest_id, known, plan.model)
    for sentence in overlap.sentences(split):
        say(sentence)
    if not parts:
        return None
    whole = Rows.joined(list(parts.values()))
    if not whole.reading.grouped:
        return whole
    groups = Groups(whole)
    if groups.left_out:
        say(
            f"{groups.left_out:,} prompts of {split} have no two completions with different scores, so they rank nothing"
        )
    return groups


# -- the loop ------------------------------------------------------------------------------------------------------


def _loop(
    plan: "Plan",
    run: "Run",
    model: Any,
    train_rows: "Rows | Groups",
    test_rows: "Rows | Groups | None",
    steps: int,
    processes: Processes,
    say: Say,
) -> "Loop":
    from trainers import policy, schedule
    from trainers.loop import Loop
    from trainers.task import Task

    config = plan.config
    held_out = f"{len(test_rows):,}" if test_rows else "none"
    say(
        f"{len(train_rows):,} train rows, {held_out} held out; {steps:,} steps of {schedule.rows_per_step(config, processes)} rows,"
        f" lr {config['lr']:g}, {config['dtype']}"
    )
    return Loop(
        model,
        schedule.arguments(run, steps, processes),
        task=Task(plan.loss, plan.sources.kind),
        train_rows=train_rows,
        test_rows=test_rows,
        cadence=schedule.cadence(config, steps, held_out=test_rows is not None),
        accumulate=config["accumulate"],
        batch_tokens=config["batch_tokens"],
        bfloat16=config["dtype"] == "bfloat16",
        tokenizer=policy.tokenizer(plan.renderer),
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
                f"the device has no memory for {_forward(loop)} at once. Give a smaller --batch-tokens, or"
                " --gradient-checkpointing: a step stays the same."
            ) from problem
    return interrupt.asked and loop.state.global_step < loop.args.max_steps


def _forward(loop: "Loop") -> str:
    """How much of a step is computed at a time."""
    by_rows = f"{loop.args.per_device_train_batch_size} rows"
    return by_rows if loop.batch_tokens is None else f"rows of {loop.batch_tokens:,} tokens together"


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
    purged = begun + 1 if checkpoint else 0  # the points of steps that are taken again
    with Progress(say) as progress, SummaryWriter(str(run.folder / "tensorboard"), purge_step=purged) as writer:
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
