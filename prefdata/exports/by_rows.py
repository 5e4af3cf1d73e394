"""Targets that have a form of their own for every row: a version is read file by file, mapped, and written as it comes.

Tables become `SPLIT/part-NNNNN.parquet`, one per file of the version; JSON texts become `SPLIT.jsonl`. Beside them stand
a card, `_export.json`, and `_left_out.jsonl` if there are rows that the target cannot hold.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.card import license_lines, markdown_table
from prefdata.errors import UserError
from prefdata.exports.folder import Files, changed
from prefdata.exports.target import Form, Mapped, Progress
from prefdata.versions import Version
from schemas.export import FORMAT, LEFT_OUT, MANIFEST, Export, Origin, SplitCount
from schemas.reasons import REASONS

ROWS = 1024  # rows that are Python objects at one time


@dataclass(frozen=True)
class RowTarget:
    """A target that maps rows."""

    name: str
    about: str
    forms: Mapping[str, Callable[[Version], Form]]  # by kind
    usage: str  # for the card: how it is read, and what the reader does not use
    texts: Callable[[Version, Sequence[str]], dict[str, str]] = lambda version, splits: {}  # further files
    data_files: bool = False  # whether the card lists the files of each split for `datasets`

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds it has a form for."""
        return list(self.forms)

    def check(self, version: Version, splits: Sequence[str]) -> None:
        """Any splits do."""

    def holds(self, folder: Path, version: Version, splits: Sequence[str]) -> bool:
        """Whether a folder's `_export.json` says that it is this export, and its files are as it says."""
        found = read_manifest(folder)
        if found is None or not _same(found, self.name, version, splits):
            return False
        if odd := changed(folder, found["files"], but=MANIFEST):
            raise UserError(
                f"{folder} is this export, but {odd} was changed since: move the folder away to make it anew."
            )
        return True

    def write(self, folder: Path, version: Version, splits: Sequence[str], progress: Progress) -> None:
        """All files, `_export.json` last. UserError if the target can hold none of the rows."""
        form = self.forms[version.kind](version)
        with Files(folder) as files:
            written = _Written(files, form)
            for split in splits:
                written.add(split, version, progress)
            _refuse_nothing(self.name, version, written.counts)
            for path, text in self.texts(version, splits).items():
                files.put(path, text.encode())
            files.put("README.md", self._card(version, splits, written).encode())
            manifest = _manifest(self.name, version, written, files)
            files.put(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2).encode())
            files.end()

    def tally(self, folder: Path, version: Version) -> dict[str, dict[str, int]]:
        """From `_export.json`."""
        found = read_manifest(folder)
        assert found is not None
        return {split: {"": count["exported"], **count["left_out"]} for split, count in found["splits"].items()}

    def _card(self, version: Version, splits: Sequence[str], written: "_Written") -> str:
        front = ["---", f"pretty_name: {json.dumps(f'{version.name} for {self.name}')}"]
        front += license_lines(version.manifest["sources"])
        if self.data_files:
            front += ["configs:", "- config_name: default", "  data_files:"]
            for split in splits:
                front += [f"  - split: {split}", f'    path: "{split}/*.parquet"']
        counts = [[split, count["rows"], count["exported"]] for split, count in written.counts.items()]
        parts = [
            "\n".join([*front, "---"]),
            f"# {version.name} for {self.name}",
            f"The {version.kind} of the prefdata version {version.name} (logical hash `{version.logical_hash}`).",
            self.usage,
            markdown_table(["split", "rows", "exported"], counts),
            *_told_left_out(written),
        ]
        return "\n\n".join(parts) + "\n"


