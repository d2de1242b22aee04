"""tape label, barcode-label, read-label"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.entries import time_text
from archiver.cli.tape.group import described, drive_option, listed, opened, told

if TYPE_CHECKING:
    from archiver.tape.labels import Labels

_POOL = click.option("--pool", metavar="NAME", help="Keep the medium for this pool. Default: any pool may take it.")


@click.command()
@click.option("--label-text", required=True, metavar="TEXT", help="What is written on the cartridge or the disk.")
@_POOL
@drive_option
@global_options
def label(context: Context, label_text: str, pool: str | None, drive: str | None) -> None:
    """Label the empty medium in the drive; with a virtual drive, make a new medium.

    A medium with data on it is never labelled, whatever the data are.
    """
    from archiver.tape.labelling import label_medium
    from formats.tape.content import encode_uuid

    with opened(drive, new=True) as access:
        made = label_medium(access, label_text, pool)
        document = {
            "label-text": made.name,
            "uuid": encode_uuid(made.uuid),
            "ctime": made.label.time,
            "pool": pool,
            "drive": access.name,
            "location": str(made.location),
        }
    told(context.output, document, f"labelled {made.name} ({document['uuid']})")


@click.command("barcode-label")
@_POOL
@drive_option
@global_options
def barcode_label(context: Context, pool: str | None, drive: str | None) -> None:
    """Label all empty media at hand that are not known yet with the barcodes on their cartridges."""
    from archiver.tape.labelling import label_all
    from formats.tape.content import encode_uuid

    output = context.output
    with opened(drive) as access:
        found = label_all(access, pool, output.hear)
    items = [
        {
            "label-text": each.label_text,
            "uuid": None if each.medium is None else encode_uuid(each.medium.uuid),
            "result": each.note,
        }
        for each in found
    ]
    listed(output, items, ("label-text", "uuid", "result"), "there is no medium that could be labelled")


@click.command("read-label")
@click.option("--inventorize", is_flag=True, help="Enter the medium in the inventory.")
@drive_option
@global_options
def read_label(context: Context, inventorize: bool, drive: str | None) -> None:
    """Show the labels of the medium in the drive."""
    from archiver.tape.labelling import enter, read_medium

    with opened(drive) as access:
        found = read_medium(access)
        if inventorize:
            enter(access.place, found)
            access.update_online()
    output, document = context.output, _described(found)
    if not output.as_json:
        for name in ("ctime", "media-set-ctime"):
            document[name] = None if document[name] is None else time_text(document[name])
    described(output, document)


def _described(found: Labels) -> dict[str, Any]:
    from formats.crypt import format_fingerprint
    from formats.tape.content import encode_uuid

    place = found.set_label
    fingerprint = None if place is None else place.fingerprint
    return {
        "label-text": found.label.label_text,
        "uuid": encode_uuid(found.label.uuid),
        "ctime": found.label.time,
        "pool": found.label.pool if place is None else place.pool,
        "media-set-uuid": None if place is None else encode_uuid(place.uuid),
        "media-set-ctime": None if place is None else place.time,
        "seq-nr": None if place is None else place.seq_nr,
        "encryption-key-fingerprint": None if fingerprint is None else format_fingerprint(fingerprint),
    }
