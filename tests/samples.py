"""Where the sample data lives. It is not part of the project: tests that need it skip when it is absent."""

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def samples_dir() -> Path:
    """The folder of sample data: $PREFDATA_SAMPLES, else ../shared/data beside the project."""
    folder = Path(os.environ.get("PREFDATA_SAMPLES") or DEFAULT)
    if not folder.is_dir():
        pytest.skip(f"there is no sample data at {folder}; name its folder in PREFDATA_SAMPLES")
    return folder
