"""The page of a version: what it is, what to beware of, where it came from, what became of its rows, how they look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefdata.errors import UserError
from prefdata.logical import SIDES
from prefdata.report import alarms, ancestry, pieces, plots, rendering, rows, sample, shortcuts
from prefdata.report.probe import FEWEST_GROUPS, TELLS
from prefdata.versions import Version
from schemas.reasons import REASONS

_ROWS = {
    "pairs": "preference pairs",
    "completions": "prompts with one completion each",
    "prompts": "prompts without answers",
    "unpaired": "completions, each judged by itself",
}


@dataclass(frozen=True)
class Page:
    """A page and what stands at its top."""

    html: str
    alarms: int  # warnings and errors; notes don't count


@dataclass(frozen=True)
class Step:
    """A stage of the funnel; shares are of the rows that went into the first one."""

    name: str
    rows_in: int
    kept: int
    share_in: float
    share_kept: float
    reasons: list[tuple[str, int, str]]  # name, rows, meaning


def page(version: Version, *, seed: int = 0) -> Page:
    """The report. Reads the stats tables and a bounded sample of rows; DamagedVersion if those are not what was published."""
    if version.kind not in SIDES:
        raise UserError(f"{version.name} holds {version.kind}; reports are of {', '.join(SIDES)}")
    drawn = sample.draw(version, seed=seed)
    decoder, why_not = pieces.decoder(version)
    sides = SIDES[version.kind]
    found = alarms.check(_tables(version), version.manifest["counts"], referenced=_referenced(version))
    lines = shortcuts.probed(drawn.rows, decoder) if len(sides) == 2 else []
    told = [line for line in lines if line.finding.auc and line.finding.auc.tells]
    shown = rows.shown(drawn.rows, sides, decoder)
    context = {
        "title": version.name,
        "kind": version.kind,
        "sentence": sentence(version),
        "checked": found,
        "told": told,
        "probe": lines,
        "probe_rows": drawn.sentence(shortcuts.MOST_PAIRS),
        "tells": TELLS,
        "fewest": FEWEST_GROUPS,
        "lineage": ancestry.drawing(ancestry.boxes(version)),
        "facts": _facts(version),
        "counts": version.manifest["counts"],
        "funnel": funnel(version.manifest["counts"]["stages"]),
        "shortfall": _shortfall(version),
        "groups": plots.groups(version.kind, drawn.rows),
        "plot_rows": drawn.sentence(),
        "rows": shown,
        "shown_rows": drawn.sentence(len(shown)),
        "badges": sorted({badge for row in shown for badge in row.badges}),
        "unread": why_not,
        "referenced": _referenced(version),
        "segments": any(name == "segment" for row in shown for answer in row.answers for name, _ in answer.parts),
    }
    return Page(rendering.render("version.html", context), len(found.serious) + len({line.question for line in told}))


def sentence(version: Version) -> str:
    """What the version is."""
    manifest = version.manifest
    held = manifest["counts"]["rows"]
    splits = ", ".join(f"{held[split]:,} {split}" for split in version.splits)
    parents = f" from {' and '.join(version.parents)}" if version.parents else ""
    day = manifest["created_at"].partition("T")[0]
    reference = manifest["reference"]
    known = f" Each carries its log-probs under {reference.get('name', 'a reference model')}." if reference else ""
    return (
        f"{sum(held.values()):,} {_ROWS.get(version.kind, version.kind)} ({splits or 'none'}), made by "
        f"{manifest['build']}{parents} on {day}.{known}"
    )


def funnel(stages: Sequence[Any]) -> list[Step]:
    """Stages with what was kept, and why the rest was not."""
    first = max((stage["rows_in"] for stage in stages), default=0) or 1
    return [
        Step(
            stage["stage"],
            stage["rows_in"],
            stage["kept"],
            stage["rows_in"] / first,
            stage["kept"] / first,
            [
                (name, n, REASONS.get(name, ""))
                for name, n in sorted(stage["set_aside"].items(), key=lambda each: -each[1])
            ],
        )
        for stage in stages
    ]


def _referenced(version: Version) -> bool:
    return any(f"ref_{side}_logps" in version.columns() for side in SIDES[version.kind])


def _tables(version: Version) -> dict[str, list[dict[str, Any]]]:
    """Every stats table, as rows."""
    return {_name(entry["path"]): version.read(entry).to_pylist() for entry in version.files("stats")}


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")


def _shortfall(version: Version) -> list[tuple[str, int, str]]:
    lines = _tables(version).get("ledger_shortfall", [])
    return [(line["reason"], line["rows"], REASONS.get(line["reason"], "")) for line in lines]


def _facts(version: Version) -> list[tuple[str, str]]:
    manifest = version.manifest
    told: dict[str, object] = {
        "folder": version.url,
        "round": manifest["round"] or None,
        "seeds": _listed(manifest["seeds"]),
        "config": _listed(manifest["config"]),
        "tokenizer": _model(manifest["tokenizer"]),
        "generator": _model(manifest["generator"]),
        "sampling": _listed((manifest["generator"] or {}).get("sampling") or {}),
        "reference": _model(manifest["reference"]),
        "logical hash": version.logical_hash,
    }
    return [(name, str(value)) for name, value in told.items() if value]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _model(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return ""
    parts = (entry.get("name"), str(entry.get("digest", ""))[:12], entry.get("engine"), entry.get("dtype"))
    return " · ".join(str(part) for part in parts if part)
