"""verify"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import size_text
from archiver.errors import EXIT_DAMAGED, EXIT_OK, KeyProblem

if TYPE_CHECKING:
    from archiver.store.layout import SnapshotRef
    from archiver.store.store import Store
    from formats.crypt import CryptConfig

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
        crypt = context.key()
        if crypt is not None and context.chosen_keyfile():
            _check_key(store, refs, crypt)
        result = run(store, refs, crypt, output.hear)
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


def _check_key(store: Store, refs: list[SnapshotRef], crypt: CryptConfig) -> None:
    """Raises KeyProblem when the key that was asked for is that of none of the snapshots."""
    from formats.crypt import short_fingerprint

    manifests = [info.manifest for info in map(store.info, refs) if info.manifest is not None]
    wanted = {manifest.fingerprint for manifest in manifests if manifest.fingerprint is not None}
    if wanted and crypt.fingerprint not in wanted:
        raise KeyProblem(
            f"no snapshot was made with the key {short_fingerprint(crypt.fingerprint)}",
            hint="they need: " + ", ".join(sorted(map(short_fingerprint, wanted))),
        )
