"""What stands in `_export.json`, beside the rows of a version in the form of another program.

The underscore keeps readers of data from taking the file for rows.
"""

from typing import Any, TypedDict

from schemas.manifest import FileEntry

FORMAT = "prefdata-export/1"
MANIFEST = "_export.json"
LEFT_OUT = "_left_out.jsonl"  # one line per row that the target cannot hold: row_id, split, reason, detail


class Origin(TypedDict):
    """The version whose rows these are."""

    version: str
    kind: str
    logical_hash: str
    seal: str  # of its manifest: covers every byte of it


class SplitCount(TypedDict):
    """rows = exported + sum(left_out.values())."""

    rows: int  # of the version
    exported: int
    left_out: dict[str, int]  # by reason


class Export(TypedDict):
    """Everything that says what an export is and what it lacks."""

    format: str
    target: str
    version: Origin
    splits: dict[str, SplitCount]
    columns_left_out: dict[str, int]  # columns without a place in the target: rows that hold a value there
    sources: list[dict[str, Any]]  # as in the version's manifest: name, licence, origin, rows, ...
    tokenizer: dict[str, Any]  # as there, without the template's text
    reference: dict[str, Any] | None
    files: list[FileEntry]  # all but this one
