"""verify"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import size_text
from archiver.errors import EXIT_DAMAGED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from archiver.browse.verify import VerifyResult

_FILES_SHOWN = 20


@click.command()
@click.argument("snapshot", required=False)
@click.option("--without-key", is_flag=True, help="Take no key, also where there is one: no passphrase is needed.")
@global_options
@click.pass_context
def verify(ctx: click.Context, context: Context, snapshot: str | None, without_key: bool) -> None:
    """Read everything back and check it: the whole store, or one SNAPSHOT.

    With the key encrypted chunks are checked completely. Without it their kind and CRC are checked, and the BLAKE3 of
    their stored bytes where the database has it from the backup or from a verification with the key. What was not
    checked is told.
    """
    from archiver.browse.verify import any_made_with_key, require_fitting_key
    from archiver.browse.verify import verify as run

    output = context.output
    if without_key and context.keyfile is not None:
        raise UsageError("--without-key and --keyfile exclude each other")
    with context.open_store(output) as store:
        if snapshot is not None:
            refs = [store.find(snapshot, context.namespace)]
        else:
            refs = list(store.snapshots(context.namespace))
        crypt, is_chosen = None, context.chosen_keyfile() is not None
        if not without_key and (is_chosen or any_made_with_key(store, refs)):
            crypt = context.key()
        if crypt is not None and is_chosen:
            require_fitting_key(store, refs, crypt)
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
        for line in _unproven(result):
            output.summary(f"  {line}")
        if result.unfinished:
            output.summary(f"  {result.unfinished} unfinished snapshots were passed over")
    ctx.exit(EXIT_DAMAGED if result.errors else EXIT_OK)


def _unproven(result: VerifyResult) -> Iterator[str]:
    """What was not checked for lack of the key, and what nobody signed."""
    by_sum = result.unchecked - result.without_sum
    if by_sum:
        yield f"{by_sum} encrypted chunks were checked without their key: CRC and the BLAKE3 of the stored bytes"
    if result.without_sum:
        yield f"{result.without_sum} encrypted chunks were checked without their key: CRC alone, no BLAKE3 is recorded"
    unchecked, unsigned = result.signatures["unchecked"], result.signatures["unsigned"]
    if unchecked:
        yield f"{len(unchecked)} signatures were not checked, their key is missing"
    if unsigned and (unchecked or result.signatures["valid"]):
        yield f"{len(unsigned)} snapshots are unsigned"
    signed = {name.rsplit("/", 1)[0] for name in (*unchecked, *result.signatures["valid"])}
    for name in unsigned:
        if name.rsplit("/", 1)[0] in signed:
            yield f"{name} is unsigned, other snapshots of its group are signed"
