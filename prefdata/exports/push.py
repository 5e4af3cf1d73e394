"""An export as a data set of the Hugging Face hub: one commit, so that the hub too has all of it or none."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdata import versions
from prefdata.errors import BUGS, Unreachable, UserError
from prefdata.sources import hub
from schemas import export, manifest

# what says that a folder or a data set is ours, and which: the file, and the format it states
MARKS = {export.MANIFEST: export.FORMAT, versions.MANIFEST: manifest.FORMAT}
_FRESH = frozenset({".gitattributes"})  # what the hub itself puts into a new data set


@dataclass(frozen=True)
class Pushed:
    """Where it is now."""

    url: str
    was_there: bool


def hub_api(repo: str) -> Any:
    """The hub's client, ready to write. UserError if the name can't be one of a data set, or nobody is logged in."""
    import huggingface_hub

    if "/" not in repo or not hub.may_be_name(repo):
        raise UserError(f"{repo!r} is no data set's name on the hub: give OWNER/NAME")
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError("there is no token to push with: log in with `hf auth login`, or set HF_TOKEN")
    return huggingface_hub.HfApi(token=token)


def push(folder: Path, repo: str, api: Any, *, private: bool = False, message: str = "") -> Pushed:
    """Put a folder's files into a data set, which is made if there is none, and take out all others.

    UserError if the data set holds anything but an export, or is public where `private` is asked for.
    """
    try:
        url = str(api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True))
        there = api.dataset_info(repo)
        if private and not there.private:
            raise UserError(
                f"{url} is public, and --private was asked for: make it private there first, or name another."
            )
        names = {file.rfilename for file in there.siblings or ()} - _FRESH
        if names and _is_there(folder, repo, api, there.sha, names):
            return Pushed(url, was_there=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=str(folder),
            commit_message=message or f"prefdata export of {folder.name}",
            delete_patterns=["*"] if names else None,
            parent_commit=there.sha,
        )
    except UserError:
        raise
    except BUGS:
        raise
    except Exception as error:  # the client raises what its network library raises, and kinds of its own
        told = getattr(error, "server_message", None) or str(error).strip() or "no reason given"
        found = told.splitlines()[0].rstrip(".")
        raise Unreachable(
            f"{folder} is written, but the hub did not take it as {repo} ({type(error).__name__}: {found}); "
            "the same command tries again."
        ) from error
    return Pushed(url, was_there=False)


def _is_there(folder: Path, repo: str, api: Any, revision: str, names: set[str]) -> bool:
    """Whether the data set holds this very export; False for another. UserError if what it holds is no export."""
    marks = [mark for mark in MARKS if mark in names]
    with tempfile.TemporaryDirectory() as local:
        for mark in marks:
            path = api.hf_hub_download(repo, mark, repo_type="dataset", revision=revision, local_dir=local)
            data = Path(path).read_bytes()
            if _format(data) == MARKS[mark]:
                return (folder / mark).is_file() and (folder / mark).read_bytes() == data
    raise UserError(
        f"the data set {repo} holds files that are no export of prefdata, and a push replaces all: name another."
    )


def _format(data: bytes) -> object:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found.get("format") if isinstance(found, dict) else None
