"""One loop for every objective: transformers' Trainer around the shared forward and a pure loss.

The loss of a step is the sum of its rows' losses over the step's rows (or scored tokens), counted over all
micro-batches and processes before the first forward, so accumulation changes nothing.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerState, TrainingArguments
from typing_extensions import override

from prefdata import logprobs
from prefdata.errors import UserError
from prefdata.logprobs import Tree
from trainers import checkpoints, drift, lora
from trainers.data import RowBatch, Rows, collate
from trainers.groups import Groups
from trainers.metrics import Tally, measure
from trainers.pools import Pools
from trainers.precision import autocast, widest
from trainers.probe import PAIRS, Probe
from trainers.processes import Processes
from trainers.progress import Cadence
from trainers.runs import saving
from trainers.steps import EpochOrder, Loader, MicroBatches, Step
from trainers.task import Measured, Part, Pooling, Task, alone, count_items, mean_tokens, summed_tokens
from trainers.usage import GIB, Usage


class NotFinite(UserError):
    """The loss or its gradient became NaN or infinite; nothing was updated with it."""


@dataclass(frozen=True)
class Outcome:
    """One micro-batch's losses and metrics."""

    parts: Sequence[Part]
    tally: Tally  # the loss among them

    @property
    def losses(self) -> Tensor:
        """(B,) with gradient: of each row, the weighted sum of its terms."""
        return torch.stack([part.term.weight * part.losses for part in self.parts]).sum(0)

    def share(self, items: Sequence[Any]) -> Tensor:
        """Of a loss that counts so many items for each term."""
        return torch.stack(
            [part.term.weight * part.losses.sum() / count for part, count in zip(self.parts, items, strict=True)]
        ).sum()


def step(model: Any, rows: RowBatch, task: Task, *, extras: bool = True, pooling: Pooling = alone) -> Outcome:
    """Forward, losses and metrics of a micro-batch. `extras`: entropy and accuracy of tokens too, which cost a softmax."""
    if task.loss.head == "score":
        measured, scores = Measured(logprobs.rewards(model, rows.trees).to(widest(rows.tokens.device))), None
    else:
        scores = logprobs.forward(model, rows.trees, extras=extras, collisions=task.loss.weighted)
        measured = Measured.of(rows, scores.logps, scores.collisions)
    parts = task.parts(rows, measured, pooling)
    tally = Tally()
    for part in parts:
        tally.fill(measure(part.batch, part.term.objective, part.term.knobs))  # of two terms' rewards, the first one's
        name = "loss" if len(parts) == 1 else f"loss/{part.term.objective.name}"
        tally.add(name, float(part.losses.detach().sum()), part.items)
        if part.weights is not None:
            tally.add(name.replace("loss", "weight"), float(part.weights.sum()), len(rows))
    if scores is not None:
        _add_extras(tally, scores, rows)
        _add_least_likely(tally, scores, rows)
    return Outcome(parts, tally)


def _add_extras(tally: Tally, scores: logprobs.Scores, rows: RowBatch) -> None:
    for name, values in (("entropy", scores.entropies), ("mean_token_accuracy", scores.hits)):
        if values is not None:
            scored = _scored(values, rows.scored)
            tally.add(name, float(scored.sum(dtype=widest(scored.device))), scored.numel())
    if scores.levels is not None and {"chosen", "rejected"} <= set(rows.names):
        for name in ("chosen", "rejected"):
            sides = slice(rows.names.index(name), None, len(rows.names))
            scored = _scored(scores.levels[sides], rows.scored[sides])
            tally.add(f"logits/{name}", float(scored.sum(dtype=widest(scored.device))), scored.numel())


def _add_least_likely(tally: Tally, scores: logprobs.Scores, rows: RowBatch) -> None:
    """The least likely scored token of any rejected side: where one is driven to nothing, it is seen here first."""
    if "rejected" not in rows.names:
        return
    place = rows.names.index("rejected")
    sides = slice(place, None, len(rows.names))
    tally.extreme("logps/rejected_token_min", float(_scored(scores.logps[sides], rows.scored[sides]).detach().min()))


