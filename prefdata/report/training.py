"""Warnings of a training run, from the numbers that it logged.

Rewards are signed as the trainer logs them: beta times how far the policy's log-prob moved from the reference's, where
the loss reads one.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefdata.report import dynamics
from prefdata.report.alarms import LEVELS, Alarm, Checked, percent
from prefdata.report.charts import number
from prefdata.report.dynamics import CURE
from prefdata.report.logged import Curves, Run, moved

_FIRST = ("loss", "rewards/margins", "rewards/accuracies", "logps/accuracies", "logps/chosen_per_token")
_TOLD = 5  # metrics that are named


def check(run: Run, curves: Curves, agreements: Mapping[str, Mapping[str, Any]]) -> Checked:
    """Every check that the numbers allow; NaN passes none. `agreements`: what was found before the first step, by version."""
    looked = [*step_zero(agreements), *(look(run, curves) for look in _CHECKS)]
    alarms = sorted((each for each in looked if isinstance(each, Alarm)), key=lambda each: LEVELS.index(each.level))
    return Checked(tuple(alarms), tuple(each for each in looked if isinstance(each, str)))


def ordered(names: Iterable[str]) -> list[str]:
    """Metrics in reading order: what is judged by first, the others by name."""
    return sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def _unfinished(run: Run, _: Curves) -> Alarm | None:
    if run["status"] == "finished":
        return None
    return Alarm("note", "Not finished", f"its status is {run['status']}", "The command that began it goes on with it.")


def step_zero(agreements: Mapping[str, Mapping[str, Any]]) -> list[Alarm | str]:
    """At step 0 the policy still is the reference, if it starts from it: then both must give the same log-probs."""
    return [_compared(version, found) for version, found in agreements.items()]


def _compared(version: str, found: Mapping[str, Any]) -> Alarm | str:
    told = f"mean |policy - reference| was {found['mean']:.2g} nats per token ({found['tokens']:,} tokens of {version})"
    if not found["same_model"]:
        return Alarm("note", "The policy is another model than the reference", told, "Meant so in later rounds.")
    if found["mean"] <= found["allowed"]:
        return f"Step 0 agrees with the stored reference: {told}"
    advice = "Precision, attention or the scored tokens differ from when the reference was stored: add it again."
    return Alarm("error", "Step 0 disagrees with the stored reference", told, advice)


def _not_finite(run: Run, curves: Curves) -> Alarm | str:
    title = "Numbers that are not finite"
    first = {
        name: min(steps)
        for name, curve in curves.items()
        if (steps := [step for step, value in curve.items() if not math.isfinite(value)])
    }
    told = [
        f"{name} from step {step:,} on" for name, step in sorted(first.items(), key=lambda each: (each[1], each[0]))
    ]
    for when in ("before", "after"):
        told += [f"{name} {when} training" for name, value in (run.get(when) or {}).items() if not math.isfinite(value)]
    if not told:
        return title
    more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    advice = "NaN or infinite values reach the weights: lower the learning rate, or look at the rows of that step."
    return Alarm("error", title, ", ".join(told[:_TOLD]) + more, advice)


def _chosen_falls(run: Run, curves: Curves) -> Alarm | str | None:
    title = "The chosen answers become less likely"
    found = moved(curves, "logps/chosen_per_token")
    if found is None:
        return None
    before, after, where = found
    if after >= before - 0.01:
        return title
    other = moved(curves, "logps/rejected_per_token")
    beside = f"; the rejected ones from {number(other[0])} to {number(other[1])}" if other else ""
    told = f"{where}: from {number(before)} to {number(after)} nats per token{beside}"
    advice = f"Margins grow by pushing the rejected side down harder (arXiv 2406.07327). {CURE}"
    return Alarm("warning", title, told, advice)


def _rejected_drops(run: Run, curves: Curves) -> Alarm | str | None:
    title = "The rejected answers are driven far down"
    found = moved(curves, "logps/rejected_per_token")
    if found is None:
        return None
    before, after, where = found
    told = f"{where}: from {number(before)} to {number(after)} nats per token"
    return title if after >= before - 1 else Alarm("warning", title, told, f"More than 1 nat per token. {CURE}")


def _likelihood(run: Run, curves: Curves) -> Alarm | str | None:
    title = "Held-out likelihood got worse"
    before, after = (run.get("before") or {}).get("nll_loss"), (run.get("after") or {}).get("nll_loss")
    if before is None or after is None:
        return None
    if after <= before * 1.05:
        return title
    found = f"from {before:.3f} to {after:.3f} nats per token, {percent(after / before - 1)} more"
    return Alarm("warning", title, found, "The model forgets how to write good answers while it learns to rank them.")


def _dispersion(run: Run, curves: Curves) -> Alarm | str | None:
    title = "Probability spreads to what was never seen"
    entropy, chosen = moved(curves, "entropy"), moved(curves, "logps/chosen_per_token")
    if entropy is None or chosen is None:
        return None
    if entropy[1] <= entropy[0] * 1.05 or chosen[1] >= chosen[0]:
        return title
    found = f"{entropy[2]}: entropy from {entropy[0]:.2f} to {entropy[1]:.2f} nats while the chosen log-prob fell"
    return Alarm("warning", title, found, f"Both sides lose, other answers win. {CURE}")


def _nothing_learnt(run: Run, curves: Curves) -> Alarm | str | None:
    title = "No better than chance on held-out pairs"
    after = (run.get("after") or {}).get("rewards/accuracies")
    if after is None:
        return None
    found = f"accuracy {percent(after)}"
    advice = "Train longer, or look at the data: labels may be noise."
    return title if after > 0.5 else Alarm("warning", title, found, advice)


def _no_held_out(run: Run, curves: Curves) -> Alarm | None:
    if run["status"] != "finished" or run.get("after"):
        return None
    return Alarm("note", "No held-out rows", "nothing was measured before and after", "The version has no test split.")


_CHECKS: tuple[Callable[[Run, Curves], Alarm | str | None], ...] = (
    _not_finite,
    _chosen_falls,
    _rejected_drops,
    _likelihood,
    _dispersion,
    *dynamics.CHECKS,
    _nothing_learnt,
    _unfinished,
    _no_held_out,
)
