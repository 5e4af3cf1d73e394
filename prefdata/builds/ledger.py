"""One ledger line for a row of the parent, from what was made of it and what was not."""

from collections.abc import Sequence
from typing import Any

from prefdata.records import SetAside
from schemas.ledger import KEPT, SET_ASIDE


def line(
    row_id: str, made: Sequence[str], failures: Sequence[tuple[str, SetAside]], stages: Sequence[str]
) -> dict[str, Any]:
    """Kept if anything was made, with the reasons of what was not; else why what came furthest went no further.

    made: row_ids in the new version; failures: (stage, why) of each thing not made, at least one if nothing was made;
    stages: their order.
    """
    if made:
        shortfall = [aside.reason for _, aside in failures]
        return {"row_id": row_id, "status": KEPT, "stage": "publish", "made": [*made], "shortfall": shortfall}
    stage, aside = max(failures, key=lambda failure: stages.index(failure[0]))
    return {
        "row_id": row_id,
        "status": SET_ASIDE,
        "stage": stage,
        "reason": aside.reason,
        "detail": aside.detail or None,
    }
