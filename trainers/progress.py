"""What a person sees while a run goes on, and when it saves, evaluates and stops."""

import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Self

from tqdm import tqdm
from transformers import TrainerCallback
from typing_extensions import override

from trainers.processes import Processes

# of what is logged, what is worth a place on the line
SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "logps/accuracies", "mean_token_accuracy", "learning_rate")


class Cadence(TrainerCallback):
    """Evaluates, logs and saves every so many steps, and at the last one."""

    def __init__(self, *, log_every: int, eval_every: int | None, save_every: int) -> None:
        self.log_every = log_every
        self.eval_every = eval_every
        self.save_every = save_every

    def logs(self, step: int, steps: int) -> bool:
        """Whether a step's metrics are shown and recorded."""
        return step == 1 or step >= steps or step % self.log_every == 0

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide what this step ends with."""
        last = state.global_step >= state.max_steps
        control.should_log = self.logs(state.global_step, state.max_steps)
        control.should_evaluate = self.eval_every is not None and (last or state.global_step % self.eval_every == 0)
        control.should_save = last or state.global_step % self.save_every == 0
        control.should_training_stop = control.should_training_stop or last


class Interrupt(TrainerCallback):
    """Ctrl-C or a polite kill ends the step, saves a checkpoint and stops; a second one stops at once."""

    def __init__(
        self, say: Callable[[str], None], processes: Processes | None = None, *, evaluates: bool = False
    ) -> None:
        self.asked = False
        self._said = False
        self._say = say
        self._processes = processes or Processes()
        self._evaluates = evaluates  # an evaluation that is due is done first: the run's end depends on it
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: whoever runs it there stops it
                break
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop once any process is asked; comes after Cadence, so it has the last word."""
        self.asked = self._processes.any(self.asked)
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = control.should_evaluate and self._evaluates
            if not self._said:
                self._said = True
                self._say("\nstopping after this step, with a checkpoint; once more to stop at once")

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True  # said at the end of the step: a handler that prints can cut into another print


class EarlyStop(TrainerCallback):
    """Ends a run when its held-out loss has had no new best for so many evaluations in a row.

    What is known stands in the trainer state, so that a resumed run goes on counting, and the best step's checkpoint
    stays until the end.
    """

    def __init__(self, patience: int, say: Callable[[str], None]) -> None:
        self.patience = patience
        self._say = say

    @override
    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Keep a new best, or count; the evaluation before the first step is no candidate."""
        if state.global_step == 0:
            return
        loss = (metrics or {})["eval_loss"]
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, state.global_step
            control.should_save = True
        elif self.exhausted(state):
            control.should_save = control.should_training_stop = True
            if state.global_step < state.max_steps:
                self._say(
                    f"step {state.global_step}  no better held-out loss in {self.patience} evaluations: stopping early"
                )

    def exhausted(self, state: Any) -> bool:
        """Whether a run has had its evaluations without a better one."""
        best = state.best_global_step
        since = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] > (best or 0)]
        return best is not None and len(since) >= self.patience


class Progress(TrainerCallback):
    """A bar on a terminal, lines elsewhere."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._close()

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", dynamic_ncols=True
            )

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    @override
    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Show a training line; evaluations are shown by on_evaluate."""
        if logs is None or "loss" not in logs:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(line(logs))
        else:
            self._say(f"step {state.global_step}/{state.max_steps}  {line(logs)}")

    @override
    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Show a held-out line."""
        text = f"step {state.global_step}  held out: {line({name.removeprefix('eval_'): value for name, value in (metrics or {}).items()})}"
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            self._say(text)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def line(logs: Mapping[str, float]) -> str:
    """The chosen few, short."""
    return "  ".join(f"{name.removeprefix('rewards/')} {logs[name]:.4g}" for name in SHOWN if name in logs)
