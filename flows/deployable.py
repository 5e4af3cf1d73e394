"""A flow and a command line made from a build's options, so that a knob, its default and its help stand once."""

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, cast

from prefect import Flow, State, flow, get_run_logger
from prefect.states import Failed

from flows import commands
from flows.running import build
from prefdata.builds.job import Job
from prefdata.builds.options import default_of, kind_of
from prefdata.errors import UserError

ROOT_HELP = "where versions live: a folder or a URL (default: $PREFDATA_ROOT, else ./data)"
REFUSED = "Refused"
# a job that was checked before its flow was started, for the flow to take over, by its parameters
_READY: dict[str, Job] = {}


@dataclass(frozen=True)
class Deployable:
    """A build that Prefect can run and a person can call.

    options: a dataclass of `prefdata.builds.options`; job: makes the job from options and root; module: where the flow
    is found, under the build's name with underscores.
    """

    name: str
    options: type
    job: Callable[[Any, str | None], Job]
    module: str
    description: str | None

    def flow(self) -> Flow[..., str]:
        """The Prefect flow. Its parameters are the options' fields and `root`; it returns the version's name.

        Bad input ends it in a failed state called Refused whose message is the sentence, without a traceback.
        """

        def run(**given: Any) -> Any:
            try:
                job = _READY.pop(_name(given)) if _name(given) in _READY else self._job(given)
                return build(job).version.name
            except UserError as problem:
                get_run_logger().error(str(problem))
                return Failed(name=REFUSED, message=str(problem))

        run.__name__ = run.__qualname__ = self.name.replace("-", "_")
        run.__module__ = self.module
        run.__signature__ = self._signature()  # type: ignore[attr-defined]
        return flow(name=self.name, description=self.description)(run)

    def run(self, **given: Any) -> str:
        """Run the flow here and return the version's name. UserError if its input is refused, before Prefect starts
        where that can be seen."""
        filled = {knob.name: default_of(knob) for knob in fields(self.options)} | {"root": None} | given
        key = _name(filled)
        _READY[key] = self._job(filled)
        try:
            state = cast(State[str], self.flow()(**filled, return_state=True))
        finally:
            _READY.pop(key, None)  # Prefect may have failed before the flow took it
        if state.name == REFUSED:
            raise UserError(state.message or "the input was refused")
        return state.result()

    def _job(self, given: Mapping[str, Any]) -> Job:
        knobs = _tuples({name: value for name, value in given.items() if name != "root"})
        return self.job(self.options(**knobs), given["root"])

    def parser(self) -> argparse.ArgumentParser:
        """The command line: one argument per field, `source` without dashes."""
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.module}",
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for knob in fields(self.options):
            _add_argument(parser, knob, self.options)
        parser.add_argument("--root", help=ROOT_HELP)
        return parser

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run from a command line; see `flows.commands.run`."""
        given = vars(self.parser().parse_args(argv))
        return commands.run(self.module, self.name, argv, lambda: self.run(**given))

    def _signature(self) -> inspect.Signature:
        knobs = [(knob.name, default_of(knob), knob.type) for knob in fields(self.options)]
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, default, hint in [*knobs, ("root", None, str | None)]
        ]
        return inspect.Signature(parameters, return_annotation=str)


def _add_argument(parser: argparse.ArgumentParser, knob: "Field[Any]", owner: type) -> None:
    plain, several = kind_of(knob, owner)
    default = default_of(knob)
    text = knob.metadata["help"].replace("%", "%%")
    if default not in (None, "", ()) and not isinstance(default, bool):
        text += f" (default: {default})"
    flag = "--" + knob.name.replace("_", "-")
    if knob.name == "source":
        parser.add_argument(knob.name, nargs="*" if several else "?", default=default, help=text)
    elif plain is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
    elif several:  # --flag A B, and --flag A --flag B
        parser.add_argument(flag, type=plain, nargs="+", action="extend", default=list(default), help=text)
    else:
        parser.add_argument(flag, type=plain, default=default, help=text, choices=knob.metadata.get("choices"))


def _name(given: Mapping[str, Any]) -> str:
    return repr(sorted(_tuples(given).items()))


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
