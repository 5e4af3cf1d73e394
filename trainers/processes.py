"""One run in several processes, as torchrun starts them: who decides, who speaks, and how an error ends all of them.

    torchrun --nproc_per_node 2 -m trainers.run --data v3 --loss orpo

The first process names the run folder and writes in it. In a run of one process nothing here costs anything.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from prefdata.errors import UserError, faults_in_words

T = TypeVar("T")
Say = Callable[[str], None]  # how a person is told something

# what torchrun tells each process beside WORLD_SIZE
_TOLD = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_GRACE_S = 2.0  # for a process that stopped to say why: torchrun ends it when another is gone


class Elsewhere(UserError):
    """An error of another process of the run, which says it."""


class Lost(UserError):
    """Another process of the run is gone, and could not tell this one why."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. All must call `gather`, `agreed`, `decided` and `any` in one order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that decides, writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        import torch

        found: list[T | None] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process."""
        return any(self.gather(flag))

    def agreed(self, work: Callable[[], T]) -> T:
        """What this process's work gives. A UserError in one process is raised in all, and said by that one alone.

        So is a fault of one process's machine, such as a full disk.
        """
        done: T | None = None
        problem: UserError | None = None
        try:
            with faults_in_words():
                done = work()
        except UserError as found:
            problem = found
        said = self.gather(None if problem is None else str(problem))
        speaker = next((rank for rank, text in enumerate(said) if text is not None), None)
        if speaker is None:
            return cast(T, done)
        if speaker == self.rank and problem is not None:
            raise problem
        raise Elsewhere(said[speaker]) from problem

    def decided(self, decide: Callable[[], T]) -> T:
        """What the first process decides, in all of them."""
        return self.gather(self.agreed(lambda: decide() if self.first else cast(T, None)))[0]


def speaks() -> bool:
    """Whether this process is the one that a person hears; needs no connection to the others."""
    return _size() == 1 or os.environ.get("RANK", "0") == "0"


@contextmanager
def joined() -> Iterator[Processes]:
    """This process's place among those of the run, connected to them while the context lasts."""
    size = _size()
    if size == 1:
        yield Processes()
        return
    lacking = [name for name in _TOLD if name not in os.environ]
    if lacking:
        raise UserError(
            f"WORLD_SIZE is {size}, and {', '.join(lacking)} not set: start several processes with torchrun, or unset it."
        )
    import torch

    torch.distributed.init_process_group(_backend())
    try:
        yield Processes(int(os.environ["RANK"]), size)
    except RuntimeError as problem:
        if not _of_connection(problem):
            raise
        time.sleep(_GRACE_S)
        raise Lost(
            "another process of the run stopped, and this one with it; the same command goes on from the last checkpoint,"
            " if there is one."
        ) from problem
    finally:
        torch.distributed.destroy_process_group()


def _of_connection(problem: RuntimeError) -> bool:
    """Whether it is about reaching another process; gloo has no type for it."""
    import torch

    return isinstance(problem, torch.distributed.DistError) or "gloo" in str(problem)


def _backend() -> str:
    """NCCL between GPUs, one for each process, and gloo for everything that is not on one."""
    import torch

    if not torch.cuda.is_available():
        return "gloo"
    place, started, devices = _local("RANK"), _local("WORLD_SIZE"), torch.cuda.device_count()
    if started > devices:  # seen by all of them, or some would wait for the others
        raise (Elsewhere if place else UserError)(
            f"torchrun started {started} processes here, and there are {devices} GPUs: give --nproc_per_node {devices}."
        )
    torch.cuda.set_device(place)
    return "cpu:gloo,cuda:nccl"


def _local(name: str) -> int:
    return int(os.environ[f"LOCAL_{name}"])


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)
