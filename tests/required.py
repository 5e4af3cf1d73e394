"""What a machine may lack: tests that need it skip with the reason, or fail where PREFDATA_REQUIRE names it.

PREFDATA_REQUIRE is a list with commas between: `vllm,browser`.
"""

import os

import pytest


def lacking(what: str, reason: str) -> None:
    """Skip the test, or fail it if `what` is required here."""
    if what in os.environ.get("PREFDATA_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)
