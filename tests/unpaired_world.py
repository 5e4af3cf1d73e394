"""What tests of unpaired rows share: a table of judged completions with frozen partners and the model's log-probs."""

import pyarrow as pa

from prefdata.logical import schema_of
from schemas import unpaired
from tests.tiny_world import completion_rows, with_reference


def judged_table(count: int, model: str, *, seed: int, partners: bool = True) -> pa.Table:
    """Every other row desirable: its answer repeats the prompt's first word; the others' answers are another row's."""
    rows = completion_rows(count, seed=seed)
    sides = ("completion", "completion_ids", "completion_tokens")
    answers = [{name: row[name] for name in sides} for row in rows]
    for place, row in enumerate(rows):
        row["label"] = place % 2 == 0
        row["weight"] = None if place % 3 else 1.0
        if not row["label"]:
            row |= answers[place - 1]
        other = answers[(place + 3) % count]
        row |= {
            "partner_row_id": rows[(place + 3) % count]["row_id"],
            "partner_ids": other["completion_ids"],
            "partner_tokens": other["completion_tokens"],
        }
    schema = schema_of(unpaired.KIND, *([unpaired.PARTNER] if partners else []))
    return with_reference(pa.Table.from_pylist(rows, schema=schema), model)
