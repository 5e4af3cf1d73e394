"""Propose a loss's knobs from what a version stores of its reference, with reasons.

    python -m trainers.suggest --data v3 --loss ipo

Reads reference log-probs, lengths, labels and weights of the train rows; runs no model. Of a sum such as dpo+sft it proposes
--weights too. The rules and what they lean on stand in trainers/suggestions.py.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from prefdata.errors import UserError, faults_in_words

if TYPE_CHECKING:
    from prefdata.versions import Version
    from trainers.loss import Loss, Term
    from trainers.suggestions import JudgedFacts, PairFacts, Proposal


@dataclass(frozen=True)
class Suggestion:
    """What to say to trainers.run, and why."""

    command: str
    proposals: tuple["Proposal", ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line's exit code: 0, or 2 with a sentence."""
    line = parser()
    given = line.parse_args(arguments)
    try:
        with faults_in_words():
            found = suggest(given.data, given.loss, root=given.root)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    for proposal in found.proposals:
        print(f"{proposal.knob} = {proposal.value:g}\n  {proposal.why}.")
    print(f"\n{found.command}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(
        prog="python -m trainers.suggest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument(
        "--data", required=True, metavar="VERSION", help="vN, a tag, latest, or a path or URL of a version"
    )
    line.add_argument("--loss", required=True, help="the objective, or a sum of several: dpo+sft")
    line.add_argument("--root", help="where versions are; unset: $PREFDATA_ROOT, else ./data")
    return line


def suggest(data: str, loss: str, *, root: str | None = None) -> Suggestion:
    """Knobs and weights of a loss for a version. UserError if the version does not serve it or no rule speaks of it."""
    from prefdata import versions
    from trainers import contract
    from trainers.loss import parse

    asked = parse(loss, None, ())
    version = versions.find(data, root=root, kinds=asked.kinds if data == "latest" else None)
    contract.check(version, asked)
    facts = _facts(version, asked)
    several = len(asked.terms) > 1
    found = [
        _named(proposal, term if several else None)
        for term in asked.terms
        for proposal in _proposals(term, facts, version)
    ]
    weights = _weights(asked, facts) if several else []
    if not found and not weights:
        raise UserError(f"--loss {loss}: no rule proposes anything for it; its defaults stand in --list.")
    settings = [word for each in found for word in ("--set", f"{each.knob}={each.value:g}")]
    if weights:
        settings += ["--weights", ",".join(f"{each.value:g}" for each in weights)]
    where = () if root is None else ("--root", root)
    command = shlex.join(["python", "-m", "trainers.run", "--data", data, "--loss", loss, *settings, *where])
    return Suggestion(command, (*found, *weights))


def _named(proposal: "Proposal", term: "Term | None") -> "Proposal":
    from dataclasses import replace

    return proposal if term is None else replace(proposal, knob=f"{term.objective.name}.{proposal.knob}")


def _proposals(term: "Term", facts: "PairFacts | JudgedFacts", version: "Version") -> "list[Proposal]":
    from trainers.suggestions import OF_JUDGED, OF_PAIRS, PairFacts

    name = term.objective.name
    if isinstance(facts, PairFacts):
        found = OF_PAIRS[name](facts) if name in OF_PAIRS else []
    else:
        found = OF_JUDGED[name](facts) if name in OF_JUDGED else []
    for proposal in found:
        knob = term.objective.knobs[proposal.knob]
        if knob.range is not None and not knob.range.holds(proposal.value):
            raise UserError(
                f"data version {version.name} would want {proposal.knob}={proposal.value:g} ({proposal.why}), and"
                f" {name} takes {knob.range}: look at the rows with prefdata stats {version.name}."
            )
    return found