def idle(model: Any, task: Task) -> Tensor:
    """A 0 that depends on the model: what a process without rows in a micro-batch adds to the gradients of the others."""
    trees = [Tree([0], [[0]])]
    score = task.loss.head == "score"
    found = logprobs.rewards(model, trees) if score else logprobs.forward(model, trees).logps[0]
    return found.sum() * 0


def _scored(values: Sequence[Tensor], scored: Tensor) -> Tensor:
    """Those of scored tokens, one after another."""
    padded = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    return padded[scored[:, : padded.shape[1]]]


class Loop(Trainer):
    """transformers' Trainer with this project's batches, loss and evaluation."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        task: Task,
        train_rows: Rows | Groups,
        test_rows: Rows | Groups | None,
        cadence: Cadence,
        accumulate: int = 1,
        batch_tokens: int | None = None,
        bfloat16: bool = False,
        tokenizer: Any = None,
        processes: Processes | None = None,
    ) -> None:
        """`args.train_batch_size` x `accumulate` rows make this process's share of a step."""
        args._n_gpu = min(args.n_gpu, 1)  # several devices are several processes here, never DataParallel
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            data_collator=collate,  # type: ignore[arg-type]  # a batch of trees is no dictionary
        )
        self.task = task
        self.cadence = cadence
        self.accumulate = accumulate
        self.batch_tokens = batch_tokens
        self.bfloat16 = bfloat16
        self.tokenizer = tokenizer
        self.processes = processes or Processes()
        self.pools = Pools(self.processes)
        self.add_callback(self.pools)
        self.usage = Usage()
        self.add_callback(self.usage)
        self.probe = Probe.of(test_rows) if test_rows and task.loss.head == "logits" else None
        self.start: drift.Start | None = None
        self._tally = Tally()
        self._window: tuple[RowBatch, ...] = ()
        self._step_tokens: Tensor | None = None
        self._not_finite: list[str] = []  # rows of this step, in this process
        self._written_to: Path | None = None  # while a checkpoint is staged

    # -- batches ---------------------------------------------------------------------------------------------------

    @override
    def get_train_dataloader(self) -> Loader:
        """This process's share of the rows; Trainer's own would read rows twice to give all processes equally many."""
        rows, args, processes = self.train_dataset, self.args, self.processes
        assert isinstance(rows, Rows | Groups)
        rows_per_step = args.train_batch_size * self.accumulate * processes.size
        order = EpochOrder(rows.lengths, args.data_seed if args.data_seed is not None else args.seed, rows_per_step)
        share = MicroBatches(
            order, args.train_batch_size, batch_tokens=self.batch_tokens, rank=processes.rank, size=processes.size
        )
        return Loader(rows, share)

    @override
    def _get_num_items_in_batch(self, batch_samples: list[Step], device: torch.device) -> Tensor | None:
        """(terms,) rows or scored tokens of the whole step, over all micro-batches and processes. Counts all tokens too."""
        if not batch_samples:
            return None
        (own,) = batch_samples
        self._window = own.batches
        tokens = sum(batch.all_tokens for batch in own.batches)
        counts = self._over_processes(torch.tensor([*count_items(self.task, own.batches), tokens], device=device))
        self.state.num_input_tokens_seen += int(counts[-1])
        if self.task.loss.per_step:
            sides = len(self.task.loss.reading(self.task.kind).sides)
            self._step_tokens = mean_tokens(self._over_processes(summed_tokens(own.batches, sides).to(device)))
        return counts[:-1]

    def _over_processes(self, counts: Tensor) -> Tensor:
        return self.accelerator.reduce(counts, reduction="sum") if self.processes.size > 1 else counts

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """Forward and backward of every token of the trees."""
        model: Any = self.model
        tokens = sum(batch.all_tokens for batch in inputs.batches)
        count: int = 6 * tokens * model.num_parameters(exclude_embeddings=True)
        return count

    # -- loss ------------------------------------------------------------------------------------------------------

    @override
    def training_step(  # type: ignore[override]
        self, model: Any, inputs: Step, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of all micro-batches of a step; its loss. Gradients are exchanged with the last one."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, rows in enumerate(inputs.batches, start=1):
            last = number == len(inputs.batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, rows.to(self.args.device), num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    @override
    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: RowBatch, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """This micro-batch's share of the step's loss."""
        if not len(inputs):
            self.task.wait(self.pools, self.args.device)
            return idle(model, self.task)
        shown = self.cadence.logs(self.state.global_step + 1, self.state.max_steps)
        inputs = replace(inputs, step_tokens=self._step_tokens)
        outcome = step(model, inputs, self.task, extras=shown, pooling=self.pools)
        self._note_not_finite(outcome.losses, inputs)
        self._tally.update(outcome.tally)
        items = count_items(self.task, [inputs]) if num_items_in_batch is None else num_items_in_batch
        # gradients are averaged over processes, and this is a share of a sum
        return outcome.share(items).float() * self.processes.size  # type: ignore[arg-type]

    @override
    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 where it is asked for: matrix products only, weights and sums stay in float32."""
        return autocast(self.args.device, self.bfloat16)

    def _note_not_finite(self, losses: Tensor, rows: RowBatch) -> None:
        bad = ~torch.isfinite(losses.detach())
        if bool(bad.any()):
            self._not_finite += [row_id for row_id, is_bad in zip(rows.row_ids, bad.tolist(), strict=True) if is_bad]

    @override
    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The last look at a step before its update: all processes are here, with the gradient of all of them."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        finite = bool(torch.isfinite(torch.as_tensor(norm)))
        if self.processes.any(not finite or bool(self._not_finite)):
            self._refuse_step()
        return norm

    def _refuse_step(self) -> None:
        named = self.processes.gather(self._not_finite)
        what = "the loss" if any(named) else "the gradient"
        if not any(named):
            named = self.processes.gather([row_id for batch in self._window for row_id in batch.row_ids])
        self._refuse(self._stopped(what, [row_id for names in named for row_id in names]))

    def refuse_ruined_weights(self) -> None:
        """The loss and gradient of a step are judged before its update, and after the last update there may be neither."""
        model: Any = self.model
        for name, weight in model.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                self._refuse(
                    f"{name} is not finite after step {self.state.global_step}, so the model is of no use; what was saved"
                    f" before in {self.args.output_dir} stays. A smaller --lr is the usual cure."
                )

    def _refuse(self, sentence: str) -> None:
        """All processes come to the same sentence, and one says it."""

        def refuse() -> None:
            raise NotFinite(sentence)

        self.processes.agreed(refuse)

    def _stopped(self, what: str, row_ids: Sequence[str]) -> str:
        shown = ", ".join(row_ids[:5]) + (f" and {len(row_ids) - 5} more" if len(row_ids) > 5 else "")
        return (
            f"{what} is not finite at step {self.state.global_step + 1}, from row {shown}. Nothing was updated with it, and"
            f" the last checkpoint in {self.args.output_dir} stays. Look at the row; a smaller --lr is the usual cure."
        )

    # -- metrics and checkpoints -----------------------------------------------------------------------------------

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last line to a training line."""
        if "loss" in logs:
            logs = {
                **logs,
                **self.task.total(Tally.joined(self.processes.gather(self._tally)).means()),
                **self._spent(),
            }
            self._tally = Tally()
        super().log(logs, start_time)

    def _spent(self) -> dict[str, float]:
        """Of the steps since the last line; the longest and largest of all processes."""
        spent = self.processes.gather(self.usage.since())
        seconds, peak = (max(each) for each in zip(*spent, strict=True))
        tokens = self.state.num_input_tokens_seen  # of prompts once for all of their answers, over the whole run
        return {"seconds_per_step": seconds, "peak_memory_gib": peak / GIB, "num_tokens": tokens}

    @override
    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics of the held-out rows, with the same code as a training step."""
        rows: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        tally = evaluate(
            self.model,
            rows,
            self.task,
            self.args.eval_batch_size,
            self.autocast_smart_context_manager(),
            self.pools,
        )
        means = self.task.total(tally.means())
        if math.isfinite(means["loss"]):
            means |= self._probed()
        metrics = {f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}
        self.log(dict(metrics))
        if not math.isfinite(means["loss"]):
            self._refuse(
                f"the held-out loss is {means['loss']} after step {self.state.global_step}, so the model is of no use; the"
                f" last checkpoint in {self.args.output_dir} stays. A smaller --lr is the usual cure."
            )
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _probed(self) -> dict[str, float]:
        """What the probe finds: in every process the same, so that none waits for another, but at step 0 for what is written."""
        if self.probe is None:
            return {}
        model: Any = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        try:
            with self.autocast_smart_context_manager():
                found = self.probe.measure(model, pairs=min(PAIRS, self.args.eval_batch_size))
                return found | self._drift(model, self.probe)
        finally:
            model.train(training)

    def _drift(self, model: Any, probe: Probe) -> dict[str, float]:
        """From the answers of the start: drawn before the first step, read by a run that goes on."""
        folder = Path(str(self.args.output_dir))
        if self.state.global_step == 0:
            start = self.start = drift.Start.of(model, probe.rows[: drift.ANSWERS])
            self.processes.decided(lambda: start.write(folder))
            return start.measure(model, now=[each.ids for each in start.answers])
        self.start = self.start or drift.Start.read(folder)
        return self.start.measure(model) if self.start else {}

    def restore(self, checkpoint: Path) -> None:
        """Weights and history of a checkpoint, without training on."""
        self.load_weights(checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))

    @override
    def _load_callback_state(self) -> None:
        """What the checkpoint that is gone on from remembers of pooled means; nothing else here has such a state."""
        self.pools.take(self.state.stateful_callbacks)  # type: ignore[arg-type]  # a dict since it was read

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint))

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written beside and renamed by the first process when all have written their part."""
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        self.refuse_ruined_weights()

        def write() -> None:
            with saving(folder):
                super(Loop, self)._save_checkpoint(model, trial)

        def publish() -> None:
            checkpoints.publish(folder, step)
            checkpoints.prune(folder, {self.state.best_global_step or step})

        self._written_to = self.processes.decided(lambda: checkpoints.stage(folder))
        try:
            self.processes.agreed(write)
        finally:
            self._written_to = None
        self.processes.decided(publish)

    @override
    def _get_output_dir(self, trial: Any) -> str:
        return str(self._written_to or self.args.output_dir)

    @override
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The model, or its adapter, and the tokenizer; Trainer's own adds a pickle of the arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        model: Any = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            lora.save(model, folder, state_dict)
        else:
            model.save_pretrained(folder, state_dict=state_dict)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def evaluate(
    model: Any,
    rows: Rows | Groups,
    task: Task,
    batch_size: int,
    context: contextlib.AbstractContextManager[Any],
    pools: Pools | None = None,
) -> Tally:
    """Sums over all rows, each scored by one of the processes, longest first: if memory runs out, it does so at the start."""
    pools = pools or Pools()
    those, device = pools.processes, next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda place: (-int(rows.lengths[place]), place))
    width = batch_size * those.size
    step_tokens = all_tokens(rows) if task.loss.per_step else None
    tally = Tally()
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), context:
            for start in range(0, len(order), width):
                own = order[start : start + width][those.rank :: those.size]
                if own:
                    batch = replace(collate([rows[place] for place in own]), step_tokens=step_tokens)
                    tally.update(step(model, batch.to(device), task, pooling=pools).tally)
                else:
                    task.wait(pools, device)
    finally:
        model.train(training)
    return Tally.joined(those.gather(tally))


def all_tokens(rows: Rows | Groups) -> Tensor:
    """(sides,) mean scored tokens over all rows: a held-out split counts as one step."""
    columns = (rows.column(f"{side}_tokens").to_numpy() for side in rows.reading.sides)
    return torch.tensor([float(tokens.mean()) for tokens in columns], dtype=torch.float64)


def set_dropout(model: Any, probability: float) -> None:
    """Every dropout of the model, wherever it is kept."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = probability
