"""The page of a training run: what was trained on what, what to beware of, its curves, before and after."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prefdata import versions
from prefdata.errors import UserError
from prefdata.report import ancestry, charts, rendering, training
from prefdata.report.logged import Curves
from prefdata.report.of_version import Page

RUN = "run.json"
STEP_ZERO = "step0.json"


@dataclass(frozen=True)
class Change:
    """A held-out metric before the first step and after the last."""

    name: str
    before: float
    after: float


def is_run(path: str) -> bool:
    """Whether a path is a run folder."""
    return (Path(path) / RUN).is_file()


def page(folder: str, root: str | None = None) -> Page:
    """The report of a run folder. UserError if it holds no run."""
    run = _read(Path(folder))
    config, curves = run["config"], read_curves(Path(folder))
    checked = training.check(run, curves, _agreements(Path(folder)))
    drawings = [_lineage(part, root) for part in _parts(config)]
    context = {
        "title": Path(folder).resolve().name,
        "kind": "run",
        "sentence": _sentence(run, curves),
        "checked": checked,
        "drawings": [drawing for drawing, _ in drawings if drawing],
        "unknown": [why_not for _, why_not in drawings if why_not],
        "facts": _facts(config),
        "figures": [figure for figure in _figures(curves) if figure],
        "changes": list(_changes(run)),
        "ties_at_first": (run.get("before") or {}).get("rewards/ties", 0) > 0.5,
    }
    return Page(rendering.render("run.html", context), len(checked.serious))


def _read(folder: Path) -> dict[str, Any]:
    content = _json(folder / RUN)
    known = str(content.get("format", "")).startswith("prefdata-run/") and isinstance(content.get("config"), dict)
    if not known or "parts" not in content["config"].get("data", {}):
        raise UserError(f"{folder / RUN} is not what this version of trainers.run writes")
    return content


def _agreements(folder: Path) -> dict[str, dict[str, Any]]:
    """What the trainer found at step 0, by version; empty where it wrote nothing."""
    path = folder / STEP_ZERO
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read: {problem}") from problem
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object")
    return content


def read_curves(folder: Path) -> Curves:
    """Every scalar that the run logged, by name and step: of training and held out. A value logged again counts last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = folder / "tensorboard"
    if not events.is_dir():
        return {}
    read = EventAccumulator(str(events), size_guidance={"scalars": 0})
    read.Reload()
    return {name: {point.step: point.value for point in read.Scalars(name)} for name in read.Tags()["scalars"]}


def _sentence(run: Mapping[str, Any], curves: Curves) -> str:
    config = run["config"]
    data, policy = config["data"], config["policy"]
    steps = run.get("steps") or max((step for curve in curves.values() for step in curve), default=0)
    state = "Finished after" if run["status"] == "finished" else "Not finished, so far"
    best = f" The model is that of step {run['best_step']:,}, the best one held out." if run.get("best_step") else ""
    return f"{config['loss']} on {data['version']}, starting from {policy['name']}. {state} {steps:,} steps.{best}"


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    told = {
        "loss": config["loss"],
        "knobs": ", ".join(f"{name} {value}" for name, value in config.get("knobs", {}).items()),
        "data": ", ".join(f"{part['version']} · {part['logical_hash'][:12]}" for part in _parts(config)),
        "policy": f"{config['policy']['name']} · {config['policy'].get('digest', '')[:12]}",
    }
    rest = {name: value for name, value in config.items() if name not in {*told, "chat_template"} and value is not None}
    return [(name.replace("_", " "), str(value)) for name, value in {**told, **rest}.items() if value != ""]


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The versions that were trained on, each with its logical hash."""
    parts: list[Mapping[str, Any]] = config["data"]["parts"]
    return parts


def _lineage(part: Mapping[str, Any], root: str | None) -> tuple[Markup | None, str]:
    """Where a version came from, if the one that the run names is there; else why that can't be drawn."""
    name = part["version"]
    try:
        version = versions.find(name, root=root)
    except UserError as problem:
        return None, f"where {name} came from cannot be drawn: {problem}"
    if version.logical_hash != part["logical_hash"]:
        return None, f"the {name} in {version.root} is not the one that was trained on: its logical hash differs"
    return ancestry.drawing(ancestry.boxes(version)), ""


def _changes(run: Mapping[str, Any]) -> Iterator[Change]:
    before, after = run.get("before") or {}, run.get("after") or {}
    for name in training.ordered(before.keys() & after.keys()):
        yield Change(name, before[name], after[name])


# -- curves --------------------------------------------------------------------------------------------------------


