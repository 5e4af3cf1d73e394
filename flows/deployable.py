"""A flow and a command line made from a build's options, so that a knob, its default and its help stand once."""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

from prefect import Flow, flow

from flows.running import build
from prefdata.builds.job import Job
from prefdata.builds.options import default_of, kind_of
from prefdata.errors import UserError

ROOT_HELP = "where versions live: a folder or a URL (default: $PREFDATA_ROOT, else ./data)"


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
        """The Prefect flow. Its parameters are the options' fields and `root`; it returns the version's name."""

        def run(**given: Any) -> str:
            root = given.pop("root")
            return build(self.job(self.options(**_tuples(given)), root)).version.name

        run.__name__ = run.__qualname__ = self.name.replace("-", "_")
        run.__module__ = self.module
        run.__signature__ = self._signature()  # type: ignore[attr-defined]
        return flow(name=self.name, description=self.description)(run)

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
        """Run from a command line. 0; 2 for bad input, with a sentence on stderr; 130 for Ctrl-C."""
        given = _tuples(vars(self.parser().parse_args(argv)))
        knobs = {name: value for name, value in given.items() if name != "root"}
        try:
            self.job(self.options(**knobs), given["root"])  # what can be refused is refused before Prefect starts
            name = self.flow()(**given)
        except UserError as problem:
            print(f"{self.name}: {problem}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            again = " ".join(["python -m", self.module, *(sys.argv[1:] if argv is None else argv)])
            print(f"\nInterrupted. Finished units are kept; the same command goes on:\n    {again}", file=sys.stderr)
            return 130
        print(f"{name} is ready. Look at it with:  prefdata show {name}")
        return 0

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
    else:
        parser.add_argument(flag, type=plain, default=default, help=text, choices=knob.metadata.get("choices"))


def _tuples(given: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
