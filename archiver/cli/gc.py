"""gc"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output, size_text
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.store.gc.result import Result


@click.command()
@click.option("--dry-run", is_flag=True, help="Tell what would go; remove nothing.")
@click.option("--immediate", is_flag=True, help="Remove unused chunks whatever their age; needs the store for itself.")
@click.option(
    "--cutoff",
    type=click.IntRange(1, 2880),
    metavar="MINUTES",
    help="Remove only chunks that nobody has used for so long. PBS's own value is 1445.",
)
@click.option("--from-files", is_flag=True, help="Trust nothing but the files: read every index, list every shard.")
@click.option(
    "--interrupted", is_flag=True, help="Also what interrupted backups and syncs have stored: they begin anew then."
)
@global_options
def gc(
    context: Context, dry_run: bool, immediate: bool, cutoff: int | None, from_files: bool, interrupted: bool
) -> None:
    """Remove the chunks that no snapshot needs.

    At once when nobody else uses the store; beside running backups, and where a Proxmox Backup Server may share the
    store, only those that were not used for a day.
    """
    from archiver.store.gc.collect import collect
    from archiver.store.gc.exclusion import DEFAULT_CUTOFF, Mode

    if immediate and cutoff is not None:
        raise UsageError("--immediate and --cutoff exclude each other")
    mode: Mode | None = "immediate" if immediate else "cutoff" if cutoff is not None else None
    output = context.output
    with context.open_store(output) as store:
        result = collect(
            store,
            mode=mode,
            cutoff=cutoff or DEFAULT_CUTOFF,
            from_files=from_files,
            interrupted=interrupted,
            dry_run=dry_run,
        )
    if output.as_json:
        output.document(result.as_json())
    else:
        summarize(output, result)


def summarize(output: Output, result: Result) -> None:
    """Tell a person what a collection did, or would do."""
    would = "would be removed" if result.dry_run else "removed"
    output.summary(f"{would}: {size_text(result.removed_bytes)} in {result.removed_chunks} chunks")
    if result.removed_bad or result.removed_leftovers:
        output.summary(f"  and {result.removed_bad} damaged chunks, {result.removed_leftovers} leftovers of writers")
    for name in result.interrupted:
        output.summary(f"  and what the interrupted session {name} could be gone on with")
    if result.pending_chunks:
        output.summary(
            f"pending: {size_text(result.pending_bytes)} in {result.pending_chunks} chunks, used too recently"
            f" ({result.reason})"
        )
    output.summary(f"kept: {size_text(result.kept_bytes)} in {result.kept_chunks} chunks")
    if result.kept_bytes:
        output.summary(f"  deduplication factor {result.index_bytes / result.kept_bytes:.2f}")
    if result.bad_chunks:
        output.summary(f"  {result.bad_chunks} damaged chunks that were set aside are still there")
    if not result.complete:
        output.summary("ended early, as a backup was waiting; run it again to go on")
