"""Data sets by hub name (or a local folder that `datasets` can load), streamed. No remote code is ever run."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import BUGS, UserError
from prefdata.sources.readers import Read, table_row
from prefdata.sources.splits import split_of_name

if TYPE_CHECKING:
    from prefdata.sources.inputs import Tally

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Options:
    """What a data set may be asked for beyond its name."""

    config: str | None = None
    revision: str | None = None
    splits: tuple[str, ...] = ()  # the data set's own split names; empty: all


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set. Its tally is over its rows, because the files behind it are not ours to see."""

    rows: Any
    data_set: str  # hub name or local folder
    own_split: str
    commit: str | None
    license: str | None
    is_local: bool

    @property
    def shown(self) -> str:
        """data set/split"""
        return f"{self.data_set}/{self.own_split}"

    @property
    def name(self) -> str:
        """The hub name, or the folder's own."""
        return Path(self.data_set).resolve().name if self.is_local else self.data_set

    @property
    def split(self) -> str | None:
        """The split its name stands for."""
        return split_of_name(self.own_split)

    def facts(self) -> dict[str, str | None]:
        """What the hub says of the data set."""
        origin = None if self.is_local else f"https://huggingface.co/datasets/{self.data_set}"
        return {"license": self.license, "origin": f"{origin}@{self.commit}" if origin and self.commit else origin}

    def stamp(self) -> str:
        """The commit, or the content where there is none (a local folder: every row is streamed once more)."""
        found = sha256()
        for _, raw in self._rows() if self.commit is None else ():
            found.update(raw)
        return self.stamp_of(found.hexdigest())

    def stamp_of(self, content: str) -> str:
        """The stamp of rows with this hash."""
        return f"{self.shown}@{self.commit or content}"

    def read(self, tally: "Tally | None" = None) -> Iterator[Read]:
        """Stream the rows."""
        for value, raw in self._rows():
            if tally is not None:
                tally.add(raw)
            yield value, raw

    def _rows(self) -> Iterator[Read]:
        rows = iter(self.rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # whatever format the data set is stored in
                # values that do not fit their column are a TypeError to datasets
                if isinstance(error, BUGS) and not isinstance(error, TypeError):
                    raise
                raise UserError(
                    f"The data set {self.shown} cannot be read ({type(error).__name__}: {_sentence(error)})."
                ) from error
            yield table_row(row)


def may_be_name(name: str) -> bool:
    """Whether a name has the shape of a hub data set's: NAME or OWNER/NAME."""
    return NAME.fullmatch(name) is not None


def has_card_configs(folder: str) -> bool:
    """Whether a folder's card says which files make up which split, so that `datasets` must be asked."""
    card = Path(folder, "README.md")
    lines = card.read_text("utf-8", "replace").splitlines() if card.is_file() else []
    front_matter = takewhile(lambda line: line != "---", lines[1:]) if lines[:1] == ["---"] else ()
    return any(line.startswith("configs:") for line in front_matter)


def splits(name: str, options: Options) -> list[HubSplit]:
    """The splits of a data set, at the commit that the hub names now."""
    import datasets

    is_local = Path(name).expanduser().is_dir()
    if is_local and options.revision:
        raise UserError(f"{name} is a local folder and has no revision {options.revision!r}: leave the revision out.")
    commit, license_ = (None, None) if is_local else _ask_hub(name, options.revision)
    try:
        found = datasets.load_dataset(
            str(Path(name).expanduser()) if is_local else name,
            options.config,
            revision=commit or options.revision,
            streaming=True,
        )
    except Exception as error:  # datasets raises nearly anything
        raise UserError(
            f"{name} cannot be loaded as a data set ({type(error).__name__}: {_sentence(error, lines=2)})."
        ) from error
    parts: Mapping[str, Any] = dict(found)
    missing = [split for split in options.splits if split not in parts]
    if missing:
        raise UserError(f"{name} has no split {' or '.join(missing)}. It has: {', '.join(parts)}.")
    return [
        HubSplit(rows, name, split, commit, license_, is_local)
        for split, rows in parts.items()
        if not options.splits or split in options.splits
    ]


def _ask_hub(name: str, revision: str | None) -> tuple[str | None, str | None]:
    """(commit, licence) of a data set. Asked first: it fails at once where loading would retry for half a minute."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=20)
    except Exception as error:  # no network, no such name, no right to it
        found = f"{type(error).__name__}: {_sentence(error)}"
        raise UserError(
            f"There is no file or folder {name}, and the hub gave no data set of that name ({found})."
        ) from error
    license_ = info.card_data.get("license") if info.card_data else None
    return info.sha, license_ if isinstance(license_, str) else None


def _sentence(error: Exception, lines: int = 1) -> str:
    """The first lines of an error as one, without the last full stop."""
    found = str(error).strip().splitlines()[:lines]
    return " ".join(line.strip() for line in found).rstrip(".") or "no reason given"
