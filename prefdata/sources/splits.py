"""Which split a source's own names put a row in: train or test, or None when they do not say."""

import re

WORDS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "validation", "valid", "val", "eval", "evaluation", "dev"), "test"
)

# a file's stem: a word, then what shards add to it (-00000-of-00010, _0) and the hash that the hub puts after that
STEM = re.compile(r"([a-z]+)([-_]\d+([-_]of[-_]\d+)?(-[0-9a-f]{16})?)?")


def split_of_name(name: str) -> str | None:
    """The split that a data set's own split is named for (train, test_prefs, validation_matched)."""
    found = {WORDS[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None


def split_of_path(relative: str) -> str | None:
    """The split of a file below the folder that was asked for: its stem, else the nearest folder named exactly so.

    A file may be called anything, so a word in its name (my-eval-pairs) is not enough: shards apart, the name is all.
    """
    *folders, name = relative.lower().split("/")
    named = _split_of_stem(name.split(".")[0])
    return named or next((WORDS[folder] for folder in reversed(folders) if folder in WORDS), None)


def _split_of_stem(stem: str) -> str | None:
    found = STEM.fullmatch(stem)
    return WORDS.get(found[1]) if found else None


def is_split_name(stem: str) -> bool:
    """Whether a stem says nothing but its split and shard."""
    return all(word in WORDS or word.isdigit() or word == "of" for word in re.split(r"[^a-z0-9]+", stem.lower()))
