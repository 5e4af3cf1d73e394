"""Errors that a user can act on: one sentence of what was found, and what to do about it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

# what is wrong with the machine and not with the program
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FAULTS = _FULL | {
    errno.EACCES,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENODEV,
    errno.ENXIO,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


class UserError(Exception):
    """Bad input. The command line prints its text alone and exits with 2; nothing was published."""


class Unreachable(UserError):
    """A place for data that does not answer, or answers with an error: another try may do."""


@contextmanager
def faults_in_words(where: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """A full disk, a failing one, one that may not be written: an OSError of that kind as a UserError; all others pass.

    `where` names what was read or written, for errors that do not say it themselves.
    """
    try:
        yield
    except OSError as problem:
        if problem.errno not in _FAULTS:
            raise
        raise UserError(_sentence(problem, problem.filename or where)) from problem


def _sentence(problem: OSError, where: object) -> str:
    found = os.strerror(problem.errno or 0).lower() + (f" ({os.fsdecode(where)})" if where else "")  # type: ignore[arg-type]
    cure = "Free some space there" if problem.errno in _FULL else "Mend that"
    return f"stopped by the machine: {found}. {cure}, then give the same command again; what was finished is kept."
