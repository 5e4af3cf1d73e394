"""The versions that a run reads together: one kind, one tokenizer and, where the loss reads it, one reference."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata import versions
from prefdata.errors import UserError
from prefdata.tokens import differences
from prefdata.versions import Version
from trainers import contract, data
from trainers.contract import reference_of
from trainers.objectives import Objective

# of a reference's entry in the manifest, what decides its log-probs
_REFERENCE = ("digest", "config_digest", "dtype")


@dataclass(frozen=True)
class LeftOut:
    """Rows of a split that are not read because of what another version holds."""

    repeated: int = 0  # read from an earlier version
    held_out: int = 0  # another version keeps their prompt for testing

    def sentences(self, split: str) -> Iterator[str]:
        """What to tell a person; nothing if nothing was left out."""
        if self.repeated:
            yield f"{self.repeated:,} {split} rows stand in more than one version; each is read once"
        if self.held_out:
            yield f"{self.held_out:,} {split} rows are left out, since another version holds out their prompts"


@dataclass(frozen=True)
class Sources:
    """The versions, in the order they were named in."""

    versions: tuple[Version, ...]

    @property
    def name(self) -> str:
        """v3, or v3+v4."""
        return "+".join(version.name for version in self.versions)

    @property
    def urls(self) -> tuple[str, ...]:
        """What `opened` opens."""
        return tuple(version.url for version in self.versions)

    @property
    def kind(self) -> str:
        """The kind of all of them."""
        return self.versions[0].kind

    def holding(self, split: str) -> list[Version]:
        """Those that have rows in a split."""
        return [version for version in self.versions if split in version.splits]

    def describe(self) -> dict[str, Any]:
        """What a run's configuration says of its data."""
        return {
            "version": self.name,
            "parts": [
                {
                    "version": version.name,
                    "logical_hash": version.logical_hash,
                    "reference": reference_of(version.manifest).get("digest"),
                }
                for version in self.versions
            ],
        }


def find(named: str, objective: Objective, root: str | None) -> Sources:
    """The versions of a --data, several names with commas between them.

    `latest` is the newest version of a kind that the loss reads; a version named outright is judged by the contract.
    """
    names = [named] if os.path.exists(named) else [name.strip() for name in named.split(",")]
    kinds = tuple(objective.batch.sides)
    found = tuple(versions.find(name, root=root, kinds=kinds if name == "latest" else None) for name in names)
    for place, version in enumerate(found):
        if any(version.url == earlier.url for earlier in found[:place]):
            raise UserError(f"--data {named} names version {version.name} twice: name each once.")
    return Sources(found)


def opened(urls: Sequence[str]) -> Sources:
    """The versions at these URLs."""
    return Sources(tuple(versions.find(url) for url in urls))


def check(sources: Sources, objective: Objective) -> None:
    """UserError if a version does not serve the objective, or if two of them can't be read together."""
    for version in sources.versions:
        contract.check(version, objective)
    first, *others = sources.versions
    for other in others:
        if found := _apart(first, other, objective):
            raise UserError(f"data versions {first.name} and {other.name} cannot be trained on together: {found}")


def rows(
    sources: Sources, split: str, objective: Objective, folder: Path
) -> tuple[Mapping[Version, data.Rows], LeftOut]:
    """The rows of a split, by version; each row once, and no row to train on whose prompt another version holds out."""
    masks, left = _masks(sources, split)
    read = {
        version: data.load(version, split, objective.batch, folder, keep=masks.get(version))
        for version in sources.holding(split)
    }
    return {version: found for version, found in read.items() if len(found)}, left


def _apart(first: Version, other: Version, objective: Objective) -> str | None:
    """Why two versions can't be read together; None if they can."""
    if first.kind != other.kind:
        return f"{first.name} holds {first.kind} and {other.name} {other.kind}. Name versions of one kind."
    found = differences(first.manifest["tokenizer"], other.manifest["tokenizer"])
    if found:
        return f"{'; '.join(found)} ({first.name} is there, {other.name} here). Name versions made for one model."
    if objective.batch.referenced:
        ours, theirs = reference_of(first.manifest), reference_of(other.manifest)
        if any(ours.get(key) != theirs.get(key) for key in _REFERENCE):
            return (
                f"--loss {objective.name} reads the reference, which is {_reference(ours)} in {first.name} and"
                f" {_reference(theirs)} in {other.name}.\n"
                f"Score one again:  {contract.scores(other, str(ours.get('name')))}"
            )
    return None


def _reference(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('name')}@{str(entry.get('digest'))[:12]} in {entry.get('dtype')}"


def _masks(sources: Sources, split: str) -> tuple[dict[Version, data.Mask], LeftOut]:
    """For each version, which of the split's rows are read; nothing to decide for a single one."""
    if len(sources.versions) == 1:
        return {}, LeftOut()
    masks: dict[Version, data.Mask] = {}
    seen: list[Any] = []
    repeated = held_out = 0
    for version in sources.holding(split):
        ids = version.table(split, columns=["row_id", "prompt_id"])
        tested = _among(ids["prompt_id"], _held_out(sources, version) if split == "train" else [])
        again = _among(ids["row_id"], seen) & ~tested
        masks[version] = ~tested & ~again
        seen += ids["row_id"].filter(pa.array(masks[version])).chunks
        held_out += int(tested.sum())
        repeated += int(again.sum())
    return masks, LeftOut(repeated, held_out)


def _held_out(sources: Sources, version: Version) -> list[Any]:
    """The prompts that the other versions test on."""
    others = [other for other in sources.holding("test") if other is not version]
    return [chunk for other in others for chunk in other.table("test", columns=["prompt_id"])["prompt_id"].chunks]


def _among(values: pa.ChunkedArray, known: Sequence[Any]) -> data.Mask:
    """Which of the values are known."""
    if not known:
        return np.zeros(len(values), np.bool_)
    found: data.Mask = pc.is_in(values, value_set=pa.chunked_array(known).combine_chunks()).to_numpy()
    return found
