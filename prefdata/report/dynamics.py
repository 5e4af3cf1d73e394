"""Warnings of where log-probs go while a pair loss trains: drop, suppression, sensitivity, saturation.

The names and thresholds are those of "3D-Properties", arXiv:2406.07327, section on DPO, as this project reads it; a and b are
how far the log-probs of chosen and rejected have moved from the reference's, in nats over whole completions.
"""

from collections.abc import Callable, Sequence

from prefdata.report.alarms import Alarm, percent
from prefdata.report.charts import number
from prefdata.report.logged import Curves, Run, last, points

DROP = -1.0  # nats per token
FASTER = 5.0  # times
STEPS_DOWN = 200
BOTH_DOWN = 0.5  # share of pairs
SATURATED = 0.8  # share of rows
STEEPER = 3.0  # |G_l| / |G_w|
DISPLACED = 1.0  # <G_w, G_l> / |G_w|^2
_FELL = -1.0  # nats: below this much of a fall a ratio of slopes is noise
_SLOPE_STEPS = 100

CURE = "Add a likelihood term on the chosen side, lower the learning rate, or stop earlier."


def rejected_drops(_: Run, curves: Curves) -> Alarm | str | None:
    """Log-ratio of the rejected side below -1 nat per token and still falling."""
    title = "The rejected answers are driven far below the reference"
    found = points(curves, "logratios/rejected_per_token")
    if found is None:
        return None
    values, where = [value for _, value in found[0]], found[1]
    if values[-1] >= DROP or values[-1] >= values[-2]:
        return title
    told = f"{where}: {number(values[-1])} nats per token from the reference, and still falling"
    return Alarm("warning", title, told, f"Below {number(DROP)} nat per token. {CURE}")


def rejected_falls_faster(_: Run, curves: Curves) -> Alarm | str | None:
    """Over the last hundred steps the rejected side fell more than five times as much as chosen rose."""
    title = "Training pushes down more than up"
    chosen, rejected = (points(curves, f"logratios/{side}") for side in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        return None
    up, down = _recent(chosen[0]), _recent(rejected[0])
    if up <= 0 or down >= _FELL or -down <= FASTER * up:
        return title
    told = f"{rejected[1]}: rejected {number(down)} nats while chosen rose by {number(up)}"
    return Alarm("warning", title, told, f"More than {FASTER:g} times as much. {CURE}")


def _recent(curve: Sequence[tuple[int, float]]) -> float:
    """How far a curve went in its last hundred steps, or between its last two points if they are further apart."""
    end, value = curve[-1]
    before = next((point for point in reversed(curve[:-1]) if point[0] <= end - _SLOPE_STEPS), curve[0])
    return value - before[1]


def chosen_suppressed(_: Run, curves: Curves) -> Alarm | str | None:
    """Mean log-ratio of chosen below 0 for 200 steps of training."""
    title = "The chosen answers stay below the reference"
    curve = sorted(curves.get("train/logratios/chosen", {}).items())
    if not curve:
        return None
    since: int | None = None
    for step, value in curve:
        since = None if value >= 0 else step if since is None else since
        if since is not None and step - since >= STEPS_DOWN:
            told = f"in training: below 0 from step {since:,} to {step:,}, {number(curve[-1][1])} nats at the end"
            return Alarm("warning", title, told, f"Suppression: the margin grows while both sides lose. {CURE}")
    return title


def both_down(_: Run, curves: Curves) -> Alarm | str | None:
    """Pairs of which both sides became less likely than under the reference."""
    title = "Most pairs lose both sides"
    found = last(curves, "quadrants/both_down")
    if found is None:
        return None
    if found[0] <= BOTH_DOWN:
        return title
    told = f"{found[1]}: {percent(found[0])} of pairs have both sides below the reference"
    return Alarm("warning", title, told, f"What they lose goes to answers that nobody asked for. {CURE}")


def saturated(_: Run, curves: Curves) -> Alarm | str | None:
    """Pairs, or judged rows, whose margin is so large that a sigmoid passes no gradient, on either side."""
    title = "Most rows teach nothing any more"
    shares = [(last(curves, f"saturation/{name}"), words) for name, words in _SATURATION]
    measured = [(found, words) for found, words in shares if found is not None]
    if not measured:
        return None
    told = [
        f"{where}: {percent(share)} of rows {words}" for (share, where), words in measured if not share <= SATURATED
    ]
    advice = "A smaller beta, fewer epochs or harder pairs would use them."
    return Alarm("warning", title, "; ".join(told), advice) if told else title


_SATURATION = (("beyond_6", "have a margin beyond 6"), ("weightless", "have a weight below 0.01"))


def rejected_steeper(_: Run, curves: Curves) -> Alarm | str | None:
    """Gradient of the rejected side's log-prob far larger than that of chosen."""
    title = "The rejected side has the larger gradient"
    found = last(curves, "probe/gradient_ratio")
    if found is None:
        return None
    if found[0] <= STEEPER:
        return title
    told = f"on the probe: {number(found[0])} times that of chosen"
    return Alarm("warning", title, told, f"More than {STEEPER:g} times: steps go into pushing down. {CURE}")


def displaced(_: Run, curves: Curves) -> Alarm | str | None:
    """A gradient step that lowers rejected lowers chosen too."""
    title = "A step lowers the chosen side too"
    found = last(curves, "probe/displacement")
    if found is None:
        return None
    if found[0] <= DISPLACED:
        return title
    told = f"on the probe: <G_w, G_l> / |G_w|^2 is {number(found[0])}"
    advice = f"Above {DISPLACED:g} the chosen log-prob falls; near-duplicate pairs do this (arXiv 2410.08847). {CURE}"
    return Alarm("warning", title, told, advice)


CHECKS: tuple[Callable[[Run, Curves], Alarm | str | None], ...] = (
    rejected_drops,
    rejected_falls_faster,
    chosen_suppressed,
    both_down,
    rejected_steeper,
    displaced,
    saturated,
)
