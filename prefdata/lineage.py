"""Where a version came from and what was made from it, drawn as a tree."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefdata import versions
from prefdata.errors import UserError
from prefdata.storage import Storage
from prefdata.versions import Version
from schemas.manifest import Parent


@dataclass(frozen=True)
class Node:
    """A line of the tree: a version, a source of rows, or a parent that can't be opened (neither)."""

    label: str  # its parts are two spaces apart
    version: Version | None = None
    lost: bool = False  # a parent that can't be opened


Children = Callable[[Version], Sequence[Node]]


def ancestors(version: Version) -> Iterator[str]:
    """The version, what it was made from, and so on down to the sources with their licences."""
    names = Tags()
    return _drawn(Node(names.label(version), version), lambda each: above(each, names))


def above(version: Version, names: "Tags") -> list[Node]:
    """What a version was made from: its parents, then the sources that none of them tells of."""
    parents = [_opened(ref, version) for ref in version.parents]
    nodes = [
        _lost(ref, found) if isinstance(found, UserError) else _parent(ref, found, entry, version, names)
        for ref, found, entry in zip(version.parents, parents, version.manifest["parents"], strict=True)
    ]
    return [*nodes, *_sources(version, [each for each in parents if isinstance(each, Version)])]


def descendants(version: Version, given_root: str | None = None) -> Iterator[str]:
    """The version and what was made from it, among the versions below its own root and the one in use."""
    names = Tags()
    roots = dict.fromkeys([version.root, Storage(versions.root(given_root)).url])
    made: dict[str, list[Version]] = {}  # by the parent's URL
    for each in (each for where in roots for each in versions.every(where)):
        for url in dict.fromkeys(_parent_urls(each)):
            made.setdefault(url, []).append(each)

    def made_from(parent: Version) -> list[Node]:
        return [Node(names.label(each), each) for each in made.get(parent.url, ())]

    return _drawn(Node(names.label(version), version), made_from)


def _drawn(first: Node, children: Children) -> Iterator[str]:
    """The lines of a tree. A version that comes up again is not unfolded again: lineages share ancestors, and a
    manifest changed by hand could name its own child as a parent.
    """
    unfolded: set[str] = set()
    waiting = [(first, "", "")]
    while waiting:
        node, before, below = waiting.pop()
        version = node.version
        again = version is not None and version.url in unfolded
        inside = [] if version is None or again else list(children(version))
        yield before + node.label + ("  (unfolded above)" if again else "")
        if version is not None:
            unfolded.add(version.url)
        for number, child in reversed(list(enumerate(inside, 1))):
            last = number == len(inside)
            waiting.append((child, below + ("└── " if last else "├── "), below + ("    " if last else "│   ")))


def _parent_urls(version: Version) -> list[str]:
    return [ref if "/" in ref else f"{version.root}/{ref}" for ref in version.parents]


def _opened(ref: str, child: Version) -> Version | UserError:
    try:
        return versions.find(ref, root=child.root)
    except UserError as problem:
        return problem


def _lost(ref: str, problem: UserError) -> Node:
    return Node(f"{ref}  cannot be opened: {str(problem).splitlines()[0]}", lost=True)


def _parent(ref: str, parent: Version, entry: Parent, child: Version, names: "Tags") -> Node:
    changed = parent.logical_hash != entry["logical_hash"]
    note = f"  (not the {ref} that {child.name} was made from: its logical hash differs)" if changed else ""
    return Node(names.label(parent) + note, parent)


def _sources(version: Version, parents: Sequence[Version]) -> list[Node]:
    """The sources that no parent tells of: a version made from another repeats that one's."""
    told = {_key(source) for parent in parents for source in parent.manifest["sources"]}
    return [Node(_source(source)) for source in version.manifest["sources"] if _key(source) not in told]


def _key(source: Mapping[str, Any]) -> str:
    return json.dumps(source, sort_keys=True)


def _source(source: Mapping[str, Any]) -> str:
    rows = source.get("rows")
    parts = [f"source {source.get('name') or source.get('path') or 'without a name'}", source.get("format")]
    parts += [f"{rows} rows" if rows is not None else None, source.get("origin")]
    parts.append(f"licence: {source['license']}" if source.get("license") else "licence not stated")
    return "  ".join(str(part) for part in parts if part)


class Tags:
    """Labels of versions, with their tags; each root's tags are read once."""

    def __init__(self) -> None:
        self._of_root: dict[str, dict[str, str]] = {}

    def label(self, version: Version) -> str:
        """One line: what it is called, what it holds, what made it."""
        if version.root not in self._of_root:
            self._of_root[version.root] = versions.tags(version.root)
        manifest = version.manifest
        names = [tag for tag, name in self._of_root[version.root].items() if name == version.name]
        rows = ", ".join(f"{split} {manifest['counts']['rows'][split]}" for split in version.splits) or "no rows"
        parts = [version.name, version.kind, manifest["build"]]
        parts += [f"round {manifest['round']}"] if manifest["round"] else []
        parts += [rows, *([f"tags: {', '.join(names)}"] if names else [])]
        return "  ".join(parts)
