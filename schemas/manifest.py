"""The manifest of a version: written last, so that a version with one is whole.

Its fields in words; `prefdata.versions` writes and checks them.
"""

from typing import Any, NotRequired, TypedDict

FORMAT = "prefdata/1"


class FileEntry(TypedDict):
    """One file of the version, checked by `prefdata verify`."""

    path: str  # relative to the version's folder, / between parts
    sha256: str
    bytes: int
    rows: NotRequired[int]  # Parquet files only


class Parent(TypedDict):
    """A version that rows were made from."""

    version: str
    logical_hash: str
    url: NotRequired[str]  # its folder or URL, where that is not below the root of the version made from it


class StageCount(TypedDict):
    """rows_in = kept + sum(set_aside.values()), for every stage."""

    stage: str
    rows_in: int
    kept: int
    set_aside: dict[str, int]


class Counts(TypedDict):
    """What went in, what came out."""

    rows_in: int  # rows of the direct parent, or rows read
    kept: int
    set_aside: int
    rows: dict[str, int]  # rows of this version by split
    stages: list[StageCount]


class Manifest(TypedDict):
    """Everything that says what a version is and where it came from."""

    format: str
    version: str
    kind: str  # pairs, completions, ...
    build: str  # the rule that made it: ingest, build-sapo-negatives, add-reference, ...
    build_key: str  # sha256 of rule, parents' content, config and model digests: equal builds share it
    config: dict[str, Any]
    seeds: dict[str, int]
    round: int
    parents: list[Parent]
    sources: list[dict[str, Any]]  # name, path, sha256, rows, format, license, origin
    tokenizer: dict[str, Any]  # digest, template, template arguments, end ids, limits
    generator: dict[str, Any] | None  # model digest, engine, dtype, batch_invariant, sampling
    reference: dict[str, Any] | None  # model digest, dtype, forward
    embeddings: NotRequired[dict[str, Any] | None]  # model that prompt_embedding comes from, and how it pools
    # of versions that score-rewards made: each scorer's name, what it is, and its fingerprint
    scorers: NotRequired[list[dict[str, Any]]]
    logical_hash: str  # sha256 over ids, text, tokens and labels; not over log-probs or file layout
    counts: Counts
    files: list[FileEntry]  # all but the manifest
    packages: dict[str, str]
    created_at: str  # UTC, ISO 8601
    seal: str  # sha256 over all other fields, so that damage to the manifest itself shows
