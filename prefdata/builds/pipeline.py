"""What goes on beside a unit's computation: the next one is read, and the one before is written."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

from prefdata.errors import Unreachable
from prefdata.work import Tables, Work

Item = TypeVar("Item")

_TRIES, _PAUSE_S = 3, 2.0  # of the last write, which no later unit would try again
_END = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each of them made in a thread while the caller works on the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="reading") as pool:
        made = iter(items)
        following: Future[object] = pool.submit(next, made, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, made, _END)
            yield item  # type: ignore[misc]


class Behind:
    """Writes a unit's result while the next unit is computed.

    A write that fails is told when the next one begins, or at the end, and is tried again then.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._held: tuple[str, Tables] | None = None
        self._writing: Future[Tables] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        try:
            self._finish()
        except Exception:
            if kind is None:
                raise
        finally:
            self._pool.shutdown()

    def store(self, key: str, tables: Tables) -> None:
        """Begin to keep a unit's result, once the one before is kept."""
        self._wait()
        self._held = key, tables
        self._writing = self._pool.submit(self._work.store, key, tables)

    def _wait(self) -> None:
        if self._held is None:
            return
        writing, self._writing = self._writing, None
        if writing is None:  # it failed before
            self._work.store(*self._held)
        else:
            writing.result()
        self._held = None

    def _finish(self) -> None:
        for _ in range(_TRIES - 1):
            try:
                return self._wait()
            except Unreachable:
                time.sleep(_PAUSE_S)
        return self._wait()
