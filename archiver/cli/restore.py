"""restore"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.output import size_text
from archiver.errors import EXIT_DAMAGED, EXIT_DIFFERENT, EXIT_OK, EXIT_PARTIAL, UsageError

if TYPE_CHECKING:
    from archiver.cli.output import Output
    from archiver.restore.export.run import Format


@click.command()
@click.argument("snapshot")
@click.argument("target")
@click.option("--archive", "archive_name", metavar="NAME", help="Restore this archive only, for example home.pxar.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read everything again and compare.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["dir", "tar", "tar.zst", "zip", "pxar"]),
    default="dir",
    show_default=True,
    help="TARGET is a directory, or a file of this kind (- for stdout).",
)
@click.option("--to-device", is_flag=True, help="TARGET is a block device: an image replaces everything on it.")
@allow_unsigned_option
@global_options
@click.pass_context
def restore(
    ctx: click.Context,
    context: Context,
    snapshot: str,
    target: str,
    archive_name: str | None,
    verify: bool,
    form: str,
    to_device: bool,
    allow_unsigned: bool,
) -> None:
    """Restore a SNAPSHOT into TARGET, a new or empty directory, or with --format as a file of another kind.

    SNAPSHOT is TYPE/ID/TIME, TYPE/ID for the group's newest one, or latest. A single archive is put at TARGET itself,
    of several each at TARGET/NAME. An image or small file becomes the new file TARGET.

    The signature of a snapshot that was made with a key is checked before anything is restored.
    """
    from archiver.restore.export.run import export
    from archiver.restore.run import restore as run
    from archiver.store.layout import WRAPPED_KEY

    output = context.output
    with context.open_store(output) as store:
        wrapped_key = WRAPPED_KEY.removesuffix(".blob")  # for whoever has lost the key
        with_key = archive_name not in (WRAPPED_KEY, wrapped_key)
        opened = context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned, with_key=with_key)
        archives = [opened.archive(archive_name)] if archive_name is not None else opened.restorable()
        chosen = {archive.name for archive in archives}
        left = [archive.name for archive in opened.archives() if archive.name not in chosen | {wrapped_key}]
        if left and archive_name is None:
            output.message(f"not restored, they are no directory trees: {', '.join(left)} (--archive restores them)")
        if form == "dir":
            result = run(opened, archives, target, verify=verify, listener=output.hear, to_device=to_device)
        else:
            _check_stdout(target, output)
            result = export(opened, archives, target, cast("Format", form), verify=verify, listener=output.hear)
    if output.as_json:
        output.document(result.as_json())
    checked = ", verified" if result.verified else ""
    tell = output.message if target == "-" else output.summary
    tell(
        f"restored {result.entries} entries, {size_text(result.bytes)}, from {result.snapshot}"
        f" to {target} in {result.duration:.1f} s{checked}"
    )
    for kind, count in sorted(result.kinds.items()):
        tell(f"  {kind}: {count}")
    if result.kinds.get("damaged"):
        ctx.exit(EXIT_DAMAGED)
    if result.kinds.get("different"):
        ctx.exit(EXIT_DIFFERENT)
    ctx.exit(EXIT_PARTIAL if result.problem_count else EXIT_OK)


def _check_stdout(target: str, output: Output) -> None:
    """Raises UsageError when the file would be mixed with other output."""
    if target == "-" and output.as_json:
        raise UsageError("--json writes to stdout, and so would the file", hint="name a file as the target")
    if target == "-" and sys.stdout.isatty():
        raise UsageError("the file would be written to the terminal", hint="name a file, or redirect stdout")
