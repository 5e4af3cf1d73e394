"""The dataset card of a version: its README.md. Written from the manifest and the schema alone.

The front matter tells `datasets.load_dataset` what to read. It lists only splits that hold rows (a split without
files is an error there); the ledger, whose columns are others, is a config of its own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from schemas.ledger import LEDGER
from schemas.manifest import Counts, Manifest
from schemas.reasons import REASONS

MOST_SOURCES = 50  # lines of the table of sources

_ROWS = {
    "pairs": "One row is one preference pair: a prompt and two completions of it, the better one called chosen.",
    "completions": "One row is one prompt and one completion of it.",
    "prompts": "One row is one prompt, without an answer.",
    "unpaired": "One row is one prompt and one completion of it, judged by itself: desirable or not.",
}

# the spellings that the hub's `license` field takes, as far as preference data uses them
_HUB_LICENSES = frozenset(
    [
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nc-nd-4.0",
        "odc-by",
        "odbl",
        "gpl-3.0",
        "llama2",
        "llama3",
        "openrail",
        "unlicense",
        "wtfpl",
    ]
)


def text(manifest: Manifest, schema: pa.Schema) -> str:
    """The card. `schema` is that of the row files, with the columns' meanings."""
    splits = [split for split, rows in manifest["counts"]["rows"].items() if rows]
    parts = [
        _front_matter(manifest, splits),
        _summary(manifest, splits),
        _loading(manifest["version"], splits),
        _origin(manifest),
        _counts(manifest["counts"]),
        "## Columns\n\n" + _columns(schema),
        "## Ledger\n\nOne line for every row that went in, kept or set aside.\n\n" + _columns(LEDGER),
        _license(manifest["sources"]),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest, splits: Sequence[str]) -> str:
    lines = ["---", f"pretty_name: {json.dumps(manifest['version'])}", *license_lines(manifest["sources"])]
    configs = [("default", splits)] if splits else []
    if manifest["counts"]["rows_in"]:
        configs.append(("ledger", ["ledger"]))
    if configs:
        lines.append("configs:")
    for name, folders in configs:
        lines += [f"- config_name: {name}", *(["  default: true"] if name == "default" else []), "  data_files:"]
        for folder in folders:
            lines += [f"  - split: {folder}", f"    path: {json.dumps(folder + '/*.parquet')}"]
    return "\n".join([*lines, "---"])


def license_lines(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """The front matter's lines on the licence: what the sources state, in the hub's spelling where it has one."""
    stated = licenses(sources)
    spelled = [name.lower() for name in stated]
    if not stated:
        return ['license: "unknown"']
    if not set(spelled) <= _HUB_LICENSES:
        return ['license: "other"', f"license_name: {json.dumps('; '.join(stated), ensure_ascii=False)}"]
    return [f"license: {json.dumps(spelled[0] if len(spelled) == 1 else spelled)}"]


def licenses(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """The different licences that sources state, in order of appearance."""
    return list(dict.fromkeys(str(source["license"]) for source in sources if source.get("license")))


def _summary(manifest: Manifest, splits: Sequence[str]) -> str:
    rows = manifest["counts"]["rows"]
    held = ", ".join(f"{split} {rows[split]:,}" for split in splits) or "none"
    parents = ", ".join(parent.get("url") or parent["version"] for parent in manifest["parents"])
    made = f"Made by `{manifest['build']}`" + (f" from {parents}" if parents else "") + f" on {manifest['created_at']}."
    return f"# {manifest['version']}: {manifest['kind']}\n\n{_ROWS.get(manifest['kind'], '')} Rows: {held}.\n\n{made}"


def _loading(name: str, splits: Sequence[str]) -> str:
    if not splits:
        return "## Load\n\nThis version holds no rows; its ledger says why."
    files = f"{name}/{splits[0]}/*.parquet"
    return f"""## Load

From the folder that holds `{name}`, with any one of:

```python
import duckdb

rows = duckdb.sql("select * from '{files}'").fetchall()
```

```python
import polars as pl

rows = pl.read_parquet("{files}")
```

```python
import pandas as pd

rows = pd.read_parquet("{name}/{splits[0]}")
```

```python
from datasets import load_dataset

rows = load_dataset("{name}", split="{splits[0]}")
ledger = load_dataset("{name}", "ledger", split="ledger")
```"""


def _origin(manifest: Manifest) -> str:
    facts: dict[str, Any] = {
        "round": manifest["round"],
        "seeds": manifest["seeds"],
        "config": manifest["config"],
        "parents": manifest["parents"],
        "tokenizer": _without_template(manifest["tokenizer"]),
        "generator": manifest["generator"],
        "reference": manifest["reference"],
        "logical hash": manifest["logical_hash"],
    }
    told = [[name, f"`{_json(value)}`"] for name, value in facts.items() if value not in (None, {}, [])]
    fields = ("name", "format", "rows", "license", "origin", "sha256")
    sources = [[source.get(field) for field in fields] for source in manifest["sources"]]
    parts = ["## Where it comes from", markdown_table(["what", "value"], told)]
    if sources:
        parts.append(markdown_table(["source", *fields[1:]], sources[:MOST_SOURCES]))
    if len(sources) > MOST_SOURCES:
        parts.append(f"... and {len(sources) - MOST_SOURCES:,} more; manifest.json lists them all.")
    return "\n\n".join(parts)


def _without_template(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """A chat template is a page of its own; its digest says which one it is."""
    return {key: value for key, value in tokenizer.items() if key != "template"}


def _counts(counts: Counts) -> str:
    stages = [
        [stage["stage"], stage["rows_in"], stage["kept"], sum(stage["set_aside"].values())]
        for stage in counts["stages"]
    ]
    reasons = [
        [stage["stage"], reason, rows, REASONS.get(reason, "")]
        for stage in counts["stages"]
        for reason, rows in stage["set_aside"].items()
    ]
    parts = [
        f"{counts['rows_in']:,} rows went in: {counts['kept']:,} kept (at least one row here was made from each) and "
        f"{counts['set_aside']:,} set aside.",
        markdown_table(["stage", "rows in", "kept", "set aside"], stages),
    ]
    if reasons:
        parts.append(markdown_table(["stage", "reason", "rows", "meaning"], reasons))
    return "## Counts\n\n" + "\n\n".join(parts)


def _columns(schema: pa.Schema) -> str:
    return markdown_table(
        ["column", "type", "meaning"], [[f"`{field.name}`", _type(field.type), _meaning(field)] for field in schema]
    )


def _type(type_: pa.DataType) -> str:
    """Arrow's name of a type, with the fields of a message left out: they are the same in every column."""
    if pa.types.is_list(type_):
        return f"list of {_type(type_.value_type)}"
    return "message" if pa.types.is_struct(type_) else str(type_)


def _meaning(field: pa.Field) -> str:
    meaning: bytes = (field.metadata or {}).get(b"meaning", b"")
    return meaning.decode()


def _license(sources: Sequence[Mapping[str, Any]]) -> str:
    stated = licenses(sources)
    silent = sum(1 for source in sources if not source.get("license"))
    sentence = f"As the sources state it: {'; '.join(stated)}." if stated else "No source states a licence."
    if stated and silent:
        sentence += f" {silent} of {len(sources)} sources state none."
    return f"## Licence\n\n{sentence} The column `license` holds it row by row."


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; no cell can break out of its row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
