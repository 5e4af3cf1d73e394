"""Every benchmark of a CPU, one after the other; what they find goes into docs/benchmarks.md.

    python -m benchmarks.all

Under 20 minutes on two cores with nothing else running. The page is written after each, so that a later one's failure
loses nothing.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import dpo_step, profile_step, reference_scores, scoring_threads, shared_prompt, step_memory
from benchmarks.measure import machine
from benchmarks.results import PACKAGES, PAGE, Report, all_cores, table, write
from prefdata.errors import UserError

EVERY: tuple[Callable[[], Report], ...] = (
    dpo_step.run,
    reference_scores.run,
    scoring_threads.run,
    shared_prompt.run,
    step_memory.run,
    profile_step.run,
)


def main(every: tuple[Callable[[], Report], ...] = EVERY, page: Path = PAGE) -> int:
    """Measure, print and write. 0, or 2 with a sentence for what stands in its way."""
    all_cores()
    about = machine(*PACKAGES)
    print(*about, sep="\n", flush=True)
    reports: list[Report] = []
    for run in every:
        began = time.monotonic()
        try:
            reports.append(run())
            write(reports, about, page)
        except UserError as problem:
            print(f"all: {problem}", file=sys.stderr)
            return 2
        print(
            "", f"{reports[-1].title}: {time.monotonic() - began:.0f} s", table(reports[-1].lines), sep="\n", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
