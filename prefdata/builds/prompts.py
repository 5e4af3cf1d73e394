"""The prompts of a version, each once, in chunks whose bounds depend on their content: added rows move few of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from prefdata import draws
from prefdata.builds.inputs import ParentReader
from prefdata.versions import Version

_COLUMNS = ("prompt_id", "prompt", "tools", "prompt_ids", "source", "license")
_LARGEST = 4  # times the usual size of a chunk


@dataclass(frozen=True)
class Prompt:
    """One prompt, as it stands in the first row that has it, and the most tokens an answer may have."""

    prompt_id: str
    messages: list[dict[str, Any]]
    tools: str | None
    ids: list[int]
    source: str
    license: str | None
    room: int


@dataclass(frozen=True)
class Chunk:
    """Prompts of one split that are worked on together."""

    split: str
    prompts: tuple[Prompt, ...]


class Prompts:
    """Those that leave room for an answer.

    limits: the most tokens of a row, and of an answer.
    """

    def __init__(self, parent: Version, reader: ParentReader, chunk_rows: int, limits: tuple[int, int]) -> None:
        self._parent, self._reader, self._chunk_rows = parent, reader, chunk_rows
        self._longest, self._most = limits
        places = []
        for split in parent.splits:
            for entry in parent.files(split):
                table = parent.read(entry, ["prompt_id", "prompt_tokens"])
                rows = pl.DataFrame({"prompt_id": table["prompt_id"], "tokens": table["prompt_tokens"]})
                where = {"split": pl.lit(split), "path": pl.lit(entry["path"])}
                places.append(rows.with_columns(**where, position=pl.int_range(pl.len(), dtype=pl.Int64)))
        every = pl.concat(places).unique("prompt_id", keep="first", maintain_order=True)
        fits = pl.col("tokens") < self._longest
        self.table = every.filter(fits)
        self.aside = every.filter(~fits).select(
            "prompt_id",
            stage=pl.lit("select"),
            reason=pl.lit("no_room_for_answer"),
            detail=pl.format("a prompt of {} tokens, and rows have at most {}", "tokens", pl.lit(self._longest)),
        )

    def chunks(self) -> Iterator[Chunk]:
        """In the parent's order. A chunk ends behind a prompt whose id says so, and at a bound of size or split."""
        held: list[dict[str, Any]] = []
        ends = draws.uniform(0, self.table["prompt_id"].to_list(), "chunk") < 1 / self._chunk_rows
        for row, ends_here in zip(self.table.iter_rows(named=True), ends.tolist(), strict=True):
            if held and held[-1]["split"] != row["split"]:
                yield self._chunk(held)
                held = []
            held.append(row)
            if ends_here or len(held) >= _LARGEST * self._chunk_rows:
                yield self._chunk(held)
                held = []
        if held:
            yield self._chunk(held)

    def _chunk(self, held: Sequence[dict[str, Any]]) -> Chunk:
        prompts: list[Prompt] = []
        for path in dict.fromkeys(row["path"] for row in held):
            positions = [row["position"] for row in held if row["path"] == path]
            rows = self._reader.take(path, positions).select(list(_COLUMNS)).to_pylist()
            prompts += [self._prompt(row) for row in rows]
        return Chunk(held[0]["split"], tuple(prompts))

    def _prompt(self, row: dict[str, Any]) -> Prompt:
        return Prompt(
            prompt_id=row["prompt_id"],
            messages=row["prompt"],
            tools=row["tools"],
            ids=row["prompt_ids"],
            source=row["source"],
            license=row["license"],
            room=min(self._most, self._longest - len(row["prompt_ids"])),
        )
