"""A version as it stands, in a folder of its own: for the hub, or for anyone who reads Parquet.

Its card already lists the splits for `datasets` and the licences of the sources, and its manifest says what it is, so
nothing is added: the copy is itself a version, and `prefdata verify` takes it.
"""

from collections.abc import Sequence
from pathlib import Path

from prefdata import manifests
from prefdata.errors import UserError
from prefdata.exports.folder import Files, changed
from prefdata.exports.target import Progress
from prefdata.logical import BASE
from prefdata.versions import MANIFEST, SPLITS, Version


class VersionCopy:
    """The target."""

    name = "hf"
    about = "the version itself with its card, as a data set of the Hugging Face hub"
    kinds = tuple(BASE)

    def check(self, version: Version, splits: Sequence[str]) -> None:
        """All of it or nothing."""
        if set(splits) != set(version.splits):
            raise UserError(f"hf copies {version.name} as it stands, with every split: leave --split out.")

    def holds(self, folder: Path, version: Version, splits: Sequence[str]) -> bool:
        """Whether a folder holds this version's manifest, and the files it lists."""
        try:
            if (folder / MANIFEST).read_bytes() != manifests.as_bytes(version.manifest):
                return False
        except OSError:
            return False
        if odd := changed(folder, version.manifest["files"], but=MANIFEST):
            raise UserError(
                f"{folder} is this version, but {odd} was changed since: move the folder away to copy it anew."
            )
        return True

    def write(self, folder: Path, version: Version, splits: Sequence[str], progress: Progress) -> None:
        """Every file, each checked against the manifest on its way, and the manifest last."""
        with Files(folder) as files:
            for entry in version.manifest["files"]:
                files.put(entry["path"], version.content(entry))
                if entry["path"].split("/")[0] in SPLITS:
                    progress(entry.get("rows", 0))
            files.put(MANIFEST, manifests.as_bytes(version.manifest))
            files.end()

    def tally(self, folder: Path, version: Version) -> dict[str, dict[str, int]]:
        """All rows."""
        return {split: {"": version.manifest["counts"]["rows"][split]} for split in version.splits}


TARGET = VersionCopy()
