"""Where things about a version stand that are no part of it: a version never changes, so they stand beside its root."""

from pathlib import Path
from urllib.parse import quote

from prefdata.versions import Version


def beside(version: Version, folder: str) -> Path:
    """`folder`/NAME beside the folder NAME of versions, or ./`folder`/SCHEME/BUCKET/PATH where they live in an object store.

    No two roots share one.
    """
    if version.storage.local:
        root = Path(version.root)
        return root.parent / folder / root.name
    scheme, _, place = version.root.partition("://")
    return Path(folder, scheme, *(_as_name(part) for part in place.split("/") if part))


def _as_name(part: str) -> str:
    """A part of a URL as the name of a folder: another one for another part."""
    return quote(part, safe="") if part.strip(".") else part.replace(".", "%2E")  # .. would lead out of the folder
