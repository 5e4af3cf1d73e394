"""What object stores answer: a create that one caller wins, and their errors in words.

Written for what S3 and the servers that speak it answer through s3fs; other stores go through the same calls, and
`Storage.probe` refuses one that does not keep the promise.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from prefdata.errors import BUGS, Unreachable, UserError

_LOOK = (
    "look at the bucket's name, the credentials and the endpoint, or choose another place with --root or PREFDATA_ROOT"
)
_TAKEN = frozenset({"PreconditionFailed", "412"})  # not every server names the condition, by which s3fs would know
# S3 answers so while another conditional write of the same name is under way, and asks for another try
_CONFLICTS = frozenset({"ConditionalRequestConflict", "409"})
_CONFLICT_TRIES = 8
_FIRST_WAIT_S = 0.05  # twice as long after each conflict
_REMOVERS = 16  # files removed at a time


@contextmanager
def in_words(act: str, where: str) -> Iterator[None]:
    """Errors of a store as sentences; a mistake in the code, and a name that is taken, absent or no folder, pass."""
    try:
        yield
    except (UserError, FileExistsError, NotADirectoryError, *BUGS):
        raise
    except FileNotFoundError as problem:
        if _code(problem) != "NoSuchBucket":
            raise
        raise UserError(f"cannot {act} {where} (there is no such bucket): {_LOOK}") from problem
    except PermissionError as problem:
        raise UserError(f"cannot {act} {where} ({_shown(problem)}): {_LOOK}") from problem
    except Exception as problem:  # each store has errors of its own, many of which are no OSError
        raise Unreachable(f"cannot {act} {where} ({_shown(problem)}): {_LOOK}") from problem


def create(fs: Any, path: str, data: bytes) -> bool:
    """A conditional put: True for the caller that made the file, False where there was one."""
    wait_s = _FIRST_WAIT_S
    for _ in range(_CONFLICT_TRIES):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as problem:
            if _code(problem) in _TAKEN:
                return False
            if _code(problem) not in _CONFLICTS:
                raise
        else:
            return True
        time.sleep(wait_s)
        wait_s *= 2
    raise TimeoutError(f"others kept writing it at the same time, {_CONFLICT_TRIES} times")


def remove(fs: Any, paths: Iterable[str]) -> None:
    """Remove files by their exact names, several at a time; absent ones are passed over.

    `fs.rm` would take a name for a pattern, and s3fs keeps silent about what a removal in bulk was refused.
    """

    def one(path: str) -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(path)

    with ThreadPoolExecutor(_REMOVERS) as pool:
        list(pool.map(one, paths))  # raises what one of them raised


def _code(problem: BaseException) -> str:
    """The store's own code for an error; empty where it gave none."""
    answer = getattr(problem.__cause__, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def _shown(problem: Exception) -> str:
    told = problem.strerror if isinstance(problem, OSError) else None  # the number before it is none of the store's
    return told or str(problem) or type(problem).__name__
