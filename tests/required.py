"""What a machine may lack: tests that need it skip with the reason, or fail where PREFDATA_REQUIRE names it.

PREFDATA_REQUIRE is a list with commas between: `vllm,browser`. With `kills` in it, the kills of builds may not be few.
"""

import os

import pytest


def required(what: str) -> bool:
    """Whether PREFDATA_REQUIRE names it."""
    return what in os.environ.get("PREFDATA_REQUIRE", "").replace(" ", "").split(",")


def lacking(what: str, reason: str) -> None:
    """Skip the test, or fail it if `what` is required here."""
    if required(what):
        pytest.fail(reason)
    pytest.skip(reason)
