"""tape drive add, list, scan, remove, status"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import described, drive_option, listed, opened, tape_place, told
from archiver.core.sizes import parse_size
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.tape.state.drives import DriveConfig


@click.group()
@global_options
def drive() -> None:
    """Drives: a directory on an attached disk (virtual), or a tape drive of the kernel (st)."""


@drive.command()
@click.argument("name")
@click.option("--path", required=True, metavar="PATH", help="The directory of the media, or the node (/dev/nst0).")
@click.option("--kind", type=click.Choice(["virtual", "st"]), help="Default: st for a node below /dev, else virtual.")
@click.option("--max-size", metavar="SIZE", help="What a virtual medium holds, for example 900G. Default: its disk.")
@click.option("--changer", metavar="NAME", help="What loads the drive. Default: a person.")
@click.option("--changer-drivenum", "number", type=click.IntRange(0), default=0, help="Its number there, from 0.")
@click.option("--generic", metavar="NODE", help="The drive's /dev/sg node. Default: it is looked for.")
@global_options
def add(
    context: Context,
    name: str,
    path: str,
    kind: str | None,
    max_size: str | None,
    changer: str | None,
    number: int,
    generic: str | None,
) -> None:
    """Set up the drive NAME. The directory of a virtual drive is made on the disk that is mounted there now."""
    from archiver.tape.drive.virtual import VirtualDrive
    from archiver.tape.state.drives import DriveConfig, Drives, mount_of

    if not path:
        raise UsageError("--path is empty")
    path = os.path.abspath(path)
    size = None if max_size is None else parse_size(max_size, "--max-size")
    if kind == "st" or (kind is None and path.startswith("/dev/")):
        config = DriveConfig(name, "st", path, size, None, changer, number, generic)
    else:
        config = DriveConfig(name, "virtual", path, size, mount_of(path), changer, number, generic)
    drives = Drives(tape_place())
    drives.check_new(config)
    if config.kind == "virtual":
        VirtualDrive(name, path, max_size=size, mount=config.mount, new=True).close()
    drives.add_drive(config)
    told(context.output, {"drive": _described(config)}, f"set up the drive {name}: {path}")


def _described(config: DriveConfig) -> dict[str, Any]:
    return {
        "name": config.name,
        "kind": config.kind,
        "path": config.path,
        "max-size": config.max_size,
        "changer": config.changer,
        "changer-drivenum": config.changer_drive,
    }


@drive.command("list")
@global_options
def list_(context: Context) -> None:
    """List the drives that are set up, and whether they are there."""
    from archiver.errors import ArchiverError
    from archiver.tape.drive.virtual_place import check_there
    from archiver.tape.state.drives import Drives

    items = []
    for config in Drives(tape_place()).load().drives.values():
        present = os.path.exists(config.path)
        if config.kind == "virtual":
            try:
                check_there(config.path, config.mount)
            except ArchiverError:
                present = False
        items.append({**_described(config), "present": present})
    listed(
        context.output,
        items,
        ("name", "kind", "path", "changer", "present"),
        "there are no drives; archiver tape drive add NAME --path DIR sets one up",
    )


@drive.command()
@global_options
def scan(context: Context) -> None:
    """List the tape drives of this machine, set up or not."""
    from archiver.tape.drive.scan import find_drives

    listed(
        context.output,
        [found.as_json() for found in find_drives()],
        ("path", "vendor", "model", "serial", "generic"),
        "the kernel has no tape drive",
    )


@drive.command()
@click.argument("name")
@global_options
def remove(context: Context, name: str) -> None:
    """Forget the drive NAME. Its media, and what is on them, stay."""
    from archiver.tape.state.drives import Drives

    Drives(tape_place()).remove_drive(name)
    told(context.output, {"drive": name}, f"the drive {name} is not set up any more")


@drive.command()
@drive_option
@global_options
def status(context: Context, drive: str | None) -> None:
    """Show what is in the drive, and where it stands."""
    from archiver.cli.output import size_text
    from archiver.tape.drive.virtual import VirtualDrive

    output = context.output
    with opened(drive) as access:
        found = access.drive.status()
        label = access.drive.label if isinstance(access.drive, VirtualDrive) else None
        document: dict[str, Any] = {
            "drive": access.name,
            "description": found.description,
            "loaded": found.loaded,
            "medium": label,
            "write-protect": found.write_protected,
            "file-number": found.file,
            "bytes-used": found.bytes_used,
            "capacity": found.capacity,
        }
    if not output.as_json:
        for name in ("bytes-used", "capacity"):
            document[name] = None if document[name] is None else size_text(document[name])
    described(output, document)
