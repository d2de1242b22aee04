"""tape catalog"""

from __future__ import annotations

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import drive_option, opened
from archiver.errors import EXIT_DAMAGED


@click.command()
@click.option("--scan", is_flag=True, help="Read everything, whatever catalogs the medium has.")
@click.option("--force", is_flag=True, help="Also where there is a catalog: it is replaced.")
@drive_option
@global_options
@click.pass_context
def catalog(ctx: click.Context, context: Context, scan: bool, force: bool, drive: str | None) -> None:
    """Make the catalog of the medium in the drive from what is on it, after a loss of the state of this machine, or for
    media of another one.

    A medium that is full has its catalog on the next one of its set: go through all of them. What cannot be read is
    told, with exit code 20.
    """
    import os

    from archiver.tape.cataloguing import catalogue
    from archiver.tape.keys import TapeKeys
    from archiver.tape.request import check_loaded

    output = context.output
    with opened(drive) as access:
        access.update_online()
        check_loaded(access)
        done = catalogue(access.place, access.drive, TapeKeys.default(os.environ), output.hear, scan=scan, force=force)
        access.update_online()
    if output.as_json:
        output.document({"schema": 1, **done.as_json()})
    elif done.method == "none":
        output.summary(f"{done.label} is in no media set: there is nothing to catalogue")
    else:
        how = "from its catalog archive" if done.method == "fast" else "by reading all of it"
        output.summary(f"{done.label}: {done.snapshots} snapshots, {done.chunks} chunks, {how}")
        if done.others:
            output.summary(f"  with it came the catalogs of {', '.join(done.others)}")
        if done.passed_over:
            output.summary(f"  {len(done.passed_over)} files were not written to their end")
    for error in done.damaged:
        output.line(str(error))
    ctx.exit(EXIT_DAMAGED if done.damaged else 0)