def _facts(version: "Version", loss: "Loss") -> "PairFacts | JudgedFacts":
    """The columns of the train rows, every row checked as for training."""
    import numpy as np

    from trainers import contract, data
    from trainers.contract import MissingColumns
    from trainers.suggestions import JudgedFacts, PairFacts

    reading = loss.reading(version.kind)
    wanted = _COLUMNS.get(version.kind)
    if wanted is None:
        raise UserError(f"--loss {loss.name} on {version.kind}: rules speak of pairs and of unpaired rows.")
    wanted = wanted | {name: name for name in ("chosen_score", "rejected_score") if name in reading.values}
    missing = [name for name in wanted.values() if name not in version.columns() and name != "weight"]
    if missing:
        raise MissingColumns(
            f"trainers.suggest reads {' and '.join(missing)}, which data version {version.name} does not have.\n"
            f"Add them:  {contract.scores(version)}"
        )
    present = [name for name in wanted.values() if name in version.columns()]
    read = list(dict.fromkeys([*data.columns(version.columns(), reading), *present]))
    parts: dict[str, list[Any]] = {field: [] for field in wanted}
    for table in version.batches("train", columns=read):
        contract.check_rows(table, reading, version)
        for field, name in wanted.items():
            column = np.ones(len(table)) if name not in present else table[name].to_numpy().astype(np.float64)
            parts[field].append(column)
    numbers = {field: np.concatenate(each) for field, each in parts.items()}
    for field, values in numbers.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{wanted[field]} of data version {version.name} is not finite in every row; {contract.scores(version)}"
            )
    return PairFacts(**numbers) if version.kind == "pairs" else JudgedFacts(**numbers)


_COLUMNS = {
    "pairs": {
        "chosen_tokens": "chosen_tokens",
        "rejected_tokens": "rejected_tokens",
        "ref_chosen": "ref_chosen_logps",
        "ref_rejected": "ref_rejected_logps",
    },
    "unpaired": {"tokens": "completion_tokens", "label": "label", "weight": "weight"},
}


def _weights(loss: "Loss", facts: "PairFacts | JudgedFacts") -> "list[Proposal]":
    """Of a sum: the first term counts 1, and the others begin with a fifth of what it begins with."""
    from trainers.suggestions import OTHER_TERM, PairFacts, Proposal

    if not isinstance(facts, PairFacts):
        return []
    first, *others = [_start(term, facts) for term in loss.terms]
    found = [Proposal(f"weight of {loss.terms[0].objective.name}", 1.0, f"the first term, which begins at {first:.3g}")]
    for term, start in zip(loss.terms[1:], others, strict=True):
        name = term.objective.name
        if first <= 0 or start <= 0:
            raise UserError(
                f"--loss {loss.name}: {name} begins at {start:.3g} and the first term at {first:.3g}, so no weight follows."
            )
        why = f"where the policy is the reference it begins at {start:.3g}, and weighed so at {OTHER_TERM:.0%} of the first term"
        found.append(Proposal(f"weight of {name}", float(f"{OTHER_TERM * first / start:.2g}"), why))
    return found


def _start(term: "Term", facts: "PairFacts") -> float:
    """A term's loss where the policy is the reference. UserError for one that reads more than log-probs and lengths."""
    import torch

    given = {name: torch.from_numpy(getattr(facts, name)) for name in ("chosen_tokens", "rejected_tokens")}
    for side in ("chosen", "rejected"):
        given[side] = given[f"ref_{side}"] = torch.from_numpy(getattr(facts, f"ref_{side}"))
    contract = term.objective.batch
    for field, side in contract.sides["pairs"].items():
        given |= {field: given[side], f"{field}_tokens": given[f"{side}_tokens"], f"ref_{field}": given[side]}
    needed = [field.name for field in fields(contract)]
    lacking = [name for name in needed if name not in given]
    if lacking:
        raise UserError(
            f"--loss {term.objective.name} reads {' and '.join(lacking)} too, and weights of a sum are proposed from"
            " log-probs and lengths alone: set --weights yourself."
        )
    losses = term.objective.loss(contract(**{name: given[name] for name in needed}), **term.knobs)
    if term.objective.reduction == "rows":
        return float(losses.mean())
    counted = sum(given[f"{field}_tokens"].sum() for field in contract.sides["pairs"])
    return float(losses.sum() / counted)


if __name__ == "__main__":
    sys.exit(main())
