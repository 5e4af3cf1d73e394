"""Reports: one HTML page of a version or of a training run, which a browser opens as it is.

A version never changes, so its page stands outside it: in `reports/NAME/` beside the folder NAME of versions, or in
`./reports/SCHEME/BUCKET/PATH/` where versions live in an object store: no two roots share a page. A run's page stands in
the run folder.
"""

from dataclasses import dataclass
from pathlib import Path

from prefdata import versions
from prefdata.beside import beside
from prefdata.storage import Storage
from prefdata.versions import Version

FOLDER = "reports"


@dataclass(frozen=True)
class Report:
    """A page, where it goes, and what stands at its top."""

    html: str
    place: str  # a path, or a URL
    alarms: int  # warnings and errors; notes don't count


def report(target: str, *, root: str | None = None, out: str | None = None) -> Report:
    """The report of a run folder, of a comparison's, or of a version as `versions.find` takes it; not written yet."""
    from prefdata.report import of_comparison, of_run

    if of_comparison.is_comparison(target):
        page = of_comparison.page(of_comparison.read(target))
        return Report(page.html, out or str(Path(target) / of_comparison.PAGE), page.alarms)
    if of_run.is_run(target):
        page = of_run.page(target, root)
        return Report(page.html, out or str(Path(target) / "report.html"), page.alarms)
    return report_version(versions.find(target, root=root), out=out)


def report_version(version: Version, *, out: str | None = None) -> Report:
    """The report of a version; not written yet."""
    from prefdata.report import of_version

    page = of_version.page(version)
    return Report(page.html, out or str(beside(version, FOLDER) / f"{version.name}.html"), page.alarms)


def write(made: Report) -> str:
    """Write a report, whole or not at all; returns its path or URL. UserError if it can't be written there."""
    folder, _, name = made.place.rpartition("/")
    storage = Storage(folder or ("/" if made.place.startswith("/") else "."))
    storage.write(name, made.html.encode("utf-8"))
    return f"{storage.url}/{name}"
