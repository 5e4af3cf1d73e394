"""The sections of a recipe that are builds, in the order in which they run."""

from dataclasses import dataclass

SELECTIONS = {
    "paired": "build-paired",
    "unpaired": "build-unpaired",
    "rejection-samples": "build-rejection-samples",
    "greedy-baselines": "build-greedy-baselines",
    "sapo-negatives": "build-sapo-negatives",
}


@dataclass(frozen=True)
class Section:
    """builds: the build, or by what the section's `build` says; several: `[[name]]` may stand more than once."""

    name: str
    builds: str | dict[str, str]
    several: bool = False


SECTIONS = (
    Section("source", "ingest"),
    Section("steps", "clean"),
    Section("generate", "generate"),
    Section("score", "score-rewards"),
    Section("select", SELECTIONS, several=True),
    Section("reference", "add-reference"),
)
BY_NAME = {section.name: section for section in SECTIONS}
# what else a recipe may say, and the keys of each
OTHERS: dict[str, dict[str, type]] = {
    "budget": {"max_tokens": int, "max_rows": int},
    "output": {"root": str, "tag": str},
}
