"""What a scorer gave before: rows that an earlier version carries are not scored again when others have joined them.

Units are runs of rows, so more samples of the same prompts make other units of them. The scores themselves are found by what
they depend on.
"""

from collections.abc import Sequence
from functools import cached_property

from prefdata import versions
from prefdata.scorers import Scorer
from prefdata.versions import Version


class EarlierScores:
    """Of the versions below a root that this very scorer (by its fingerprint) scored; read when first asked."""

    def __init__(self, root: str, fingerprint: str, scorer: Scorer) -> None:
        self._root, self._fingerprint, self._scorer = root, fingerprint, scorer

    def of(self, members: Sequence[str]) -> list[float | None]:
        """A score for each; None where there is none."""
        return [self._known.get(member) for member in members]

    @cached_property
    def _known(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for version in versions.every(self._root):
            for entry in version.manifest.get("scorers", []):
                if entry["fingerprint"] == self._fingerprint:
                    found |= self._in(version, entry["name"])
        return found

    def _in(self, version: Version, name: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for split in version.splits:
            for rows in version.batches(split):
                members = self._scorer.members(rows)
                for member, scores in zip(members, rows["scores"].to_pylist(), strict=True):
                    found[member] = next(each["score"] for each in scores if each["scorer"] == name)
        return found
