"""Train a model on a version.

    python -m trainers.run --data v3 --loss orpo

Everything else has a default: the model that the version was made with, the learning rate of the loss, a run folder
runs/<version>-<loss>-<n>. The same command goes on with its unfinished run. `--list` says what each loss reads.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefdata.errors import UserError, faults_in_words
from trainers.options import Options
from trainers.processes import Elsewhere, speaks
from trainers.train import RunResult, train

if TYPE_CHECKING:
    from trainers.objectives import Objective

__all__ = ["Options", "RunResult", "main", "train"]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one; what no value means stands in the text of the option."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unsaid = action.default is None or action.default is False or action.default == []
        return action.help if unsaid else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The command line; importing nothing heavy, so that --help is quick."""
    line = argparse.ArgumentParser(
        prog="python -m trainers.run",
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=_Help,
    )
    _add_what(line.add_argument_group("what"))
    _add_how(line.add_argument_group("how"))
    _add_adapter(line.add_argument_group("LoRA"))
    _add_where(line.add_argument_group("where and when"))
    return line


def _add_what(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--data", metavar="VERSION", help="vN, a tag, latest, or a path or URL of a version; several of one kind: v3,v4"
    )
    what.add_argument("--loss", help="the objective; --list names them; a sum of several: dpo+sft")
    what.add_argument("--weights", metavar="W,W", help="of the terms of a sum; unset: all 1")
    what.add_argument(
        "--set", action="append", default=[], metavar="KNOB=VALUE", help="a knob of the loss; may be repeated"
    )
    what.add_argument("--model", help="folder or hub name to start from; unset: the model that the version names")
    what.add_argument(
        "--chat-template",
        metavar="FILE",
        help="template of the model: a Jinja file, plain, or version (the version's own); unset: the model's",
    )
    what.add_argument("--root", help="where versions are; unset: $PREFDATA_ROOT, else ./data")
    what.add_argument(
        "--list", action="store_true", help="print every loss with what it reads, its source and knobs, and stop"
    )


def _add_how(how: argparse._ArgumentGroup) -> None:
    how.add_argument("--epochs", type=float, help="passes over the train rows; unset: 1, or what --steps says")
    how.add_argument("--steps", type=int, help="optimiser steps, instead of --epochs")
    how.add_argument("--lr", type=float, help="peak learning rate; unset: the loss's own, with LoRA ten times that")
    how.add_argument(
        "--batch-size", type=int, default=Options.batch_size, help="rows per forward, in each process under torchrun"
    )
    how.add_argument(
        "--accumulate",
        type=int,
        default=Options.accumulate,
        help="forwards per step; a step has batch-size x accumulate x processes rows",
    )
    how.add_argument(
        "--batch-tokens",
        type=int,
        metavar="TOKENS",
        help="cut a step's rows into forwards of at most so many tokens, a row's prompt counted once, instead of batch-size"
        " rows: even memory whatever the lengths, and the same step; unset: by rows",
    )
    how.add_argument(
        "--warmup", type=float, default=Options.warmup, help="share of the steps, or from 1 on a number of steps"
    )
    how.add_argument(
        "--dropout", type=float, default=Options.dropout, help="probability; 0 keeps policy and reference comparable"
    )
    how.add_argument("--seed", type=int, default=Options.seed, help="orders the rows")
    how.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of matrix products; weights stay float32; unset: bfloat16 on a GPU that has it",
    )
    how.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute activations again in the backward pass instead of keeping them: less memory, more time, same result",
    )
    how.add_argument(
        "--early-stop",
        type=int,
        metavar="N",
        help="stop after N evaluations in a row without a lower held-out loss; the best step's weights are kept",
    )
    how.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


