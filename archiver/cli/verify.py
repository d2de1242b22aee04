"""verify"""

from __future__ import annotations

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import size_text
from archiver.errors import EXIT_DAMAGED, EXIT_OK

_FILES_SHOWN = 20


@click.command()
@click.argument("snapshot", required=False)
@global_options
@click.pass_context
def verify(ctx: click.Context, context: Context, snapshot: str | None) -> None:
    """Read everything back and check it: the whole store, or one SNAPSHOT.

    With the key encrypted chunks are checked completely, without it their kind and checksum.
    """
    from archiver.browse.verify import verify as run
    from archiver.store.layout import SnapshotRef

    output = context.output
    with context.open_store(output) as store:
        if snapshot is not None:
            refs = [store.find(snapshot, context.namespace)]
        else:
            refs = [
                SnapshotRef(group, when)
                for namespace in store.namespaces(context.namespace)
                for group in store.groups(namespace)
                for when in reversed(store.times(group))
            ]
        result = run(store, refs, context.key(), output.hear)
    if output.as_json:
        output.document(result.as_json())
    else:
        for error in result.errors:
            where = f"{error.snapshot} {error.archive}"
            output.line(f"{where}: chunk {error.chunk} {error.reason}" if error.chunk else f"{where}: {error.reason}")
            for name in error.files[:_FILES_SHOWN]:
                output.line(f"    {name}")
            if len(error.files) > _FILES_SHOWN:
                output.line(f"    ... and {len(error.files) - _FILES_SHOWN} more")
        if result.error_count > len(result.errors):
            output.line(f"... and {result.error_count - len(result.errors)} more errors")
        output.summary(
            f"{result.snapshots} snapshots, {result.chunks} chunks, {size_text(result.bytes)}:"
            f" {result.error_count} errors"
        )
        if result.unchecked:
            output.summary(f"  {result.unchecked} encrypted chunks were checked without their key")
        if result.unfinished:
            output.summary(f"  {result.unfinished} unfinished snapshots were passed over")
    ctx.exit(EXIT_DAMAGED if result.errors else EXIT_OK)
