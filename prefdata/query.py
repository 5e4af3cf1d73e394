"""SQL over versions: DuckDB in memory, with views of the Parquet files. Read-only.

    versions                          one line per version
    v1, v2, ...                       the rows of a version, with their split
    pairs, completions, unpaired, prompts      the rows of all versions of a kind, with their version and split
    ledger                            the ledgers of all versions
    lengths, similarity, reference    the stats tables of all versions (see `schemas.stats`)

Tables of several versions are joined by column name; a column that a version lacks is null there.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from prefdata import versions
from prefdata.errors import UserError
from prefdata.logical import BASE
from prefdata.storage import Storage
from prefdata.versions import SPLITS, Version
from schemas.columns import column, required
from schemas.ledger import LEDGER
from schemas.stats import TABLES

VERSIONS = pa.schema(
    [
        required("version", pa.string(), "vN"),
        required("kind", pa.string(), "what a row is: pairs, completions, unpaired, prompts"),
        required("build", pa.string(), "the rule that made it"),
        required("round", pa.int64(), "regeneration round in the lineage"),
        required(
            "parents", pa.list_(pa.string()), "versions its rows were made from; the URL of one below another root"
        ),
        required("rows", pa.int64(), "rows of all splits"),
        required("train_rows", pa.int64(), "rows to train on"),
        required("test_rows", pa.int64(), "rows held out"),
        required("rows_in", pa.int64(), "rows of the parent, or rows read; kept + set_aside"),
        required("kept", pa.int64(), "rows of the parent from which at least one row was made"),
        required("set_aside", pa.int64(), "rows of the parent from which none was made"),
        required("created_at", pa.timestamp("s", "UTC"), "when it was published"),
        column("reference", pa.string(), "model of the reference log-probs; null: it has none"),
        column("generator", pa.string(), "model that wrote answers; null: none did"),
        column("tokenizer", pa.string(), "tokenizer that made the token ids"),
        required("logical_hash", pa.string(), "sha256 over ids, text, tokens and labels"),
        required("bytes", pa.int64(), "size of its files"),
        required("tags", pa.list_(pa.string()), "names it goes by"),
        required("url", pa.string(), "folder or URL"),
    ]
)

BATCH_ROWS = 8192
WAYS_TO_READ = "select, from, with, values, describe, show, summarize, explain"

_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_EXPLAIN = re.compile(r"\s*explain(\s+analyze)?\b", re.IGNORECASE)
_NO_SUCH_VERSION = re.compile(r"Table with name (v\d+) does not exist")


def connect(root: str | None = None, *, mentioned_in: str | None = None) -> duckdb.DuckDBPyConnection:
    """A connection in memory with every view; with those that a query mentions, if it mentions any.

    Making a view opens the files behind it, which takes a while in an object store. DuckDB reads past a flipped byte, so
    the files behind the views that a query mentions are hashed first: all but those in an object store, which keeps
    checksums of its own and where that would fetch each file whole.
    """
    connection = duckdb.connect(":memory:")
    # a misspelt name must be an error, not a Python variable that happens to be called so
    connection.execute("set python_enable_replacements = false")
    connection.execute("set autoinstall_known_extensions = false")
    storage = Storage(versions.root(root))
    if not storage.local:
        connection.register_filesystem(storage.fs)
    found = versions.every(root)
    views = _views(found, root)
    mentioned = set(re.findall(r"\w+", (mentioned_in or "").lower())) & views.keys()
    if storage.local:
        _check_files(found, mentioned)
    with _in_words(root):
        for name in mentioned or views:
            view = views[name]
            if isinstance(view, pa.Table):
                connection.register(name, view)
            else:
                connection.execute(f'create view "{name}" as {view}')
    return connection


def sql(query: str, root: str | None = None) -> pa.Table:
    """The answer to one reading statement, whole."""
    return stream(query, root).read_all()


def stream(query: str, root: str | None = None) -> pa.RecordBatchReader:
    """The answer to one reading statement, a batch at a time. UserError, in DuckDB's words, if it is not valid."""
    connection = connect(root, mentioned_in=query)
    with _in_words(root):
        check_reads_only(connection, query)
        answer = connection.sql(query)
        if answer is None:
            raise UserError("the statement has no answer")
        reader = answer.to_arrow_reader(BATCH_ROWS)
    return pa.RecordBatchReader.from_batches(reader.schema, _batches(reader, connection, root))