def _add_adapter(adapter: argparse._ArgumentGroup) -> None:
    adapter.add_argument(
        "--lora-rank",
        type=int,
        metavar="R",
        help="train an adapter of this rank, 8 to 64 is usual, and leave the model's weights alone; unset: train them all",
    )
    adapter.add_argument(
        "--lora-alpha", type=float, metavar="ALPHA", help="the adapter counts alpha / rank; unset: twice the rank"
    )
    adapter.add_argument(
        "--lora-targets",
        metavar="LAYERS",
        help="names of the layers that get one, such as q_proj,v_proj; unset: every linear layer but the head",
    )
    adapter.add_argument(
        "--merge",
        action="store_true",
        help="leave the whole model with the adapter merged in, as --model and the flows read it, and the adapter beside it",
    )


def _add_where(where: argparse._ArgumentGroup) -> None:
    where.add_argument("--out", metavar="FOLDER", help="run folder; unset: runs/<version>-<loss>-<n>")
    where.add_argument("--fresh", action="store_true", help="start another run even if an equal one is unfinished")
    where.add_argument(
        "--eval-every",
        type=int,
        metavar="STEPS",
        help="held-out evaluation; unset: three times a run, beside the one before it, and with --early-stop N 5 N times",
    )
    where.add_argument(
        "--save-every",
        type=int,
        metavar="STEPS",
        help="checkpoints; unset: five times a run, and every 500 steps at least",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line's exit code: 0 done, 2 refused, 130 stopped on request."""
    line = parser()
    given = line.parse_args(arguments)
    if given.list:
        print(listing())
        return 0
    if not given.data or not given.loss:
        line.error("--data and --loss are needed (or --list)")
    values = {name: value for name, value in vars(given).items() if name != "list"}
    _quiet()
    try:
        with faults_in_words():
            result = train(Options(**{**values, "set": tuple(given.set)}))
    except Elsewhere:
        return 0  # the process that says why ends with the code; torchrun would cut it short if another were first
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if speaks():
            print(
                "\nstopped at once; the same command goes on from the last checkpoint, if there is one", file=sys.stderr
            )
        return 130
    if not result.finished:
        return 130
    if speaks():
        print(summary(result))
    return 0


def _quiet() -> None:
    """Libraries' own notices would bury this program's lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def listing() -> str:
    """Every loss: what it reads, where it is from, its knobs with type, default and range."""
    from trainers.objectives import OBJECTIVES

    return "\n\n".join(_described(one) for _, one in sorted(OBJECTIVES.items()))


def _described(one: "Objective") -> str:
    summary_line = (one.loss.__doc__ or "").partition("\n")[0]
    knobs = [
        f"{knob.name}  {knob.kind}, {knob.default} unless set" + (f", {knob.allowed}" if knob.allowed else "")
        for knob in one.options.values()
    ]
    told = {"reads": [one.batch.reads], "source": [one.source], "knobs": knobs or ["none"], "lr": [f"{one.lr:g}"]}
    lines = [
        f"  {label if not place else '':<8}{line}" for label, each in told.items() for place, line in enumerate(each)
    ]
    return "\n".join([one.name, f"  {summary_line}", *lines])


def summary(result: RunResult) -> str:
    """The closing lines."""
    kept = f", those of step {result.best_step} kept" if result.best_step not in (None, result.steps) else ""
    lines = [f"done: {result.steps} steps{kept}, train loss {result.train.get('loss', math.nan):.4f}"]
    names = {
        "loss": "held-out loss",
        "logps/accuracies": "held-out pairs with chosen likelier per token",
        "mean_token_accuracy": "held-out token accuracy",
    }
    for name, words in names.items():
        if name in result.after:
            lines.append(f"  {words}: {result.before[name]:.4f} before, {result.after[name]:.4f} after")
    if "rewards/accuracies" in result.after:
        # before the first step policy and reference may be equal, which ranks nothing
        lines.append(f"  held-out pairs with chosen rewarded more: {result.after['rewards/accuracies']:.4f} after")
    lines += [f"model    {result.folder}", f"curves   tensorboard --logdir {result.folder / 'tensorboard'}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
