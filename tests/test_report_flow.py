"""What a flow leaves of the report: a page and a link to it, or a warning and the version all the same."""

from pathlib import Path
from typing import Any

import pytest

from flows import running
from prefdata import report
from prefdata.versions import Version
from tests.published import publish


class Log:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.infos: list[str] = []
        self.warnings: list[str] = []
        self.traced: list[bool] = []  # of each warning, whether its traceback is told too

    def info(self, text: str, *values: Any) -> None:
        self.infos.append(text % values)

    def warning(self, text: str, *values: Any, exc_info: bool) -> None:
        self.warnings.append(text % values)
        self.traced.append(exc_info)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(running, "get_run_logger", lambda: log)
    return log


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The link artifacts that were made."""
    made: list[dict[str, str]] = []
    monkeypatch.setattr(running, "create_link_artifact", lambda **link: made.append(link))
    return made


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return publish(tmp_path / "data")


def test_the_link_leads_to_the_page(version: Version, log: Log, links: list[dict[str, str]]) -> None:
    running._leave_report("ingest", version)
    page = Path(version.root).parent / "reports" / "data" / "v1.html"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [(link["key"], link["link"], link["link_text"]) for link in links] == [
        ("ingest-report", page.as_uri(), "report of v1")
    ]
    assert links[0]["description"].endswith(f"\n\n    {page}")  # to be copied: a block of code in Markdown
    assert (log.infos, log.warnings) == ([f"report: {page}"], [])


def test_a_report_that_fails_is_said_and_no_more(
    version: Version, log: Log, links: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(version: Version) -> report.Report:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(report, "report_version", fails)
    running._leave_report("ingest", version)
    assert log.warnings == ["v1 is published, but its report could not be written: a bug"]
    assert log.traced == [True]
    assert (links, log.infos) == ([], [])


def test_a_place_that_takes_no_page_is_said(version: Version, log: Log, links: list[dict[str, str]]) -> None:
    (Path(version.root).parent / "reports").write_text("in the way")
    running._leave_report("ingest", version)
    assert len(log.warnings) == 1
    assert "reports" in log.warnings[0]
    assert log.traced == [False]  # nothing to mend in the code
    assert links == []
