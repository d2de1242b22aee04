"""job report"""

from __future__ import annotations

import sys

import click

from archiver.cli.context import Context, global_options
from archiver.cli.job_status import history_of, load_profile
from archiver.errors import UsageError


@click.command()
@click.argument("name")
@click.argument("file", required=False)
@click.option("--run", "number", metavar="NUMBER|last", help="About this run, instead of an overview of the job.")
@global_options
def report(context: Context, name: str, file: str | None, number: str | None) -> None:
    """Write a report about a job to FILE, an HTML page (- for stdout; default: NAME.html here).

    Sizes over time, what grew, when the data were verified, the age of each copy, the runs; with --run the steps of
    one run and what it brought. The page is complete in itself: it loads nothing. With --json the same as a document,
    and a page only if a FILE is named. A job with [report] in its profile writes both after each run.
    """
    from archiver.jobs.report.data import overview, run_report
    from archiver.jobs.report.page import overview_page, run_page
    from archiver.jobs.report.write import write_page

    output = context.output
    if file == "-" and output.as_json:
        raise UsageError("--json writes to stdout, and so would the page", hint="name a FILE")
    profile, history = load_profile(name), history_of(name)
    if number is None:
        found = overview(profile, history)
        page, document = overview_page(found), found.as_json()
    else:
        one = run_report(profile, history, _number(number))
        page, document = run_page(one), one.as_json()
    path = file if file is not None or output.as_json else f"{name}.html"
    if path == "-":
        sys.stdout.flush()
        output.raw(page.encode("utf-8", "replace"))
        return
    if path is not None:
        write_page(path, page)
    if output.as_json:
        output.document(document | {"path": path})
    output.summary(f"wrote {path}")


def _number(text: str) -> int | None:
    if text == "last":
        return None
    if not text.isdecimal() or len(text) > 8:
        raise UsageError(f"--run {text!r} is no number of a run", hint="job status names them; last is the newest")
    return int(text)
