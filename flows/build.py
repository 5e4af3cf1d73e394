"""Build what a recipe says: source, steps, generation, scores, selection, reference, in one TOML file.

python -m flows.build recipes/zephyr.toml
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from prefect import State, flow, get_run_logger
from prefect.states import Failed

from flows import commands
from flows.deployable import REFUSED, ROOT_HELP
from flows.running import build as build_job
from prefdata import recipe as recipes
from prefdata.errors import UserError, faults_in_words

NAME = "build"


def _build(recipe: str, settings: list[str] | None = None, root: str | None = None) -> Any:
    logger = get_run_logger()
    try:
        with faults_in_words():
            read = recipes.read(recipe, settings or [])
            one = partial(build_job, budget=read.budget())
            done = recipes.run(read, root, lambda step, job: one(job))
    except UserError as problem:
        logger.error(str(problem))
        return Failed(name=REFUSED, message=str(problem))
    return done.version.name


build = flow(name=NAME, description=__doc__)(_build)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from a command line; see `flows.commands.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a TOML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="in place of what it says"
    )
    parser.add_argument("--root", help=ROOT_HELP)
    given = parser.parse_args(argv)
    return commands.run("flows.build", NAME, argv, lambda: _run(given.recipe, given.set, given.root))


def _run(recipe: str, settings: list[str], root: str | None) -> str:
    recipes.read(recipe, settings)  # what can be refused is, before Prefect starts
    state = cast(State[str], build(recipe, settings, root, return_state=True))
    if state.name == REFUSED:
        raise UserError(state.message or "the input was refused")
    return state.result()


if __name__ == "__main__":
    sys.exit(main())
