"""Which split a source's own names put a row in: train or test, or None when they do not say."""

import re

WORDS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "validation", "valid", "val", "eval", "evaluation", "dev"), "test"
)


def split_of_name(name: str) -> str | None:
    """The split that a file's stem or a hub split is named for (train-00000-of-00002, test_prefs, kto_train)."""
    found = {WORDS[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None


def split_of_path(relative: str) -> str | None:
    """The split of a file below the folder that was asked for: its stem, else the nearest folder named exactly so."""
    *folders, name = relative.split("/")
    stem = name.split(".")[0]
    return split_of_name(stem) or next((WORDS[f.lower()] for f in reversed(folders) if f.lower() in WORDS), None)


def is_split_name(stem: str) -> bool:
    """Whether a stem says nothing but its split and shard."""
    return all(word in WORDS or word.isdigit() or word == "of" for word in re.split(r"[^a-z0-9]+", stem.lower()))
