"""drill"""

from __future__ import annotations

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.output import size_text
from archiver.errors import EXIT_DIFFERENT, EXIT_OK, UsageError


@click.command()
@click.argument("snapshot", default="latest")
@click.option("--files", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help="So many.")
@click.option(
    "--turn", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Other files for another number."
)
@click.option("--scratch", metavar="DIR", help="Restore below this directory. Default: that of temporary files.")
@click.option("--live", metavar="DIR", help="Compare with this directory, the source of the snapshot's one tree, too.")
@allow_unsigned_option
@global_options
@click.pass_context
def drill(
    ctx: click.Context,
    context: Context,
    snapshot: str,
    files: int,
    turn: int,
    scratch: str | None,
    live: str | None,
    allow_unsigned: bool,
) -> None:
    """Restore some files of SNAPSHOT (default: the newest) into a scratch directory, read them again, remove them.

    They are compared with the catalog, and with the files in the live directory whose size and time are still the same;
    exit code 4 when anything differs, 20 when something does not come back. A job does that by itself with [drill].
    """
    from archiver.jobs.drill import DrillOptions
    from archiver.jobs.drill import drill as run

    output = context.output
    with context.open_store(output) as store:
        opened = context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned)
        sources = {}
        if live is not None:
            trees = [archive.name for archive in opened.archives() if archive.kind == "tree"]
            if len(trees) != 1:
                raise UsageError(f"{opened.ref} has {len(trees)} trees: --live is for one with a single one")
            sources = {trees[0]: live}
        result = run(opened, DrillOptions(files, turn=turn, scratch=scratch, sources=sources), output.hear)
    if output.as_json:
        output.document(result.as_json())
    else:
        output.summary(
            f"{result.files} files of {result.snapshot} came back as they were saved, {size_text(result.bytes)};"
            f" {result.compared} are compared with live ones, {result.different} differ"
        )
    ctx.exit(EXIT_DIFFERENT if result.different else EXIT_OK)
