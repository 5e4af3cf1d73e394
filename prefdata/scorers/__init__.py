"""Sources of reward: each says how good an answer is, in a unit of its own.

A scorer is one file in this folder and one line in `SCORERS`. It takes rows of completions and gives, for each of them, a
number or why there is none. It is named as `[NAME=]KIND[:WHAT]`, for example `reward_model:models/rm`, `verifier:grading:check`
or `mood=lexicon`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import pyarrow as pa

from prefdata.errors import UserError
from prefdata.records import SetAside
from schemas import pairs

SCORERS = {
    "reward_model": "reward_model:RewardModel",
    "verifier": "verifier:Verifier",
    "lexicon": "lexicon:Lexicon",
    "given": "given:Given",
}
# what compares the two sides of a pair instead; builds/judged_pairs.py asks it
JUDGES = ("judge",)
SYNTAX = "[NAME=]KIND[:WHAT]"
_NAMED = re.compile(r"(?:(?P<name>\w[\w.-]*)=)?(?P<kind>[A-Za-z][\w-]*)(?::(?P<what>.+))?")

Verdict = float | SetAside


@dataclass(frozen=True)
class Called:
    """A scorer as it was asked for: what its scores are called, its kind, and which of that kind."""

    name: str
    kind: str
    what: str | None


@dataclass(frozen=True)
class Settings:
    """What is known before a scorer is made: the tokenizer's entry in the version's manifest, and how models are loaded."""

    tokenizer: Mapping[str, Any]
    dtype: str = "float32"
    trust_remote_code: bool = False


class Scorer(Protocol):
    """`fingerprint`: what decides every score. `about`: what else the manifest says, such as a model's name, which decides
    none; neither holds a key called name. `runs`: the model, as plans know it.
    """

    fingerprint: dict[str, Any]
    about: dict[str, Any]
    runs: str | None

    def members(self, rows: pa.Table) -> list[str]:
        """For each row what its score depends on: equal members have equal scores."""
        ...

    def score(self, rows: pa.Table, tell: Callable[[float], None], spend: Callable[[int], None]) -> Sequence[Verdict]:
        """A finite number for each row, or why there is none. `tell` hears the share that is done, `spend` tokens."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


def parse(text: str) -> Called:
    """What `[NAME=]KIND[:WHAT]` asks for. Without a name it is the last part of WHAT, or the kind."""
    found = _NAMED.fullmatch(text.strip())
    kind = found["kind"].replace("-", "_") if found else ""
    if found is None or kind not in (*SCORERS, *JUDGES):
        raise UserError(
            f"scorer {text!r}: write it as {SYNTAX}, where KIND is one of: {', '.join((*SCORERS, *JUDGES))}."
        )
    what = found["what"]
    last = re.split(r"[/:]", what.rstrip("/"))[-1] if what else ""
    return Called(found["name"] or last or kind, kind, what)


def parse_all(texts: Sequence[str]) -> list[Called]:
    """Each of them, under names of their own."""
    if not texts:
        raise UserError(f"no scorer is named: say which with --scorer {SYNTAX}, for example --scorer lexicon.")
    found = [parse(text) for text in texts]
    names = [each.name for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two scorers are called {twice!r}: give one another name, as in --scorer other=KIND:WHAT.")
    return found


def check_kind(called: Sequence[Called], kind: str, version: str) -> None:
    """UserError for scorers that do not read this kind of rows."""
    fitting = JUDGES if kind == pairs.KIND else tuple(SCORERS)
    if wrong := next((each for each in called if each.kind not in fitting), None):
        raise UserError(f"{wrong.kind} does not score {kind}, which {version} holds; these do: {', '.join(fitting)}.")


def load(called: Called, settings: Settings) -> Scorer:
    """The scorer. UserError if there is no such thing, before any row is scored."""
    file, _, class_name = SCORERS[called.kind].partition(":")
    made: Scorer = getattr(import_module(f"{__name__}.{file}"), class_name)(called.what, settings)
    return made
