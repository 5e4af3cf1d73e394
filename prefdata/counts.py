"""Rows in = rows kept + rows set aside, per stage and reason: the sums of a ledger."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from schemas.ledger import SET_ASIDE
from schemas.manifest import Counts, StageCount


class Tally:
    """Adds up ledger lines as they are staged or read back."""

    def __init__(self) -> None:
        self.rows = 0
        self.aside: Counter[tuple[str, str]] = Counter()

    def add(self, ledger: pa.Table) -> None:
        """Count lines of a ledger."""
        self.rows += ledger.num_rows
        columns = (ledger[name].to_pylist() for name in ("status", "stage", "reason"))
        for status, stage, reason in zip(*columns, strict=True):
            if status == SET_ASIDE:
                self.aside[stage, reason] += 1

    def counts(self, stages: Sequence[str], rows: Mapping[str, int]) -> Counts:
        """The manifest's counts. `stages` gives their order; a stage the ledger names and the order lacks is a bug."""
        unknown = {stage for stage, _ in self.aside} - set(stages)
        if unknown:
            raise ValueError(f"ledger lines name stages {sorted(unknown)} that are not among {list(stages)}")
        left = self.rows
        listed: list[StageCount] = []
        for stage in stages:
            reasons = {reason: n for (at, reason), n in sorted(self.aside.items()) if at == stage}
            kept = left - sum(reasons.values())
            listed.append({"stage": stage, "rows_in": left, "kept": kept, "set_aside": reasons})
            left = kept
        aside = sum(self.aside.values())
        return {"rows_in": self.rows, "kept": left, "set_aside": aside, "rows": dict(rows), "stages": listed}


def problems(stated: Counts) -> list[str]:
    """What does not add up in a manifest's counts."""
    found = []
    if stated["rows_in"] != stated["kept"] + stated["set_aside"]:
        found.append("counts: rows_in is not kept + set_aside")
    left = stated["rows_in"]
    for stage in stated["stages"]:
        if stage["rows_in"] != left:
            found.append(f"counts: stage {stage['stage']} takes {stage['rows_in']} rows, the one before kept {left}")
        if stage["rows_in"] != stage["kept"] + sum(stage["set_aside"].values()):
            found.append(f"counts: stage {stage['stage']}: rows_in is not kept + set_aside")
        left = stage["kept"]
    if left != stated["kept"]:
        found.append("counts: the last stage does not keep what the version keeps")
    return found
