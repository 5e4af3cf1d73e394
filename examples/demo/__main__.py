"""The demo: a small world, a small model, versions v1 to v3, two short training runs, one table.

    python -m examples.demo

Everything it makes lies in `.demo/` (the world and its model), in the data root (the versions) and in `runs/`. Started
again, it goes on where it stopped.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdata.errors import UserError

HOME = Path(".demo")
STEPS = 120
LEARNING_RATES = {"orpo": 3e-4, "dpo": 3e-5}

WHERE_NEXT = """
Where to look next (after `source .venv/bin/activate`):
  prefdata show {v3}                                  what {v3} is and where it came from
  prefdata stats {v3}                                 lengths, similarity, reference margins
  prefdata sql "select * from versions"              DuckDB over everything
  python -m trainers.run --data {v3} --loss orpo       a run with the defaults
  tensorboard --logdir {runs}                        the curves of these runs
  prefect server start; python -m flows.serve; prefect deployment run build-sapo-negatives
                                                     the next round, each in a terminal of its own
  README.md                                          the same with your own data and model
"""


@dataclass(frozen=True)
class Line:
    """A line of the table: shares of held-out pairs and prompts, in [0, 1]."""

    name: str
    pair_accuracy: float  # pairs whose chosen side is likelier per token
    exact: float  # prompts whose greedy answer a program accepts
    by_kind: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. 0, or 2 with a sentence for what stands in its way."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=HOME, help="where the world and its model go (default: .demo)")
    parser.add_argument("--root", help="where versions go (default: $PREFDATA_ROOT, else ./data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where training runs go (default: runs)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world and the model (default: 0)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each training run (default: {STEPS})")
    given = parser.parse_args(argv)
    _quiet(given.home)
    try:
        demo(given.home, given.root, given.runs, given.seed, given.steps)
    except UserError as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept; `make demo` goes on from there.", file=sys.stderr)
        return 130
    return 0


def demo(home: Path, root: str | None, runs: Path, seed: int, steps: int) -> None:
    """World, versions, training, table."""
    from examples.demo import model, world

    began = time.monotonic()
    with _step("a small world, and a model that half knows it"):
        folder = model.cached(home / "models", seed=seed)
        source = home / "source"
        world.write_pairs(source / "train.jsonl", seed)
        world.write_heldout(source / "test.jsonl", seed)
    v1, v2, v3 = build(str(source), str(folder), root)
    lines: list[Line] = []
    for loss, lr in LEARNING_RATES.items():
        with _step(f"train {loss} on {v3}, {steps} steps"):
            result = train(v3, loss, root, runs / f"demo-{v3}-{loss}-{steps}", lr=lr, steps=steps, seed=seed)
        with _step("check the answers to held-out prompts"):
            if not lines:
                lines.append(measure("before", folder, result.before, seed))
            lines.append(measure(loss, result.folder, result.after, seed))
    print(f"\nheld-out pairs and prompts, as measured ({time.monotonic() - began:.0f} s in all)\n")
    print(table(lines))
    print(WHERE_NEXT.format(v1=v1, v2=v2, v3=v3, runs=runs))


def build(source: str, model: str, root: str | None) -> tuple[str, str, str]:
    """v1 from the JSONL files, v2 with reference log-probs, v3 with regenerated segments."""
    from flows import add_reference, build_sapo_negatives, ingest

    with _step("ingest the pairs, dirty rows among them"):
        v1 = ingest.deployable.run(source=(source,), model=model, root=root, name="demo world")
    with _step(f"add reference log-probs to {v1}"):
        v2 = add_reference.deployable.run(source=v1, model=model, root=root)
    with _step(f"write a segment of each good answer of {v1} anew, and add reference log-probs"):
        v3 = build_sapo_negatives.deployable.run(source=v1, model=model, root=root)
    return v1, v2, v3


def train(version: str, loss: str, root: str | None, out: Path, *, lr: float, steps: int, seed: int) -> Any:
    """One short run; an equal one that was finished before is taken as it is."""
    from trainers.run import Options, train

    return train(Options(data=version, loss=loss, root=root, out=str(out), lr=lr, steps=steps, seed=seed), say=_say)


def measure(name: str, folder: Path, held_out: Any, seed: int) -> Line:
    """Pair accuracy from the run's own evaluation, checked answers by greedy decoding."""
    from examples.demo import model, world

    tasks = world.held_out_tasks(seed)
    right = model.exact_accuracy(str(folder), tasks)
    counts = {kind: sum(task.kind == kind for task in tasks) for kind in right}
    exact = sum(right[kind] * counts[kind] for kind in right) / len(tasks)
    return Line(name, held_out["logps/accuracies"], exact, right)


def table(lines: Sequence[Line]) -> str:
    """The lines as text, shares in percent."""
    kinds = sorted({kind for line in lines for kind in line.by_kind})
    head = ["model", "pair accuracy", "checked answers", *kinds]
    body = [
        [line.name, *(f"{100 * share:.1f} %" for share in (line.pair_accuracy, line.exact))]
        + [f"{100 * line.by_kind[kind]:.0f} %" for kind in kinds]
        for line in lines
    ]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *body]
    )


@contextmanager
def _step(what: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"-- {what}", flush=True)
    yield
    print(f"   {time.monotonic() - began:.0f} s", flush=True)


def _say(text: str) -> None:
    print(f"   {text}", flush=True)


def _quiet(home: Path) -> None:
    """The demo's own lines are enough; Prefect keeps its records in the demo's folder."""
    os.environ.setdefault("PREFECT_HOME", str((home / "prefect").resolve()))
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    sys.exit(main())
