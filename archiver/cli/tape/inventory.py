"""tape inventory"""

from __future__ import annotations

from typing import Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import drive_option, listed, opened, tape_place
from archiver.errors import EXIT_DAMAGED, UsageError


@click.command()
@click.option("--read-labels", is_flag=True, help="Load the media at hand that are not known, and read their labels.")
@click.option("--read-all-labels", is_flag=True, help="The same for all media at hand.")
@click.option(
    "--from",
    "directory",
    metavar="DIR",
    help="Take over media and catalogs from a copy of the state directory of a Proxmox Backup Server.",
)
@drive_option
@global_options
@click.pass_context
def inventory(
    ctx: click.Context,
    context: Context,
    read_labels: bool,
    read_all_labels: bool,
    directory: str | None,
    drive: str | None,
) -> None:
    """Look which media are at hand, and list them; those that are not known have no uuid."""
    if directory is not None:
        if read_labels or read_all_labels or drive is not None:
            raise UsageError("--from reads no media", hint="leave out the other options")
        _take_over(ctx, context, directory)
        return
    from archiver.tape.labelling import read_all
    from archiver.tape.state.inventory import InventoryFile
    from formats.tape.content import encode_uuid

    output = context.output
    with opened(drive) as access:
        if read_labels or read_all_labels:
            read_all(access, output.hear, known_too=read_all_labels)
        labels = access.update_online()
        if labels is None:
            raise UsageError(
                f"a person changes the media of the drive {access.name}: nothing says which are at hand",
                hint="insert them one after the other: archiver tape read-label --inventorize",
            )
        known = InventoryFile(access.place).load()
        items: list[dict[str, Any]] = []
        for text in labels:
            media = [medium for medium in known if medium.name == text]
            items += [
                {"label-text": text, "uuid": encode_uuid(medium.uuid), "location": str(medium.location)}
                for medium in media
            ] or [{"label-text": text, "uuid": None, "location": f"online-{access.library}"}]
    listed(output, items, ("label-text", "uuid", "location"), "there are no media at hand")


def _take_over(ctx: click.Context, context: Context, directory: str) -> None:
    from archiver.tape.state.takeover import take_over
    from formats.tape.content import encode_uuid

    output = context.output
    result = take_over(tape_place(), directory)
    catalogs = {medium.uuid for medium in result.catalogs}
    media = {medium.uuid: medium for medium in [*result.media, *result.catalogs]}
    items = [
        {
            "label-text": medium.name,
            "uuid": encode_uuid(medium.uuid),
            "location": str(medium.location),
            "catalog": medium.uuid in catalogs,
        }
        for medium in media.values()
    ]
    for text in result.problems:
        output.message(text)
    if output.as_json:
        output.document({"schema": 1, "items": items, "problems": result.problems})
    else:
        listed(output, items, ("label-text", "uuid", "location", "catalog"), "everything there is known here already")
    if result.problems:
        ctx.exit(EXIT_DAMAGED)
