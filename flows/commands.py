"""What the command line of every flow does with what comes of it."""

import shlex
import sys
from collections.abc import Callable, Sequence

from flows.interrupts import noticed, server_spared
from prefdata.errors import UserError, faults_in_words


def run(module: str, name: str, argv: Sequence[str] | None, act: Callable[[], str]) -> int:
    """Act, which returns a version's name. 0; 2 for bad input, with a sentence on stderr; 130 for Ctrl-C."""
    with noticed() as interrupted:
        try:
            with server_spared(), faults_in_words():
                made = act()
        except BaseException as problem:
            # first: what hides an interrupt may come out as anything, as bad input too
            if interrupted.is_set() or isinstance(problem, KeyboardInterrupt):
                again = shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])
                print(
                    f"\nInterrupted. What is finished is kept, and the same command goes on: {again}", file=sys.stderr
                )
                return 130
            if not isinstance(problem, UserError):
                raise
            print(f"{name}: {problem}", file=sys.stderr)
            return 2
    print(f"{made} is ready. Look at it with:  prefdata show {made}")
    return 0
