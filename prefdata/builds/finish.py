"""The common end of every build: statistics, card and manifest of what was staged."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from prefdata import card, stats
from prefdata.errors import UserError
from prefdata.versions import Staging, Version
from schemas.manifest import Counts


def publish(
    staging: Staging, stages: Sequence[str], fields: dict[str, Any], told: Mapping[str, pa.Table] | None = None
) -> Version:
    """Add what can be computed from the staged rows, write the manifest last, and return the version.

    `stages` are those of the ledger, in order; `fields` are the manifest's that the build knows; `told` are tables of
    statistics that only the build can make.
    """
    staging.flush()
    if not staging.rows:
        raise UserError(_nothing_left(staging.counts(stages)))
    for name, table in stats.tables(fields["kind"], staging.storage, staging.files).items():
        staging.small_table(name, table)
    for name, table in (told or {}).items():
        staging.small_table(name, table)
    staging.text("README.md", card.text(staging.manifest(stages, fields), staging.schema))
    return staging.publish(staging.manifest(stages, fields))


def _nothing_left(counts: Counts) -> str:
    reasons = [f"{reason} {n:,}" for stage in counts["stages"] for reason, n in stage["set_aside"].items()]
    return f"nothing was published: all {counts['rows_in']:,} rows were set aside ({', '.join(reasons) or 'none read'})"
