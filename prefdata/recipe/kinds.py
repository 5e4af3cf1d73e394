"""Whether each build of a chain reads the kind of rows that the one before it makes: told before anything is computed."""

from collections.abc import Sequence

from prefdata import scorers
from prefdata.errors import UserError
from prefdata.recipe.estimates import ESTIMATES, Expected
from prefdata.recipe.reading import Step
from schemas import completions, pairs, prompts, unpaired

_ANY = (pairs.KIND, completions.KIND, unpaired.KIND, prompts.KIND)
READS = {
    "clean": _ANY,
    "generate": _ANY,
    "score-rewards": (completions.KIND, pairs.KIND),
    "build-paired": (completions.KIND, pairs.KIND),
    "build-unpaired": (pairs.KIND, completions.KIND, unpaired.KIND),
    "build-rejection-samples": (completions.KIND,),
    "build-greedy-baselines": (completions.KIND,),
    "build-sapo-negatives": (pairs.KIND, completions.KIND, unpaired.KIND),
    "add-reference": (pairs.KIND, completions.KIND, unpaired.KIND),
}


def check(steps: Sequence[Step], kind: str) -> None:
    """UserError for the first of these steps that can't read what the one before it makes; `kind` is what the first reads."""
    for step in steps:
        reads = READS[step.build]
        if kind not in reads:
            raise UserError(
                f"{step.where} ({step.build}) reads {' or '.join(reads)}, and what it is given holds {kind}"
            )
        options = step.chosen(None)
        if step.build == "score-rewards":
            scorers.check_kind(scorers.parse_all(options.scorer), kind, f"the version before {step.where}")
        nothing = Expected(kind, 0, 0, 0, 0, None, None)
        kind = ESTIMATES[step.build](nothing, options)[0].kind
