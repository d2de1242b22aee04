"""tape load, rewind, eject, format"""

from __future__ import annotations

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import drive_option, opened, told


@click.command()
@click.argument("label_text", metavar="LABEL")
@drive_option
@global_options
def load(context: Context, label_text: str, drive: str | None) -> None:
    """Put the medium LABEL into the drive."""
    from archiver.errors import UsageError

    with opened(drive) as access:
        if access.changer.online() is None:
            raise UsageError(f"nothing loads the drive {access.name}: put the medium in by hand")
        access.changer.load(label_text)
        access.update_online()
        document = {"drive": access.name, "label-text": label_text}
    told(context.output, document, f"{label_text} is in the drive {document['drive']}")


@click.command()
@drive_option
@global_options
def rewind(context: Context, drive: str | None) -> None:
    """Go back to the start of the medium in the drive."""
    from archiver.tape.request import check_loaded

    with opened(drive) as access:
        check_loaded(access)
        access.drive.rewind()
        name = access.name
    told(context.output, {"drive": name}, f"the medium in the drive {name} is rewound")


@click.command()
@drive_option
@global_options
def eject(context: Context, drive: str | None) -> None:
    """Take the medium out of the drive; back to where it came from where there is a changer."""
    from archiver.tape.request import check_loaded

    with opened(drive) as access:
        check_loaded(access)
        access.changer.unload()
        access.update_online()
        name = access.name
    told(context.output, {"drive": name}, f"the drive {name} is empty")


@click.command("format")
@click.option("--fast/--slow", default=True, help="Only make it empty, or erase all of a real tape (hours).")
@click.option("--label-text", metavar="TEXT", help="Erase only a medium that has this label.")
@click.option("--force", is_flag=True, help="Also a medium with backups, or with data that are no backups.")
@drive_option
@global_options
def format_(context: Context, fast: bool, label_text: str | None, force: bool, drive: str | None) -> None:
    """Erase the medium in the drive and forget it. All that is on it is lost."""
    from archiver.tape.labelling import erase
    from formats.tape.content import encode_uuid

    with opened(drive) as access:
        erased = erase(access, fast=fast, label_text=label_text, force=force)
        document = {
            "drive": access.name,
            "label-text": None if erased is None else erased.name,
            "uuid": None if erased is None else encode_uuid(erased.uuid),
        }
    what = "the medium" if erased is None else erased.name
    told(context.output, document, f"{what} in the drive {document['drive']} is empty now")