def check_reads_only(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """UserError unless the query is one statement that reads. A `with` clause can hide a COPY, so the tree is searched."""
    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise UserError(f"give one SQL statement; found {len(statements)}")
    kind = statements[0].type.name
    if kind == "MULTI":  # a PIVOT that first has to look which values there are, by a statement that writes
        raise UserError(
            "a pivot has to name the columns it makes: from (pivot TABLE on COLUMN in (VALUE, ...) using ...)"
        )
    text = _EXPLAIN.sub("", query, count=1) if kind == "EXPLAIN" else query
    parsed = connection.execute("select json_serialize_sql(?)", [text]).fetchall()[0][0]
    tree = json.loads(parsed)
    writing = [node for node in _nodes(tree) if node not in _READING_NODES]
    if tree["error"] or writing:
        found = writing[0].removesuffix("_QUERY_NODE") if writing else kind
        raise UserError(f"versions are only read here ({WAYS_TO_READ}); found a statement of type {found}")


def _nodes(tree: Any) -> Iterator[str]:
    """The types of all query nodes in a parsed statement."""
    if isinstance(tree, dict):
        kind = tree.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE"):
            yield kind
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _batches(
    reader: pa.RecordBatchReader, connection: duckdb.DuckDBPyConnection, root: str | None
) -> Iterator[pa.RecordBatch]:
    """The connection lives as long as its answer is read."""
    with _in_words(root):
        yield from reader
    connection.close()


@contextmanager
def _in_words(root: str | None) -> Iterator[None]:
    """What DuckDB says, as one or two lines. While an answer is streamed it arrives as an OSError."""
    try:
        yield
    except (duckdb.Error, OSError) as error:
        if absent := _NO_SUCH_VERSION.search(str(error)):
            versions.find(absent[1], root=root)  # raises, and lists the versions there are
        raise UserError(_shortened(str(error))) from error


def _shortened(message: str) -> str:
    """DuckDB's message without the drawing of where in the query it was."""
    lines = [line for line in message.split("\n\nLINE ")[0].splitlines() if line.strip()]
    return "\n".join(lines[:2])


# -- views ---------------------------------------------------------------------------------------------------------


def _views(found: Sequence[Version], root: str | None) -> dict[str, str | pa.Table]:
    """What each view shows: SQL over Parquet files, or a table in memory."""
    views: dict[str, str | pa.Table] = {"versions": versions_table(found, versions.tags(root))}
    for version in found:
        views[version.name] = _rows(version) or _nothing(BASE.get(version.kind), "split")
    for kind in sorted({*BASE, *(version.kind for version in found)}):
        parts = [_named(version, rows) for version in found if version.kind == kind and (rows := _rows(version))]
        views[kind] = _union(parts) or _nothing(BASE.get(kind), "version", "split")
    ledgers = [_named(version, _read(paths)) for version in found if (paths := version.paths("ledger"))]
    views["ledger"] = _union(ledgers) or _nothing(LEDGER, "version")
    return views | _stats_views(found)


def _check_files(found: Sequence[Version], views: set[str]) -> None:
    """DamagedVersion if a file behind one of these views is not what was published."""
    for version in found:
        folders = [*SPLITS] if views & {version.name, version.kind} else []
        folders += ["ledger"] if "ledger" in views else []
        entries = [entry for folder in folders for entry in version.files(folder)]
        entries += [entry for entry in version.files("stats") if _stats_name(entry["path"]) in views]
        for entry in entries:
            version.check(entry)


def _stats_views(found: Sequence[Version]) -> dict[str, str | pa.Table]:
    parts: dict[str, list[str]] = {name: [] for name in TABLES}
    for version in found:
        for path in version.paths("stats"):
            name = _stats_name(path)
            parts.setdefault(name, []).append(_named(version, _read([path])))
    return {name: _union(part) or _nothing(TABLES.get(name), "version") for name, part in parts.items()}


def _stats_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".parquet")


def _rows(version: Version) -> str:
    files = {split: version.paths(split) for split in SPLITS}
    return _union(
        [f"select {_text(split)} as split, * from ({_read(paths)})" for split, paths in files.items() if paths]
    )


def _named(version: Version, query: str) -> str:
    return f"select {_text(version.name)} as version, * from ({query})"


def _union(queries: Sequence[str]) -> str:
    return " union all by name ".join(queries)


def _read(paths: Sequence[str]) -> str:
    listed = ", ".join(_text(_literal(path)) for path in paths)
    return f"select * from read_parquet([{listed}], union_by_name = true)"


def _literal(path: str) -> str:
    """A path in which no character stands for others."""
    return re.sub(r"[*?\[]", lambda found: f"[{found[0]}]", path)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _nothing(schema: pa.Schema | None, *before: str) -> pa.Table:
    """A table without rows, so that a query over what is not there yet gives none instead of an error."""
    fields = [pa.field(name, pa.string()) for name in before]
    return pa.schema([*fields, *(schema or [])]).empty_table()


# -- the table of versions -----------------------------------------------------------------------------------------


def versions_table(found: Sequence[Version], tags: dict[str, str]) -> pa.Table:
    """One line per version, from the manifests."""
    names: dict[str, list[str]] = {}
    for tag, name in sorted(tags.items()):
        names.setdefault(name, []).append(tag)
    return pa.Table.from_pylist([_line(version, names.get(version.name, [])) for version in found], schema=VERSIONS)


def _line(version: Version, tags: list[str]) -> dict[str, Any]:
    manifest = version.manifest
    counts = manifest["counts"]
    return {
        "version": version.name,
        "kind": version.kind,
        "build": manifest["build"],
        "round": manifest["round"],
        "parents": version.parents,
        "rows": sum(counts["rows"].values()),
        "train_rows": counts["rows"].get("train", 0),
        "test_rows": counts["rows"].get("test", 0),
        "rows_in": counts["rows_in"],
        "kept": counts["kept"],
        "set_aside": counts["set_aside"],
        "created_at": datetime.fromisoformat(manifest["created_at"]),
        "reference": model_name(manifest["reference"]),
        "generator": model_name(manifest["generator"]),
        "tokenizer": model_name(manifest["tokenizer"]),
        "logical_hash": version.logical_hash,
        "bytes": sum(entry["bytes"] for entry in manifest["files"]),
        "tags": tags,
        "url": version.url,
    }


def model_name(fingerprint: dict[str, Any] | None) -> str | None:
    """name@first 12 hex digits of the digest, as far as a fingerprint says."""
    if not fingerprint:
        return None
    inner = fingerprint.get("model")
    entry = inner if isinstance(inner, dict) else fingerprint
    parts = [str(entry["name"])] if entry.get("name") else []
    return "@".join([*parts, str(entry["digest"])[:12]] if entry.get("digest") else parts) or None
