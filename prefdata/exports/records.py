"""Rows of a version as the records they were made from, for targets that read text alone."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from prefdata.exports.target import CannotHold, Form, Mapped
from prefdata.rows import COLUMNS, records


def form(kind: str, as_json: Callable[[Any], dict[str, Any]], *, with_ids: bool = False) -> Form:
    """The form of a target in which each record is a JSON object. `as_json` raises CannotHold where it can't be one.

    with_ids: the object also gets the row's `row_id`, by which it can be joined to the version.
    """

    def mapped(table: pa.Table) -> Mapped:
        lines, left_out = [], []
        for place, (row_id, record) in enumerate(zip(table["row_id"].to_pylist(), records(kind, table), strict=True)):
            try:
                found = as_json(record)
            except CannotHold as no:
                left_out.append((place, no.aside))
                continue
            lines.append(json.dumps({"row_id": row_id, **found} if with_ids else found, ensure_ascii=False))
        return Mapped(lines, left_out)

    return Form(frozenset({*COLUMNS[kind], *(["row_id"] if with_ids else [])}), mapped)
