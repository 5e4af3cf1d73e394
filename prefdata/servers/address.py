"""Where servers are, and the key that opens them."""

import os
from collections.abc import Sequence

import httpx

from prefdata.errors import UserError


def address(given: str) -> httpx.URL:
    """The base of a server's API: a URL without a path gets /v1, one with a path stays as it is."""
    try:
        url = httpx.URL(given.strip().rstrip("/"))
    except httpx.InvalidURL as problem:
        raise UserError(f"server {given!r} is no URL ({problem}): give one like http://HOST:8000.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"server {given!r} is no URL of a server: give one like http://HOST:8000.")
    return url if url.path.strip("/") else url.copy_with(path="/v1")


def addresses(given: Sequence[str]) -> list[httpx.URL]:
    """Each once, in the order given."""
    found = list(dict.fromkeys(address(one) for one in given))
    if not found:
        raise UserError("no server is named: say where one listens, such as --server http://HOST:8000.")
    return found


def shown(url: httpx.URL) -> str:
    """For messages: without user name and password."""
    return str(url.copy_with(username=None, password=None))


def headers(api_key_env: str | None) -> dict[str, str]:
    """The key from an environment variable, as a bearer token."""
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise UserError(f"the servers' key is to come from the environment variable {api_key_env}, which is not set.")
    return {"Authorization": f"Bearer {key}"}
