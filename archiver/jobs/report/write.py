"""Writing reports: where somebody asks for one, and after each run where the profile says so.

DIRECTORY/NAME.html            the overview of the job
DIRECTORY/NAME-00000042.html   a run; those whose records are not kept any more go
"""

from __future__ import annotations

import os
import re

from archiver.core.disk import Disk, explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError
from archiver.jobs.history import History, Run
from archiver.jobs.profile import Profile

_MODE = 0o600


def write_page(path: str, page: str) -> None:
    """Raises ArchiverError."""
    with explained("write", path):
        Disk().put(os.path.abspath(path), [page.encode("utf-8", "replace")], _MODE, sync=True)


def write_reports(profile: Profile, history: History, run: Run, listener: Listener) -> None:
    """Of a run that has ended just now; one that was skipped has nothing to report. That they cannot be written is told
    and fails nothing: the run is over, and its record says what they would."""
    directory = profile.reports
    if directory is None or not run.steps:
        return
    from archiver.jobs.report.data import overview, run_report
    from archiver.jobs.report.page import overview_page, run_page

    disk = Disk()
    try:
        with explained("make", directory):
            disk.make_directories(directory, 0o700)
        write_page(_run_path(directory, profile.name, run.number), run_page(run_report(profile, history, run.number)))
        write_page(os.path.join(directory, f"{profile.name}.html"), overview_page(overview(profile, history)))
        with explained("clear", directory):
            kept = set(history.numbers())
            for number in _reported(directory, profile.name):
                if number not in kept:
                    disk.remove_file(_run_path(directory, profile.name, number))
    except ArchiverError as error:
        listener(Notice(f"the report of the run is missing: {error}", "warning"))


def _run_path(directory: str, job: str, number: int) -> str:
    return os.path.join(directory, f"{job}-{number:08d}.html")


def _reported(directory: str, job: str) -> list[int]:
    form = re.compile(rf"{re.escape(job)}-([0-9]{{8}})\.html")
    return [int(found[1]) for name in os.listdir(directory) if (found := form.fullmatch(name))]
