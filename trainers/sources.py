"""The versions that a run reads together: one kind, one tokenizer and, where the loss reads it, one reference."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdata import reference, versions
from prefdata.errors import UserError
from prefdata.tokens import differences
from prefdata.versions import Version
from schemas.embeddings import COLUMN
from trainers import contract, data, overlap
from trainers.contract import reference_of
from trainers.loss import Loss


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

    def label(self, version: Version) -> str:
        """What tells a version apart from the others: its name, or its URL where two have one name."""
        names = [other.name for other in self.versions]
        return version.name if names.count(version.name) == 1 else version.url

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
                    "reference": _reference_id(version),
                }
                for version in self.versions
            ],
        }


def find(named: str, loss: Loss, root: str | None) -> Sources:
    """The versions of a --data, several names with commas between them.

    `latest` is the newest version of a kind that the loss reads; a version named outright is judged by the contract.
    """
    names = [named] if os.path.exists(named) else [name.strip() for name in named.split(",")]
    if "" in names:
        raise UserError(f"--data {named} has an empty name: give names of versions with commas between them.")
    kinds = loss.kinds
    found = tuple(versions.find(name, root=root, kinds=kinds if name == "latest" else None) for name in names)
    for place, version in enumerate(found):
        if any(version.url == earlier.url for earlier in found[:place]):
            raise UserError(f"--data {named} names version {version.name} twice: name each once.")
    return Sources(found)


def opened(urls: Sequence[str]) -> Sources:
    """The versions at these URLs."""
    return Sources(tuple(versions.find(url) for url in urls))


def check(sources: Sources, loss: Loss) -> None:
    """UserError if a version does not serve the loss, or if two of them can't be read together."""
    for version in sources.versions:
        contract.check(version, loss)
    first, *others = sources.versions
    for other in others:
        if found := _apart(first, other, loss):
            both = f"{sources.label(first)} and {sources.label(other)}"
            raise UserError(f"data versions {both} cannot be trained on together: {found}")


def rows(sources: Sources, split: str, loss: Loss, folder: Path) -> tuple[Mapping[Version, data.Rows], overlap.Overlap]:
    """The rows of a split, by version; each row once, and no row to train on whose prompt another version holds out.

    UserError if two versions hold one row with other tokens, or with others of them scored.
    """
    masks, found = overlap.masks(sources, split, loss)
    read = {
        version: data.load(version, split, loss.reading(version.kind), folder, keep=masks.get(version))
        for version in sources.holding(split)
    }
    return {version: part for version, part in read.items() if len(part)}, found


def _apart(first: Version, other: Version, loss: Loss) -> str | None:
    """Why two versions can't be read together; None if they can."""
    if first.kind != other.kind:
        return f"{first.name} holds {first.kind} and {other.name} {other.kind}. Name versions of one kind."
    found = differences(first.manifest["tokenizer"], other.manifest["tokenizer"])
    if found:
        return f"{'; '.join(found)} ({first.name} is there, {other.name} here). Name versions made for one model."
    if COLUMN in loss.reading(first.kind).values:
        named = [version.manifest.get("embeddings") or {} for version in (first, other)]
        if named[0].get("fingerprint") != named[1].get("fingerprint"):
            return (
                f"--loss {loss.name} compares prompt embeddings, which are of {named[0].get('name')} in {first.name} and of"
                f" {named[1].get('name')} in {other.name}. Add both by one model:  python -m flows.add_reference"
                f" {other.name} --embeddings {named[0].get('name')}"
            )
    if loss.referenced:
        ours, theirs = reference_of(first.manifest), reference_of(other.manifest)
        if _reference_id(first) != _reference_id(other):
            return (
                f"--loss {loss.name} reads the reference, which is {_reference(ours)} in {first.name} and"
                f" {_reference(theirs)} in {other.name}.\n"
                f"Score one again:  {contract.scores(other, str(ours.get('name')))}"
            )
    return None


def _reference_id(version: Version) -> str | None:
    """What decides the stored log-probs; None if there are none."""
    entry = reference_of(version.manifest)
    return reference.fingerprint(entry) if entry else None


def _reference(entry: Mapping[str, Any]) -> str:
    settings = str(entry.get("config_digest"))[:12]
    return f"{entry.get('name')}@{str(entry.get('digest'))[:12]} with settings {settings} in {entry.get('dtype')}"