def _figures(curves: Curves) -> Iterator[Markup | None]:
    def one(name: str, label: str, css: str, *, of: str = "train") -> charts.Curve:
        points = sorted(curves.get(f"{of}/{name}", {}).items())
        return charts.Curve(label, css, [step for step, _ in points], [value for _, value in points])

    def with_held_out(name: str) -> list[charts.Curve]:
        return [one(name, "train", "plain"), one(name, "held out", "chosen", of="eval")]

    def both(name: str, *, of: str = "train") -> list[charts.Curve]:
        return [one(name.format(side), side, side, of=of) for side in ("chosen", "rejected")]

    yield charts.curves("Loss", with_held_out("loss"))
    yield charts.curves("Reward margin", with_held_out("rewards/margins"), zero=True)
    yield charts.curves(
        "Accuracy", with_held_out("rewards/accuracies"), "Share of pairs whose chosen side has the higher reward."
    )
    yield charts.curves("Log-prob per token", both("logps/{}_per_token"), "Nats, of the policy, on the training rows.")
    yield charts.curves("Log-prob per token, held out", both("logps/{}_per_token", of="eval"), "Nats, of the policy.")
    yield charts.curves(
        "Rewards", both("rewards/{}"), "If both fall, the chosen answers become less likely too.", zero=True
    )
    yield charts.curves(
        "Moved from the reference",
        both("logratios/{}_per_token"),
        "Nats per token, log policy - log reference, means over pairs.",
        zero=True,
    )
    yield charts.curves(
        "Moved from the reference, held out", both("logratios/{}_per_token", of="eval"), "Nats per token.", zero=True
    )
    yield charts.curves(
        "Rejected answers that fell furthest",
        [
            one("logratios/rejected_per_token_p10", "train, lowest tenth below", "plain"),
            one("logratios/rejected_per_token_p10", "held out", "rejected", of="eval"),
        ],
        "Nats per token from the reference.",
        zero=True,
    )
    yield charts.curves(
        "Which way both sides went",
        [
            one("quadrants/chosen_up_rejected_down", "apart", "chosen"),
            one("quadrants/both_down", "both down", "rejected"),
            one("quadrants/both_up", "both up", "plain"),
        ],
        "Shares of the training pairs, from the reference on; what is missing to 1 went the wrong way.",
    )
    yield charts.curves(
        "Orders that disagree",
        with_held_out("orders/disagree"),
        "Share of pairs whose rewards say one order and whose log-probs (sums) the other.",
    )
    yield charts.curves(
        "Saturation",
        [one("saturation/beyond_6", "margin beyond 6", "plain"), one("saturation/weightless", "no weight", "rejected")],
        "Shares of the training pairs; of losses with a beta.",
    )
    yield charts.curves(
        "Probe: log-prob per token",
        [
            one("probe/unseen_per_token", "unseen answers", "chosen", of="eval"),
            one("probe/unrelated_per_token", "answers to other prompts", "rejected", of="eval"),
        ],
        "Nats, the same held-out rows every time. If the second rises while the first falls, probability disperses.",
    )
    yield charts.curves(
        "Probe: gradients",
        [
            one("probe/gradient_ratio", "rejected / chosen", "rejected", of="eval"),
            one("probe/displacement", "displacement", "plain", of="eval"),
        ],
        "Displacement above 1: a step lowers chosen too.",
        zero=True,
    )
    yield charts.curves(
        "Probe: likeness of both sides",
        [one("probe/ches", "CHES", "plain", of="eval")],
        "Of the last hidden states; the higher, the likelier it is that a step lowers chosen too (arXiv 2410.08847).",
    )
    yield charts.curves(
        "Probe: greedy answers that repeat themselves",
        [one("probe/greedy_repetition", "share of runs of 4 tokens", "plain", of="eval")],
        "A policy whose probability disperses falls into loops.",
        zero=True,
    )
    yield charts.curves(
        "Probe: drift from the start",
        [
            one("probe/start_kl", "KL(start || policy)", "plain", of="eval"),
            one("probe/kl_to_start", "KL(policy || start)", "rejected", of="eval"),
        ],
        "Nats per token, on answers that the model drew before the first step. The second reads low, about 1 at most, once the two "
        "have parted.",
        zero=True,
    )
    yield charts.curves(
        "Probe: length of drawn answers",
        [one("probe/answer_tokens", "tokens", "plain", of="eval")],
        "Mean tokens of the answers that the policy draws to the same prompts with the same seeds; long ones are cut.",
        zero=True,
    )
    yield charts.curves("Negative log-likelihood", with_held_out("nll_loss"), "Nats per token of the good answers.")
    yield charts.curves("Entropy", with_held_out("entropy"), "Nats per token.")
    yield charts.curves("Gradient norm", [one("grad_norm", "gradient norm", "plain")])
    yield charts.curves(
        "Time of a step", [one("seconds_per_step", "seconds", "plain")], "Without evaluations and saving."
    )
    yield charts.curves("Memory", [one("peak_memory_gib", "peak", "plain")], "GiB, the highest so far of any process.")
    yield charts.curves("Learning rate", [one("learning_rate", "learning rate", "plain")])
