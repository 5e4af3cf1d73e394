"""A real disk that can be full or read-only: a tmpfs of its own. Needs the right to mount; without it they are skipped, with the reason."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.required import lacking

BYTES = 8 << 20
PAGE = 4096
FILLER = "filler"
# as root; else where sudo asks no password, as on most CI machines
WAYS = ([], ["sudo", "-n"])


class Disk:
    """A mounted tmpfs."""

    def __init__(self, path: Path, way: list[str]) -> None:
        self.path = path
        self._way = way

    def leave(self, free: int) -> None:
        """Fill it until this many bytes, a multiple of a page, can still be written."""
        self.empty()
        with (self.path / FILLER).open("wb") as filler:
            filler.write(b"\0" * (self.free - free))
        assert self.free == free

    def empty(self) -> None:
        """Remove what `leave` filled it with."""
        (self.path / FILLER).unlink(missing_ok=True)

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_bsize

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written, not even by root."""
        self._remount("ro")
        try:
            yield
        finally:
            self._remount("rw")

    def _remount(self, mode: str) -> None:
        subprocess.run([*self._way, "mount", "-o", f"remount,{mode}", str(self.path)], check=True)


@contextmanager
def mounted(path: Path) -> Iterator[Disk]:
    """A disk at a new folder; skips the test where nothing can be mounted."""
    path.mkdir()
    options = f"size={BYTES},mode=0777"
    said = ""
    for way in WAYS:
        command = [*way, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        try:
            tried = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as absent:
            said += f"{absent}; "
            continue
        if tried.returncode == 0:
            try:
                yield Disk(path, way)
            finally:
                subprocess.run([*way, "umount", "--lazy", str(path)], check=True)
            return
        said += f"{tried.stderr.strip()}; "
    lacking("tmpfs", f"no tmpfs can be mounted here: {said}")
