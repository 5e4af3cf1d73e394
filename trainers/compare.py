"""Train several objectives on one version with equal budgets and seeds, and put them side by side.

    python -m trainers.compare --data v3 --loss dpo,ipo,orpo,simpo --seeds 0,1,2 --check examples.demo.world:check

Every run has the same rows, steps, batches and model to start from; learning rates are each loss's own (times --lr-scale)
unless --lr gives one for all. A run that is finished is not done again, an unfinished one goes on. Leaves comparison.md,
comparison.json, comparison.parquet and comparison.html in the folder.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import UserError, faults_in_words
from trainers.options import Options
from trainers.processes import Processes, Say

if TYPE_CHECKING:
    from prefdata.versions import Version
    from trainers.measured import Asked
    from trainers.plan import Plan


@dataclass(frozen=True)
class Wanted:
    """What is compared. `settings`: of a loss alone as LOSS.KNOB=VALUE, of every loss that has the knob as KNOB=VALUE."""

    base: Options  # data, model, budget; its loss, seed and folder are filled in
    losses: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    lr_scale: float
    asked: "Asked"
    out: Path
    prompts: str | None = None  # a version whose held-out prompts are answered


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line's exit code: 0 done, 2 refused, 130 stopped on request."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    given = parser().parse_args(arguments)
    try:
        with faults_in_words():
            return 0 if compare(_wanted(given)) else 130
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(
        prog="python -m trainers.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument("--data", required=True, metavar="VERSION", help="a version of pairs with a test split")
    line.add_argument("--loss", required=True, metavar="NAME,NAME", help="the objectives; sums as in dpo+sft")
    line.add_argument("--seeds", default="0", metavar="N,N", help="a run for each (default: 0)")
    line.add_argument("--set", action="append", default=[], metavar="[LOSS.]KNOB=VALUE", help="a knob; may be repeated")
    line.add_argument("--steps", type=int, help="optimiser steps of every run; unset: what --epochs says")
    line.add_argument("--epochs", type=float, help="passes over the train rows; unset: 1")
    line.add_argument("--batch-size", type=int, default=8, help="rows per forward (default: 8)")
    line.add_argument("--accumulate", type=int, default=4, help="forwards per step (default: 4)")
    line.add_argument("--lr", type=float, help="one learning rate for all; unset: each loss's own")
    line.add_argument("--lr-scale", type=float, default=1.0, help="times each loss's own learning rate (default: 1)")
    line.add_argument("--model", help="what every run starts from; unset: the model that the version names")
    line.add_argument("--root", help="where versions are; unset: $PREFDATA_ROOT, else ./data")
    line.add_argument("--dtype", choices=("float32", "bfloat16"), help="of matrix products; unset: as trainers.run")
    line.add_argument("--answers", type=int, default=100, help="held-out prompts that are answered (default: 100)")
    line.add_argument(
        "--prompts",
        metavar="VERSION",
        help="whose held-out prompts are answered; unset: those of --data, of which a build may have kept the hard ones only",
    )
    line.add_argument("--most-tokens", type=int, default=128, help="of an answer (default: 128)")
    line.add_argument(
        "--check",
        metavar="MODULE:FUNCTION",
        help="scores greedy answers: called with the last user turn and the answer; true or false, or a reward",
    )
    line.add_argument("--out", type=Path, help="folder; unset: runs/compare-<version>")
    return line


def _wanted(given: argparse.Namespace) -> Wanted:
    from trainers.measured import Asked

    losses = tuple(dict.fromkeys(name.strip() for name in given.loss.split(",")))
    try:
        seeds = tuple(dict.fromkeys(int(seed) for seed in given.seeds.split(",")))
    except ValueError:
        raise UserError(f"--seeds {given.seeds}: give whole numbers with commas between them.") from None
    for name, value in (
        ("--answers", given.answers),
        ("--most-tokens", given.most_tokens),
        ("--lr-scale", given.lr_scale),
    ):
        if not value > 0:
            raise UserError(f"{name} is {value:g}; it must be above 0.")
    same = {
        name: getattr(given, name)
        for name in ("root", "steps", "epochs", "batch_size", "accumulate", "lr", "model", "dtype")
    }
    base = Options(data=given.data, loss=losses[0], **same)
    asked = Asked(given.answers, given.most_tokens, given.check, given.batch_size)
    out = given.out or Path("runs") / f"compare-{Path(given.data).name}"
    return Wanted(base, losses, seeds, tuple(given.set), given.lr_scale, asked, out, given.prompts)


def compare(wanted: Wanted, *, say: Say = print) -> bool:
    """Train, measure, write. False if it was stopped on request: the same call goes on."""
    from prefdata.report import of_comparison
    from trainers import train
    from trainers.measured import kept

    plans = {loss: _plan(wanted, loss, say) for loss in wanted.losses}  # every refusal comes before the first run
    measuring, start = _measuring(wanted, plans[wanted.losses[0]])
    say(f"{len(wanted.losses)} losses, {len(wanted.seeds)} seeds; measuring {start} first")
    before = kept(wanted.out, measuring.digest, lambda: measuring.measure(start))
    runs = []
    for loss, seed, options in _each(wanted, plans):
        say(f"-- {loss}, seed {seed}")
        result = train.train(options, say=lambda text: say(f"   {text}"))
        if not result.finished:
            return False
        folder = result.folder
        found = kept(folder, measuring.digest, lambda folder=folder: measuring.measure(str(folder)))  # type: ignore[misc]
        spent = {name: result.train[name] for name in ("seconds_per_step", "peak_memory_gib") if name in result.train}
        runs.append({"loss": loss, "seed": seed, "folder": folder.name, "lr": options.lr, **found, **spent})
    content = {
        "format": of_comparison.FORMAT,
        "data": plans[wanted.losses[0]].config["data"],
        "start": {"name": start, "is_reference": _is_reference(plans[wanted.losses[0]]), **before},
        "budget": {name: getattr(wanted.base, name) for name in ("steps", "epochs", "batch_size", "accumulate")},
        "knobs": {loss: plan.config["knobs"] for loss, plan in plans.items()},
        "asked": {**vars(wanted.asked), "prompts_of": wanted.prompts},
        "runs": runs,
    }
    _write(wanted.out, content)
    say(f"\n{of_comparison.table(content)}\n\n{wanted.out / of_comparison.PAGE}")
    return True


def _plan(wanted: Wanted, loss: str, say: Say) -> "Plan":
    from trainers import plan as planning
    from trainers.loss import parse

    found = parse(loss, None, ())
    own = [setting.removeprefix(f"{loss}.") for setting in wanted.settings if setting.startswith(f"{loss}.")]
    knobs = {knob for objective in found.objectives for knob in objective.options}
    common = [setting for setting in wanted.settings if setting.partition("=")[0] in knobs]
    options = replace(wanted.base, loss=loss, set=tuple(common + own), lr=wanted.base.lr or found.lr * wanted.lr_scale)
    return planning.make(options, planning.versions(options), Processes(), say)


def _each(wanted: Wanted, plans: "dict[str, Plan]") -> Iterator[tuple[str, int, Options]]:
    """Seed by seed, so that a comparison that is stopped early has every loss."""
    for seed in wanted.seeds:
        for loss, plan in plans.items():
            yield loss, seed, replace(plan.options, seed=seed, out=str(wanted.out / f"{loss}-seed{seed}"))


def _measuring(wanted: Wanted, plan: "Plan") -> tuple[Any, str]:
    from trainers.measured import Measuring

    if plan.sources.kind != "pairs" or len(plan.sources.versions) != 1:
        raise UserError(f"--data {wanted.base.data}: objectives are compared on one version of pairs.")
    (version,) = plan.sources.versions
    if "test" not in version.splits:
        raise UserError(f"data version {version.name} holds out no rows, and objectives are compared on held-out ones.")
    _check_settings(wanted)
    prompts = _prompts(wanted, version)
    try:
        wanted.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"cannot make the folder {wanted.out}: {problem.strerror or problem}.") from problem
    return Measuring(version, plan.renderer, plan.model, wanted.asked, wanted.out, prompts=prompts), plan.model


def _prompts(wanted: Wanted, version: "Version") -> "Version":
    """The version whose prompts are answered. UserError if it holds out none or has tokens of another tokenizer."""
    from prefdata import versions
    from prefdata.tokens import differences

    if wanted.prompts is None:
        return version
    found = versions.find(wanted.prompts, root=wanted.base.root)
    if "test" not in found.splits:
        raise UserError(f"--prompts {wanted.prompts}: {found.name} holds out no rows; name a version that does.")
    if unlike := differences(found.manifest["tokenizer"], version.manifest["tokenizer"]):
        raise UserError(f"--prompts {wanted.prompts}: its tokens are not those of {version.name}: {'; '.join(unlike)}.")
    return found


def _check_settings(wanted: Wanted) -> None:
    """UserError for a setting that no loss reads."""
    from trainers.loss import parse

    known = {loss: {knob for one in parse(loss, None, ()).objectives for knob in one.options} for loss in wanted.losses}
    for setting in wanted.settings:
        name = setting.partition("=")[0]
        if not any(name in knobs or name.startswith(f"{loss}.") for loss, knobs in known.items()):
            raise UserError(f"--set {setting}: none of {', '.join(wanted.losses)} has a knob called {name!r}.")


def _is_reference(plan: "Plan") -> bool:
    from trainers import contract

    (version,) = plan.sources.versions
    return contract.same_model(plan.config["policy"], contract.reference_of(version.manifest))


def _write(out: Path, content: dict[str, Any]) -> None:
    import polars as pl

    from prefdata.report import of_comparison

    (out / of_comparison.CONTENT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / of_comparison.TABLE).write_text(of_comparison.table(content) + "\n", encoding="utf-8")
    pl.DataFrame(content["runs"]).write_parquet(out / "comparison.parquet")
    (out / of_comparison.PAGE).write_text(of_comparison.page(content).html, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
