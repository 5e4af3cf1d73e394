"""A bounded sample of a version's rows: the same rows for the same seed, however large the version is."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata.draws import row_seed
from prefdata.versions import SPLITS, Version
from schemas.manifest import FileEntry

MOST_ROWS = 4000
MOST_TOKENS = 4_000_000  # of prompts and answers: rows of long answers are fewer
MOST_FILES = 4  # a file holds up to 8192 rows and is read whole, since it is checked when it is read
_PURPOSE = "report"
_UNUSED = {"tools", "prompt_ids", "sampling"}  # columns that may be large and that no page shows


@dataclass(frozen=True)
class Sample:
    """Rows in random order, with the split they are of."""

    rows: pa.Table  # the version's columns and `split`
    of_rows: int
    files: int
    of_files: int

    def sentence(self, rows: int | None = None) -> str:
        """What the sample, or its first `rows` rows, are a sample of."""
        shown = self.rows.num_rows if rows is None else min(rows, self.rows.num_rows)
        if shown == self.of_rows:
            return f"all {shown:,} rows"
        files = "" if self.files == self.of_files else f", from {self.files} of its {self.of_files:,} files"
        return f"{shown:,} of {self.of_rows:,} rows, drawn at random{files}"


def draw(version: Version, *, seed: int = 0, rows: int = MOST_ROWS, files: int = MOST_FILES) -> Sample:
    """At most `rows` rows of `MOST_TOKENS` of at most `files` files, which are drawn by how many rows they hold."""
    every = [(split, entry) for split in SPLITS for entry in version.files(split)]
    chosen = _choose([entry.get("rows", 0) for _, entry in every], files, seed)
    parts = [_first(version, *every[number], rows, seed) for number in chosen]
    if not parts:
        return Sample(version.schema.append(pa.field("split", pa.string())).empty_table(), 0, 0, 0)
    table = pa.concat_tables([part for part, _ in parts])
    order = _smallest(table, np.concatenate([draws for _, draws in parts]), rows)
    total = sum(entry.get("rows", 0) for _, entry in every)
    return Sample(table.take(pa.array(order)), total, len(chosen), len(every))


def _choose(rows: list[int], files: int, seed: int) -> list[int]:
    if len(rows) <= files:
        return list(range(len(rows)))
    shares = np.array(rows) / sum(rows)
    return sorted(np.random.default_rng(seed).choice(len(rows), size=files, replace=False, p=shares).tolist())


def _first(version: Version, split: str, entry: FileEntry, rows: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """The file's rows with the smallest draws, and those draws."""
    table = version.read(entry, [name for name in version.columns() if name not in _UNUSED])
    draws = np.array([row_seed(seed, row_id, _PURPOSE) for row_id in table["row_id"].to_pylist()], dtype=np.int64)
    kept = _smallest(table, draws, rows)
    part = table.take(pa.array(kept)).append_column("split", pa.array([split] * len(kept), pa.string()))
    return part, draws[kept]


def _smallest(table: pa.Table, draws: np.ndarray, rows: int) -> np.ndarray:
    """Where the smallest draws are, in their order: at most `rows`, and as many as `MOST_TOKENS` allows, but one."""
    order = np.argsort(draws, kind="stable")[:rows]
    answers = [pc.list_value_length(table[name]) for name in table.column_names if name.endswith("_ids")]
    tokens = sum((column.to_numpy() for column in answers), table["prompt_tokens"].to_numpy().astype(np.int64))
    fit = int(np.searchsorted(np.cumsum(tokens[order]), MOST_TOKENS, "right"))
    return order[: max(fit, 1)]
