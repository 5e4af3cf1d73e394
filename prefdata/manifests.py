"""A manifest as bytes, and whether what stands in a manifest.json is a manifest that this prefdata reads."""

import json
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints, is_typeddict

from prefdata.storage import sha256
from schemas.manifest import FORMAT, Manifest


def sealed(fields: Mapping[str, Any]) -> Manifest:
    """The manifest of these fields, with the seal that they have."""
    return cast(Manifest, {**fields, "seal": _seal(fields)})


def as_bytes(manifest: Mapping[str, Any]) -> bytes:
    """What manifest.json holds."""
    return json.dumps(manifest, ensure_ascii=False, indent=2).encode()


def problem(found: object) -> str | None:
    """What keeps parsed JSON from being a manifest, in words; None if nothing does. Further keys are no problem."""
    if isinstance(found, dict) and "format" in found and found["format"] != FORMAT:
        return f"format {found['format']!r}, and this prefdata reads {FORMAT!r}"
    if wrong := next(_wrong(found, Manifest, ""), None):
        return wrong
    if isinstance(found, dict) and found["seal"] != _seal(found):
        return "it is not as it was published (its seal differs); restore the file, or build the version again"
    return None


def _seal(fields: Mapping[str, Any]) -> str:
    covered = {name: value for name, value in fields.items() if name != "seal"}
    return sha256(json.dumps(covered, sort_keys=True).encode())


def _wrong(value: object, wanted: Any, where: str) -> Iterator[str]:
    """Where a value is not of the wanted type: a TypedDict, a list, a dict, a union or a plain type."""
    if wanted is Any:
        return
    if get_origin(wanted) is UnionType:
        yield from min((list(_wrong(value, each, where)) for each in get_args(wanted)), key=len)
        return
    plain = dict if is_typeddict(wanted) else get_origin(wanted) or wanted
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        yield f"{where or 'its content'} is of type {type(value).__name__}, expected {plain.__name__}"
    elif is_typeddict(wanted):
        yield from _wrong_fields(value, wanted, where)
    elif plain in (list, dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _wrong(item, get_args(wanted)[-1], _inside(where, name))


def _wrong_fields(value: Mapping[str, object], wanted: Any, where: str) -> Iterator[str]:
    for name, kind in get_type_hints(wanted).items():
        if name in value:
            yield from _wrong(value[name], kind, _inside(where, name))
        elif name in wanted.__required_keys__:
            yield f"{_inside(where, name)} is absent"


def _inside(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)
