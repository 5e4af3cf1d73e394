"""What builds take from a parent version: its rows, and the models its manifest names."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa

from prefdata import versions
from prefdata.errors import UserError
from prefdata.versions import Version


class ParentReader:
    """Rows of a parent by file and position. The file read last is kept, since units come in file order."""

    def __init__(self, parent: Version) -> None:
        self._parent = parent
        self._entries = {entry["path"]: entry for entry in parent.manifest["files"]}
        self._lock = threading.Lock()
        self._last: tuple[str, pa.Table] | None = None

    def file(self, path: str) -> pa.Table:
        """All rows of one of the parent's files."""
        with self._lock:
            if self._last is None or self._last[0] != path:
                self._last = (path, self._parent.read(self._entries[path]))
            return self._last[1]

    def slice(self, path: str, start: int, rows: int) -> pa.Table:
        """Consecutive rows."""
        return self.file(path).slice(start, rows)

    def take(self, path: str, positions: Sequence[int]) -> pa.Table:
        """Rows at these positions."""
        return self.file(path).take(list(positions))


def same_reference(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether two manifest entries are of the same reference: weights, settings and precision; names don't matter."""
    return one is not None and other is not None and one["fingerprint"] == other["fingerprint"]


def next_round(parent: Version, root: str, source: str) -> int:
    """The round after the parent's; when the source is whatever is latest, the one after every round of its lineage."""
    if source != "latest":
        return parent.manifest["round"] + 1
    known = {version.name: version for version in versions.every(root)}
    family = _ancestors(parent.name, known)
    related = [version for name, version in known.items() if _ancestors(name, known) & family]
    return 1 + max(version.manifest["round"] for version in [parent, *related])


def _ancestors(name: str, known: dict[str, Version]) -> set[str]:
    """A version, its parents, and theirs, as far as they are below the root."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in known and current not in found:
            found.add(current)
            waiting.extend(parent["version"] for parent in known[current].manifest["parents"])
    return found


def model_name(parent: Version, given: str | None, roles: Sequence[str]) -> str:
    """The model a build uses: the one given, else the first that the parent's manifest names in one of these roles."""
    if given is not None:
        return given
    for role in (*roles, "tokenizer"):
        entry = cast(dict[str, Any] | None, parent.manifest.get(role))
        if entry and entry.get("name"):
            commit = entry.get("commit")
            return f"{entry['name']}@{commit}" if commit else str(entry["name"])
    raise UserError(f"{parent.name} names no model; say which with --model")


def parent_model(
    parent: Version, given: str | None, *, roles: Sequence[str], dtype: str, trust_remote_code: bool
) -> tuple[str, dict[str, Any]]:
    """The model a build uses and what it is, checked against the parent's tokens and manifest."""
    from prefdata.models import describe

    name = model_name(parent, given, roles)
    try:
        description = describe(name, dtype)
    except UserError as problem:
        if given is not None:
            raise
        raise UserError(
            f"{parent.name} was made with the model {name}, which can't be read now; say where it is with --model ({problem})"
        ) from problem
    if given is None:
        check_same_model(parent, name, description)
    _check_fits(parent.manifest["tokenizer"], parent.name, name, trust_remote_code)
    return name, description


def reference_model(
    parent: Version, given: str | None, *, dtype: str, trust_remote_code: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reference as the manifest records it, and what loads it."""
    name, description = parent_model(
        parent, given, roles=("reference", "generator"), dtype=dtype, trust_remote_code=trust_remote_code
    )
    return _reference_entry(name, description, dtype, trust_remote_code)


def reference_of_tokens(
    tokenizer: Mapping[str, Any], name: str, *, dtype: str, trust_remote_code: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same for rows that are only being made, whose tokens this tokenizer makes."""
    from prefdata.models import describe

    description = describe(name, dtype)
    _check_fits(tokenizer, "this ingest", name, trust_remote_code)
    return _reference_entry(name, description, dtype, trust_remote_code)


def _reference_entry(
    name: str, description: dict[str, Any], dtype: str, trust_remote_code: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    from prefdata import reference

    loading = {"name": name, "dtype": dtype, "trust_remote_code": trust_remote_code}
    return {**description, "fingerprint": reference.fingerprint(description, dtype)}, loading


def check_same_model(parent: Version, name: str, description: dict[str, Any]) -> None:
    """A model taken from the manifest must still have the weights it had then."""
    for role, entry in (("generator", parent.manifest["generator"]), ("reference", parent.manifest["reference"])):
        if entry and entry.get("name") == name and entry.get("digest") != description["digest"]:
            raise UserError(
                f"the {role} of {parent.name} was {name!r} with digest {entry['digest'][:12]}, and the model there now "
                f"has digest {description['digest'][:12]}; if that is what you want, say so with --model {name}"
            )


def _check_fits(tokenizer: Mapping[str, Any], whose: str, model: str, trust_remote_code: bool) -> None:
    """UserError unless a model reads the tokens that a tokenizer made, and rows as long as they may be."""
    _check_same_tokens(tokenizer, whose, model, trust_remote_code)
    _check_positions(tokenizer, whose, model, trust_remote_code)


def _check_positions(tokenizer: Mapping[str, Any], whose: str, model: str, trust_remote_code: bool) -> None:
    from prefdata.models import max_positions

    positions = max_positions(model, trust_remote_code=trust_remote_code)
    longest = tokenizer.get("max_length")
    if positions is not None and longest is not None and positions < longest:
        raise UserError(
            f"{model!r} takes {positions} tokens and rows of {whose} may have {longest}; take another model, or "
            f"ingest the source again with --max-length {positions}"
        )


def _check_same_tokens(stored: Mapping[str, Any], whose: str, model: str, trust_remote_code: bool) -> None:
    """Stored token ids mean something only to the tokenizer that made them."""
    from prefdata.tokens import Renderer, differences

    own = Renderer.like(stored, model, trust_remote_code=trust_remote_code)
    if stored["digest"] != own.fingerprint["digest"]:
        found = "; ".join(differences(stored, own.fingerprint))
        raise UserError(
            f"{model!r} has another tokenizer than {whose}: {found}. "
            f"Ingest the source again for it:  python -m flows.ingest SOURCE --model {model}"
        )