class _Written:
    """What was written so far, and what was not."""

    def __init__(self, files: Files, form: Form) -> None:
        self._files, self._form = files, form
        self._parts: Counter[str] = Counter()
        self.counts: dict[str, SplitCount] = {}
        self.columns_left_out: Counter[str] = Counter()

    def add(self, split: str, version: Version, progress: Progress) -> None:
        """A split of a version, file by file."""
        self.counts[split] = {"rows": 0, "exported": 0, "left_out": {}}
        for entry in version.files(split):
            table = version.read(entry)
            for name in table.column_names:
                if name not in self._form.carries and (held := table.num_rows - table[name].null_count):
                    self.columns_left_out[name] += held
            tables = []
            for start in range(0, table.num_rows, ROWS):
                part = table.slice(start, ROWS)
                mapped = self._form.map(part)
                self._count(split, part, mapped)
                if isinstance(mapped.rows, pa.Table):
                    tables.append(mapped.rows)
                else:
                    self._files.append(f"{split}.jsonl", _lines(mapped.rows), len(mapped.rows))
                progress(part.num_rows)
            self._put(split, tables)

    def _put(self, split: str, tables: list[pa.Table]) -> None:
        rows = sum(table.num_rows for table in tables)
        if rows:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
            path = f"{split}/part-{self._parts[split]:05d}.parquet"
            self._parts[split] += 1
            self._files.put(path, bytes(sink.getvalue()), rows)

    def _count(self, split: str, part: pa.Table, mapped: Mapped) -> None:
        count = self.counts[split]
        count["rows"] += part.num_rows
        count["exported"] += part.num_rows - len(mapped.left_out)
        if not mapped.left_out:
            return
        ids = part["row_id"].to_pylist()
        lines = []
        for place, aside in mapped.left_out:
            count["left_out"][aside.reason] = count["left_out"].get(aside.reason, 0) + 1
            line = {"row_id": ids[place], "split": split, "reason": aside.reason, "detail": aside.detail}
            lines.append(json.dumps(line, ensure_ascii=False))
        self._files.append(LEFT_OUT, _lines(lines), len(lines))

    @property
    def reasons(self) -> Counter[str]:
        """Rows that were left out, over all splits."""
        return sum((Counter(count["left_out"]) for count in self.counts.values()), Counter())


def read_manifest(folder: Path) -> Export | None:
    """A folder's `_export.json`, if it is one of ours."""
    try:
        found: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None  # type: ignore[return-value]


def _same(found: Export, target: str, version: Version, splits: Sequence[str]) -> bool:
    there = found["target"], found["version"]["version"], found["version"]["seal"], set(found["splits"])
    return there == (target, version.name, version.manifest["seal"], set(splits))


def _lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def _refuse_nothing(target: str, version: Version, counts: Mapping[str, SplitCount]) -> None:
    if any(count["exported"] for count in counts.values()):
        return
    reasons = sum((Counter(count["left_out"]) for count in counts.values()), Counter())
    told = ", ".join(f"{reason} {rows}" for reason, rows in reasons.items())
    raise UserError(f"{target} can hold none of the rows of {version.name} ({told}); nothing was written.")


def _manifest(target: str, version: Version, written: _Written, files: Files) -> Export:
    manifest = version.manifest
    origin: Origin = {
        "version": version.name,
        "kind": version.kind,
        "logical_hash": version.logical_hash,
        "seal": manifest["seal"],
    }
    return {
        "format": FORMAT,
        "target": target,
        "version": origin,
        "splits": written.counts,
        "columns_left_out": dict(written.columns_left_out),
        "sources": manifest["sources"],
        "tokenizer": {key: value for key, value in manifest["tokenizer"].items() if key != "template"},
        "reference": manifest["reference"],
        "files": files.end(),
    }


def _told_left_out(written: _Written) -> list[str]:
    told = []
    if written.reasons:
        rows = [[reason, rows, REASONS.get(reason, "")] for reason, rows in written.reasons.items()]
        told.append(f"Left out, one by one in `{LEFT_OUT}`:")
        told.append(markdown_table(["reason", "rows", "meaning"], rows))
    if written.columns_left_out:
        told.append("Columns of the version that have no place here, and how many rows hold a value in them:")
        told.append(
            markdown_table(["column", "rows"], [[f"`{name}`", n] for name, n in written.columns_left_out.items()])
        )
    return told
