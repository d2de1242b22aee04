"""tape changer add, list, scan, remove, status, transfer"""

from __future__ import annotations

import re
from typing import Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import drive_option, listed, opened, tape_place, told
from archiver.errors import UsageError

_SLOTS = re.compile(r"[0-9]{1,5}(?:,[0-9]{1,5})*")
_SLOTS_SHOWN = 8  # of a directory: so many, or a multiple


@click.group()
@global_options
def changer() -> None:
    """Changers: robots that load tapes. A virtual drive is its own changer."""


@changer.command()
@click.argument("name")
@click.option("--path", required=True, metavar="NODE", help="Its /dev/sg node.")
@click.option("--export-slots", metavar="N,N", help="Ordinary slots that are used as import-export slots.")
@global_options
def add(context: Context, name: str, path: str, export_slots: str | None) -> None:
    """Set up the changer NAME; then its drives: archiver tape drive add DRIVE --changer NAME."""
    from archiver.tape.state.drives import ChangerConfig, Drives

    if export_slots and not _SLOTS.fullmatch(export_slots):
        raise UsageError(f"--export-slots {export_slots!r} is no list of slots", hint="write for example 7,8")
    slots = tuple(int(slot) for slot in export_slots.split(",")) if export_slots else ()
    config = ChangerConfig(name, path, slots)
    Drives(tape_place()).add_changer(config)
    told(context.output, {"changer": _described(config.as_json())}, f"set up the changer {name}: {path}")


@changer.command("list")
@global_options
def list_(context: Context) -> None:
    """List the changers that are set up."""
    from archiver.tape.state.drives import Drives

    items = [_described(config.as_json()) for config in Drives(tape_place()).load().changers.values()]
    listed(context.output, items, ("name", "path", "export-slots"), "there are no changers")


@changer.command()
@global_options
def scan(context: Context) -> None:
    """List the changers of this machine, set up or not."""
    from archiver.tape.drive.scan import find_changers

    listed(
        context.output,
        [found.as_json() for found in find_changers()],
        ("path", "vendor", "model", "serial"),
        "the kernel has no changer",
    )


@changer.command()
@click.argument("name")
@global_options
def remove(context: Context, name: str) -> None:
    """Forget the changer NAME."""
    from archiver.tape.state.drives import Drives

    Drives(tape_place()).remove_changer(name)
    told(context.output, {"changer": name}, f"the changer {name} is not set up any more")


@changer.command()
@drive_option
@global_options
def status(context: Context, drive: str | None) -> None:
    """Show what is in the drive, and what its changer has at hand."""
    from archiver.tape.changer.mtx import MtxChanger
    from archiver.tape.drive.virtual import VirtualDrive

    with opened(drive) as access:
        labels = access.update_online()
        if labels is None:
            raise UsageError(f"a person changes the media of the drive {access.name}")
        if isinstance(access.changer, MtxChanger):
            _list([element.as_json() for element in access.changer.status()], context)
            return
        loaded = access.drive.label if isinstance(access.drive, VirtualDrive) else None
        items: list[dict[str, Any]] = [_entry("drive", 0, loaded, None)]
        slots: list[str | None] = [*labels]
        slots += [None] * (-len(slots) % _SLOTS_SHOWN)
        items += [_entry("slot", number, text, None) for number, text in enumerate(slots, 1)]
        for item in items[1:]:
            if item["label-text"] is not None and item["label-text"] == loaded:
                items[0]["loaded-slot"] = item["entry-id"]
    _list(items, context)


def _list(items: list[dict[str, Any]], context: Context) -> None:
    listed(context.output, items, ("entry-kind", ">entry-id", "label-text", ">loaded-slot"), "")


@changer.command()
@click.argument("name")
@click.option("--from", "source", type=click.IntRange(1), required=True, metavar="SLOT", help="A full slot.")
@click.option("--to", "target", type=click.IntRange(1), required=True, metavar="SLOT", help="An empty one.")
@global_options
def transfer(context: Context, name: str, source: int, target: int) -> None:
    """Have the changer NAME move a medium from one slot to another; import-export slots have the last numbers."""
    from archiver.tape.access import update_online
    from archiver.tape.changer.mtx import Library, labels_at_hand
    from archiver.tape.state.drives import Drives

    place = tape_place()
    config = Drives(place).load().changer(name)
    library = Library(config.path, config.export_slots)
    library.move("transfer", source, target)
    update_online(place, name, labels_at_hand(library.status()))
    document = {"changer": name, "from": source, "to": target}
    told(context.output, document, f"the medium of slot {source} is in slot {target} now")


def _entry(kind: str, number: int, label: str | None, slot: int | None) -> dict[str, Any]:
    return {"entry-kind": kind, "entry-id": number, "label-text": label, "loaded-slot": slot}


def _described(members: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in members.items()}
