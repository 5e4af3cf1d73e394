"""The table and the page of a comparison of objectives, from the numbers that trainers.compare wrote down."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefdata.errors import UserError
from prefdata.report import rendering
from prefdata.report.charts import MINUS
from prefdata.report.of_version import Page
from prefdata.report.strips import Strip, strips

CONTENT, TABLE, PAGE = "comparison.json", "comparison.md", "comparison.html"
FORMAT = "prefdata-comparison/1"
Content = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of every run; `drift`: told as what it changed by from the model that training starts from."""

    name: str
    label: str
    digits: int
    meaning: str
    drift: bool = False


MEASURES = (
    Measure("pair_accuracy", "pair accuracy", 3, "share of held-out pairs whose chosen side is likelier per token"),
    Measure(
        "reward_accuracy",
        "reward accuracy",
        3,
        "share of held-out pairs whose chosen side gained more log-prob (sums) over the stored reference",
    ),
    Measure("checked", "checked answers", 3, "mean of the checker over greedy answers to held-out prompts"),
    Measure(
        "kl", "KL", 2, "KL(policy || start), nats per answer, estimated on one answer drawn to each held-out prompt"
    ),
    Measure("kl_per_token", "KL per token", 4, "the same over the answers' tokens"),
    Measure("answer_tokens", "length drift", 1, "tokens of greedy answers, change from the start", drift=True),
    Measure(
        "chosen_per_token",
        "chosen drift",
        3,
        "nats per token of held-out chosen sides, change from the start",
        drift=True,
    ),
    Measure("rejected_per_token", "rejected drift", 3, "the same of the rejected sides", drift=True),
    Measure("seconds_per_step", "s / step", 2, "seconds of an optimiser step at the end of the run"),
)


@dataclass(frozen=True)
class Line:
    """One objective: each measure's value of every seed."""

    loss: str
    values: Mapping[str, Sequence[float]]


def is_comparison(path: str) -> bool:
    """Whether a path is a folder that trainers.compare wrote in to its end."""
    return (Path(path) / CONTENT).is_file()


def read(folder: str) -> Content:
    """The numbers of a comparison. UserError if they are not what trainers.compare writes."""
    path = Path(folder) / CONTENT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read: {problem}") from problem
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not what this version of trainers.compare writes")
    return content


def lines(content: Content) -> list[Line]:
    """The objectives in the order they were first run in."""
    losses = dict.fromkeys(run["loss"] for run in content["runs"])
    return [Line(loss, {one.name: _values(content, loss, one) for one in MEASURES}) for loss in losses]


def _values(content: Content, loss: str, measure: Measure) -> list[float]:
    runs = [run for run in content["runs"] if run["loss"] == loss and run.get(measure.name) is not None]
    start = content["start"].get(measure.name, math.nan) if measure.drift else 0.0
    return [run[measure.name] - start for run in runs]


def table(content: Content) -> str:
    """A markdown table: mean over seeds, and standard deviation where there are several."""
    measures = _shown(content)
    start = [_cell([content["start"][one.name]], one) if _absolute(content, one) else "" for one in measures]
    rows = [
        ["before", *start],
        *([line.loss, *(_cell(line.values[one.name], one) for one in measures)] for line in lines(content)),
    ]
    head = ["loss", *(one.label for one in measures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _shown(content: Content) -> list[Measure]:
    return [one for one in MEASURES if any(one.name in run for run in content["runs"])]


def _absolute(content: Content, measure: Measure) -> bool:
    """Whether the model that training starts from has the number itself."""
    told = not measure.drift and measure.name in content["start"]
    # where the start is the reference it has gained nothing over it, and ties are no accuracy
    return told and not (measure.name == "reward_accuracy" and content["start"]["is_reference"])


def _cell(values: Sequence[float], measure: Measure) -> str:
    if not values:
        return ""
    sign = "+" if measure.drift else ""
    mean = f"{np.mean(values):{sign}.{measure.digits}f}".replace("-", MINUS)
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{measure.digits}f}"


def page(content: Content) -> Page:
    """One HTML page: what was compared, a strip of dots for every measure, the table."""
    measures, found = _shown(content), lines(content)
    figures = [
        strips(
            f"{one.label[0].upper()}{one.label[1:]}",
            [Strip(line.loss, line.values[one.name]) for line in found],
            level=content["start"][one.name] if _absolute(content, one) else 0.0 if one.drift else None,
            note=f"{one.meaning[0].upper()}{one.meaning[1:]}.",
        )
        for one in measures
    ]
    seeds = sorted({run["seed"] for run in content["runs"]})
    context = {
        "title": f"{len(found)} objectives on {content['data']['version']}",
        "kind": "comparison",
        "sentence": sentence(content, len(seeds)),
        "figures": [figure for figure in figures if figure],
        "measures": measures,
        "start": [_cell([content["start"][one.name]], one) if _absolute(content, one) else "" for one in measures],
        "rows": [(line.loss, [_cell(line.values[one.name], one) for one in measures]) for line in found],
        "several": len(seeds) > 1,
        "facts": _facts(content),
    }
    return Page(rendering.render("comparison.html", context), 0)


def sentence(content: Content, seeds: int) -> str:
    """What was compared with what."""
    start = content["start"]
    which = "the version's own reference" if start["is_reference"] else "not the version's reference"
    return (
        f"Equal rows, steps and batches for all, {seeds} {'seed' if seeds == 1 else 'seeds'} each, starting from {start['name']}"
        f" ({which}). Drift and KL are from that model; KL is estimated on answers drawn from the policy, not on held-out rows."
    )


def _facts(content: Content) -> list[tuple[str, str]]:
    asked = {name.replace("_", " "): str(value) for name, value in content["asked"].items() if value is not None}
    budget = {name.replace("_", " "): str(value) for name, value in content["budget"].items() if value is not None}
    knobs = {
        f"{loss}": ", ".join([f"lr {_lr(content, loss):g}", *(f"{name} {value}" for name, value in each.items())])
        for loss, each in content["knobs"].items()
    }
    return [*budget.items(), *asked.items(), *knobs.items()]


def _lr(content: Content, loss: str) -> float:
    rate: float = next(run["lr"] for run in content["runs"] if run["loss"] == loss)
    return rate
