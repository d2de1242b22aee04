"""tape verify"""

from __future__ import annotations

import os

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import size_text
from archiver.cli.tape.group import drive_option, key_at_hand, opened, pause, wait_option, waited_for
from archiver.errors import EXIT_DAMAGED, NotFound, worst_of


@click.command()
@click.argument("media_set", metavar="MEDIA-SET")
@click.option("--medium", "labels", metavar="LABEL", multiple=True, help="Only this medium of the set; several.")
@drive_option
@wait_option
@global_options
@click.pass_context
def verify(
    ctx: click.Context,
    context: Context,
    media_set: str,
    labels: tuple[str, ...],
    drive: str | None,
    wait_seconds: float | None,
) -> None:
    """Read the media of MEDIA-SET end to end: blocks, chunks, snapshots, and whether the catalogs describe them.

    Nothing is restored. With the key encrypted chunks are checked completely. The exit code is 20 when anything is
    damaged, 13 when a medium could not be had.
    """
    from archiver.core.clock import Clock
    from archiver.tape.keys import TapeKeys
    from archiver.tape.restore.job import opened_set
    from archiver.tape.verify import verify as check

    output = context.output
    crypt = key_at_hand(context)
    keys = TapeKeys.default(os.environ)
    with (
        opened(drive) as access,
        opened_set(access, media_set, keys, output.hear, wait_seconds=waited_for(wait_seconds), pause=pause) as found,
    ):
        members = [member for member in found.known.members if not labels or member.label in labels]
        for label in labels:
            if label not in [member.label for member in members]:
                raise NotFound(f"the media set has no medium {label}", hint="see: archiver tape media list")
        result = check(found.known, members, found.media, crypt, output.hear, Clock())
    absent = worst_of(list(result.absent))
    if output.as_json:
        document = {"schema": 1, **result.as_json()}
        output.document(document if absent is None else document | {"error": absent.as_json()})
    else:
        with output.read_or_not():
            for error in result.errors:
                place = error.label if error.file is None else f"{error.label}, file {error.file}"
                output.line(f"{place}: {error.reason}")
        output.summary(
            f"{len(result.media)} media, {result.snapshots} snapshots, {result.chunks} chunks,"
            f" {size_text(result.bytes)}: {len(result.errors) or 'no'} errors"
        )
        if result.unchecked:
            output.summary(f"  of {result.unchecked} encrypted chunks only the CRC was checked: give their key")
        if absent is not None:
            raise absent
    if absent is not None:
        ctx.exit(absent.exit_code)
    ctx.exit(EXIT_DAMAGED if result.errors else 0)
