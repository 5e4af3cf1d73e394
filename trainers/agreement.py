"""Step 0: does the policy give the log-probs that the version stores of its reference?

Where both are the same weights, a large difference means that template, mask, precision or attention differ between
the two. Where they are different models it is a fact worth seeing, and no error.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from prefdata import logprobs
from prefdata.report.of_run import STEP_ZERO
from prefdata.versions import Version
from trainers import contract
from trainers.processes import Say

if TYPE_CHECKING:
    from trainers.loop import Loop
    from trainers.plan import Plan

PROBE_ROWS = 32
# nats per token that the same weights may differ by; bfloat16 is kernel and padding noise
ALLOWED = {"float32": 1e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Agreement:
    """Mean |policy - stored reference| over the tokens of a few rows."""

    mean: float  # nats per token
    tokens: int
    rows: int
    same_model: bool
    allowed: float

    @property
    def suspicious(self) -> bool:
        """Same weights, other numbers."""
        return self.same_model and not self.mean <= self.allowed

    def sentence(self, policy: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
        """What to tell a person."""
        which = (
            f"the policy is the stored reference ({_named(policy)})"
            if self.same_model
            else f"the policy ({_named(policy)}) is another model than the stored reference ({_named(reference)})"
        )
        if not self.same_model and policy.get("digest") == reference.get("digest"):
            which += ", with the same weights and other settings"
        text = f"{which}; mean |policy - reference| is {self.mean:.2g} nats per token ({self.tokens:,} tokens of {self.rows} rows)"
        if self.suspicious:
            text += (
                f"\nwarning: for the same weights that is more than {self.allowed:g}: precision, attention or the scored tokens"
                " differ from when the reference was stored"
            )
        return text


def step_zero(plan: "Plan", model: Any, loop: "Loop", say: Say) -> None:
    """How policy and stored reference agree, for every version; said, and kept in the run folder for its report."""
    if plan.loss.head == "score":
        return  # a reward model gives no log-probs
    several = len(plan.sources.versions) > 1
    every: dict[str, Agreement | None] = {}
    for version in plan.sources.versions:
        name = plan.sources.label(version)
        found = every[name] = _of_version(plan, version, model, loop)
        if found is None:
            said = f"{name} stores no reference log-probs, so there is nothing to compare the policy with"
        else:
            sentence = found.sentence(plan.config["policy"], version.manifest["reference"] or {})
            said = f"{name}: {sentence}" if several else sentence
        say(f"step 0: {said}")
    keep(Path(str(loop.args.output_dir)), every)


def _of_version(plan: "Plan", version: Version, model: Any, loop: "Loop") -> Agreement | None:
    sides = plan.loss.reading(version.kind).sides
    rows = probe(version, version.splits[-1], sides)
    reference = version.manifest["reference"]
    if rows is None or not reference:
        return None
    return measure(
        model,
        rows,
        sides,
        same_model=contract.same_model(plan.config["policy"], reference),
        dtype=plan.config["dtype"],
        context=loop.autocast_smart_context_manager(),
    )


def keep(folder: Path, found: Mapping[str, Agreement | None]) -> None:
    """Write what was found, by version, into the run folder: the run's report tells it."""
    content = {name: asdict(agreement) for name, agreement in found.items() if agreement is not None}
    (folder / STEP_ZERO).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def probe(version: Version, split: str, sides: tuple[str, ...]) -> pa.Table | None:
    """A few rows with their stored per-token log-probs; None if the version has none."""
    names = [f"ref_{side}_token_logps" for side in sides]
    if not set(names) <= set(version.columns()):
        return None
    columns = ["prompt_ids", *(f"{side}_ids" for side in sides), *names]
    return next(version.batches(split, columns=columns, rows=PROBE_ROWS), None)


def measure(
    model: Any,
    rows: pa.Table,
    sides: tuple[str, ...],
    *,
    same_model: bool,
    dtype: str,
    context: AbstractContextManager[Any],
) -> Agreement:
    """Scores the probe's rows with the policy as training will."""
    prompts = rows["prompt_ids"].to_pylist()
    branches = [rows[f"{side}_ids"].to_pylist() for side in sides]
    trees = [logprobs.Tree(prompt, ids) for prompt, *ids in zip(prompts, *branches, strict=True)]
    with torch.no_grad(), context:
        scored = logprobs.score(model, trees)
    stored = zip(*(rows[f"ref_{side}_token_logps"].to_pylist() for side in sides), strict=True)
    gaps = [
        np.abs(own.astype(np.float64) - np.asarray(theirs, np.float64))
        for tree, row in zip(scored, stored, strict=True)
        for own, theirs in zip(tree, row, strict=True)
    ]
    every = np.concatenate(gaps)
    return Agreement(float(every.mean()), every.size, rows.num_rows, same_model, ALLOWED[dtype])


def _named(model: Mapping[str, Any]) -> str:
    return f"{model.get('name', 'unnamed')}@{str(model.get('digest', '?'))[:12]}"
