"""Errors that a user can act on: one sentence of what was found, and what to do about it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

# what is wrong with the machine and not with the program
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# what a network file system or a busy machine may answer at one moment and no longer at the next
PASSING = frozenset({errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE})
_FAULTS = _FULL | PASSING | {errno.EACCES, errno.EFBIG, errno.ENODEV, errno.ENXIO, errno.EPERM, errno.EROFS}
_OF_A_PLACE = _FULL | {errno.EROFS}  # true of a whole disk, so of the place that was written to

# what only a mistake in the code raises, or a machine that is out of memory: no place for data gives it as an answer
BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError, MemoryError, RecursionError)


class UserError(Exception):
    """Bad input. The command line prints its text alone and exits with 2; nothing was published."""


class Unreachable(UserError):
    """A place for data, or the machine, that does not answer or answers with an error: another try may do."""


@contextmanager
def faults_in_words(where: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """A full disk, a failing one, one that may not be written: an OSError of that kind as a UserError; all others pass.

    What may pass by itself (`PASSING`) becomes Unreachable. `where` names the place that was written to, for errors of a
    whole disk that do not say it themselves.
    """
    try:
        yield
    except OSError as problem:
        if problem.errno not in _FAULTS:
            raise
        kind = Unreachable if problem.errno in PASSING else UserError
        raise kind(_sentence(problem, where)) from problem


def _sentence(problem: OSError, where: str | os.PathLike[str] | None) -> str:
    named = problem.filename
    if not isinstance(named, str | bytes | os.PathLike):  # none, or the number of an open file
        named = where if problem.errno in _OF_A_PLACE else None
    found = os.strerror(problem.errno or 0).lower() + (f" ({os.fsdecode(named)})" if named else "")
    cure = "Free some space there" if problem.errno in _FULL else "Mend that"
    return f"stopped by the machine: {found}. {cure}, then give the same command again; what was finished is kept."
