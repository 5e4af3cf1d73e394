"""From human pairs to a reward model, to scored samples, to new pairs.

    python -m examples.reward_loop                                         the demo's world and its model
    python -m examples.reward_loop PAIRS --model MODEL [--prompts FILE]    your own

What it does, one command after the other:

    python -m flows.ingest PAIRS --model MODEL                             a version of pairs
    python -m trainers.run --data v1 --loss reward --out runs/rewards      a reward model
    python -m flows.ingest PROMPTS --model MODEL                           prompts that nobody judged
    python -m flows.generate v2 --samples 4                                answers to them
    python -m flows.score_rewards v3 --scorer reward_model:runs/rewards    what the reward model gives each
    python -m flows.build_paired v4                                        the best against the worst

Started again, it goes on where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdata.errors import UserError

HOME = Path(".demo")
LEARNING_RATE = 1e-3
FRESH_PROMPTS = 200

Check = Callable[[str, str], bool]
Line = tuple[str, float, float | None]  # name, mean reward, share that a program accepts


@dataclass(frozen=True)
class Outcome:
    """The reward model's accuracy on held-out pairs, and a line for each set of answers."""

    accuracy: float
    lines: list[Line]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the loop. 0, or 2 with a sentence for what stands in its way."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.reward_loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="?", type=Path, help="pairs that people judged (default: the demo's)")
    parser.add_argument("--model", help="what answers, and what the reward model starts from")
    parser.add_argument("--prompts", type=Path, help="prompts to answer (default: those of the pairs)")
    parser.add_argument("--home", type=Path, default=HOME, help="where the demo's world goes (default: .demo)")
    parser.add_argument("--root", help="where versions go (default: $PREFDATA_ROOT, else ./data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where training runs go (default: runs)")
    parser.add_argument("--steps", type=int, default=150, help="steps of the reward model (default: 150)")
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt (default: 4)")
    given = parser.parse_args(argv)
    try:
        pairs, model, prompts, check = given.pairs, given.model, given.prompts, None
        if pairs is None:
            pairs, model, prompts, check = _demo_world(given.home)
        elif model is None:
            raise UserError("say which model answers: --model FOLDER or a hub name.")
        outcome = loop(
            pairs, model, prompts, given.root, given.runs, steps=given.steps, samples=given.samples, check=check
        )
    except UserError as problem:
        print(f"reward_loop: {problem}", file=sys.stderr)
        return 2
    print(f"\nthe reward model ranks {100 * outcome.accuracy:.1f} % of the held-out pairs as people did\n")
    for name, reward, right in outcome.lines:
        checked = "" if right is None else f"   right answers {100 * right:5.1f} %"
        print(f"{name:>9}   mean reward {reward:6.2f}{checked}")
    return 0


def loop(
    pairs: Path,
    model: str,
    prompts: Path | None,
    root: str | None,
    runs: Path,
    *,
    steps: int,
    samples: int = 4,
    lr: float = LEARNING_RATE,
    check: Check | None = None,
) -> Outcome:
    """The commands above, in this process. check: whether an answer to a prompt is right, where a program can tell."""
    from trainers.run import Options, train

    human = _build("ingest", root, source=(str(pairs),), model=model)
    _say(f"train a reward model on {human}, {steps} steps")
    folder = runs / f"rewards-{human}-{steps}"
    trained = train(
        Options(data=human, loss="reward", root=root, out=str(folder), lr=lr, steps=steps, accumulate=1), say=_quiet
    )
    asked = human if prompts is None else _build("ingest", root, source=(str(prompts),), model=model)
    answers = _build("generate", root, source=asked, model=(model,), samples=samples)
    scored = _build("score-rewards", root, source=answers, scorer=(f"reward_model:{trained.folder}",))
    paired = _build("build-paired", root, source=scored)
    return Outcome(float(trained.after["rewards/accuracies"]), list(_lines(root, scored, paired, check)))


def _build(name: str, root: str | None, **options: Any) -> str:
    from prefdata.builds import job, registry

    outcome = job.run(registry.job(name, registry.options(name)(**options), root))
    _say(f"{name}: {outcome.sentence()}")
    return outcome.version.name


def _lines(root: str | None, scored: str, paired: str, check: Check | None) -> Iterator[Line]:
    """All answers, the chosen and the rejected: their mean reward, and how many are right."""
    from prefdata import versions

    for name, version, side in (
        ("samples", scored, "completion"),
        ("chosen", paired, "chosen"),
        ("rejected", paired, "rejected"),
    ):
        found = versions.find(version, root=root)
        rows = [row for split in found.splits for row in found.table(split).to_pylist()]
        rewards = [row["score" if side == "completion" else f"{side}_score"] for row in rows]
        right = [check(row["prompt"][-1]["content"], row[side][-1]["content"]) for row in rows] if check else None
        yield name, sum(rewards) / len(rows), None if right is None else sum(right) / len(rows)


def _demo_world(home: Path) -> tuple[Path, str, Path, Check]:
    """Pairs whose better side is right, and prompts that stand in none of them."""
    from examples.demo import model, world

    _say("a small world, and a model that half knows it")
    folder = model.cached(home / "models")
    source = home / "source"
    world.write_pairs(source / "train.jsonl")
    world.write_heldout(source / "test.jsonl")
    prompts = home / "prompts" / "prompts.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    tasks = world.held_out_tasks(0)[:FRESH_PROMPTS]
    prompts.write_text("".join(json.dumps({"prompt": task.prompt}) + "\n" for task in tasks))
    return source, str(folder), prompts, world.check


def _say(text: str) -> None:
    print(f"-- {text}", flush=True)


def _quiet(text: str) -> None:
    """What a run says of itself stands in its folder too."""


if __name__ == "__main__":
    sys.exit(main())
