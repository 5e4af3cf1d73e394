"""Content-keyed work units: what is done stays done.

A unit's key is a hash of all that its result depends on (inputs, rule, configuration, model fingerprint). Its result
is one or more tables, written whole and once: of two writers the first one wins and both go on with what it wrote.
A unit that can't be read back whole counts as not done.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping

import pyarrow as pa

from prefdata.errors import UserError
from prefdata.identity import digest
from prefdata.storage import Storage

FOLDER = ".work"
UNIT = re.compile(r"units/([0-9a-f]{2})/(\1[0-9a-f]{62})")  # what a finished unit is called below the folder
Tables = dict[str, pa.Table]


def unit_key(stage: str, config: Mapping[str, object], members: list[str]) -> str:
    """The name of a unit: its stage, what configures it, and the ids of what goes in, in order."""
    return digest({"stage": stage, "config": dict(config), "members": members})


class Work:
    """The finished units below a root, shared by every build of that root."""

    def __init__(self, root: str) -> None:
        self._storage = Storage(root).at(FOLDER)
        self.reused = 0
        self.computed = 0

    def load(self, key: str) -> Tables | None:
        """The unit's tables, or None if it is not done."""
        try:
            data = self._storage.read(_name(key))
        except FileNotFoundError:
            return None
        tables = _unpack(data)
        if tables is None:
            self._storage.remove(_name(key))  # damaged on disk: recomputed whole
        return tables

    def result(self, key: str) -> Tables:
        """The tables of a unit that was done when it was last asked for. UserError if it is gone or damaged by now."""
        tables = self.load(key)
        if tables is None:
            raise UserError(
                f"the finished unit {self.path(key)} is gone or damaged since; give the same command again, and it is "
                "computed anew"
            )
        return tables

    def sound(self, key: str) -> bool:
        """Whether the unit can be read back whole, or is gone by now; unlike `load` this removes nothing."""
        try:
            return _unpack(self._storage.read(_name(key))) is not None
        except FileNotFoundError:
            return True

    def path(self, key: str) -> str:
        """Where the unit stands, from the root on."""
        return f"{FOLDER}/{_name(key)}"

    def done(self, key: str) -> bool:
        """Whether the unit is there (its bytes are checked when it is loaded)."""
        return self._storage.exists(_name(key))

    def store(self, key: str, tables: Tables) -> Tables:
        """Keep a unit's result and return what is kept: an earlier result of the same key if there is one."""
        if self._storage.create(_name(key), _pack(tables)):
            return tables
        earlier = self.load(key)
        return self.store(key, tables) if earlier is None else earlier

    def keys(self) -> Iterator[str]:
        """The keys of all finished units; files of another name are none of them."""
        found = (UNIT.fullmatch(f"units/{name}") for name in self._storage.walk("units"))
        return (match[2] for match in found if match)


def _name(key: str) -> str:
    return f"units/{key[:2]}/{key}"


def _pack(tables: Tables) -> bytes:
    bodies = {name: _to_ipc(table) for name, table in tables.items()}
    header = json.dumps({name: len(body) for name, body in bodies.items()}).encode()
    payload = len(header).to_bytes(4, "big") + header + b"".join(bodies.values())
    return hashlib.sha256(payload).digest() + payload


def _unpack(data: bytes) -> Tables | None:
    checksum, payload = data[:32], data[32:]
    if len(data) < 36 or hashlib.sha256(payload).digest() != checksum:
        return None
    start = 4 + int.from_bytes(payload[:4], "big")
    tables = {}
    for name, length in json.loads(payload[4:start]).items():
        tables[name] = pa.ipc.open_stream(pa.BufferReader(payload[start : start + length])).read_all()
        start += length
    return tables


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
