"""tape media list, content, move, set-status, destroy"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import listed, tape_place, told
from archiver.errors import EXIT_DAMAGED, Damaged, UsageError

if TYPE_CHECKING:
    from archiver.tape.state.inventory import MediaSet, Medium
    from archiver.tape.state.pools import Pool


@click.group()
@global_options
def media() -> None:
    """The media that are known: where they are, what is on them."""


@media.command("list")
@click.option("--pool", metavar="NAME", help="Only those of this pool.")
@click.option("--update-status/--no-update-status", default=True, help="Look first which media are at hand.")
@global_options
def list_(context: Context, pool: str | None, update_status: bool) -> None:
    """List the media."""
    from archiver.core.clock import Clock
    from archiver.tape.access import update_all_online
    from archiver.tape.state import rules
    from archiver.tape.state.catalog_log import CatalogLogs
    from archiver.tape.state.inventory import InventoryFile
    from archiver.tape.state.pools import Pools
    from formats.tape.content import encode_uuid

    output, place = context.output, tape_place()
    if update_status:
        update_all_online(place)
    inventory, pools, logs, now = InventoryFile(place).load(), Pools(place).all(), CatalogLogs(place), Clock().now()
    items = []
    for medium in sorted(inventory, key=_order):
        if pool is not None and medium.pool != pool:
            continue
        where = medium.in_set
        items.append(
            {
                "label-text": medium.name,
                "pool": medium.pool,
                "media-set-name": _set_name(pools, None if where is None else inventory.media_set(where.uuid)),
                "seq-nr": None if where is None else where.seq_nr,
                "status": rules.shown_status(inventory, medium, pools, now),
                "location": str(medium.location),
                "catalog": where is None or logs.is_of(medium.uuid, where.uuid, where.seq_nr),
                "uuid": encode_uuid(medium.uuid),
                "media-set-uuid": None if where is None else encode_uuid(where.uuid),
                "ctime": medium.label.time,
                "media-set-ctime": None if where is None else where.time,
                "expired": rules.shown_status(inventory, medium, pools, now) == "expired",
                "bytes-used": medium.bytes_used,
            }
        )
    columns = (
        "label-text", "pool", "media-set-name", ">seq-nr", "status", "location", "catalog", "uuid", "media-set-uuid",
    )  # fmt: skip
    if not output.as_json:
        for item in items:
            item["catalog"] = "ok" if item["catalog"] else "missing"
    listed(output, items, columns, "no media are known; archiver tape label --label-text TEXT makes one")


def _order(medium: Medium) -> tuple[str, bytes, int, str]:
    where = medium.in_set
    return medium.pool or "", b"" if where is None else where.uuid, 0 if where is None else where.seq_nr, medium.name


def _set_name(pools: dict[str, Pool], media_set: MediaSet | None) -> str | None:
    from formats.tape.content import encode_uuid

    if media_set is None:
        return None
    pool = pools.get(media_set.pool or "")
    return encode_uuid(media_set.uuid) if pool is None else pool.set_name(media_set.uuid, media_set.start)


@media.command()
@click.option("--pool", metavar="NAME", help="Only media of this pool.")
@click.option("--label-text", metavar="TEXT", help="Only this medium.")
@click.option("--media", "uuid", metavar="UUID", help="The same by its uuid.")
@click.option("--media-set", metavar="UUID", help="Only this media set.")
@click.option("--backup-type", metavar="TYPE", help="Only snapshots of this type.")
@click.option("--backup-id", metavar="ID", help="Only snapshots of groups with this id.")
@global_options
@click.pass_context
def content(
    ctx: click.Context,
    context: Context,
    pool: str | None,
    label_text: str | None,
    uuid: str | None,
    media_set: str | None,
    backup_type: str | None,
    backup_id: str | None,
) -> None:
    """List the snapshots on the media, as the catalogs here say. The exit code is 20 when a catalog is missing, or is
    damaged: then nothing is known of its media set."""
    from archiver.tape.media_sets.media_sets import MediaSets
    from archiver.tape.state.inventory import InventoryFile
    from archiver.tape.state.pools import Pools
    from formats.tape.content import encode_uuid

    output, place = context.output, tape_place()
    inventory, pools = InventoryFile(place).load(), Pools(place).all()
    only = {inventory.find(text).uuid for text in (label_text, uuid) if text is not None}
    items: list[dict[str, Any]] = []
    missing: list[str] = []
    chosen = None if media_set is None else _uuid_text(media_set)
    with MediaSets(place, output.hear) as catalogs:
        for each in inventory.sets(pool):
            if chosen not in (None, encode_uuid(each.uuid)):
                continue
            try:
                lost = catalogs.refresh(each)
            except Damaged as error:
                output.message(str(error))
                missing += [medium.name for medium in each.media if not only or medium.uuid in only]
                continue
            for found in catalogs.snapshots(each.uuid):
                medium = each.members.get(found.position)
                if medium is None or (only and medium.uuid not in only):
                    continue
                kind, group, when = _split(found.path)
                if backup_type not in (None, kind) or backup_id not in (None, group):
                    continue
                assert medium.in_set is not None
                items.append(
                    {
                        "label-text": medium.name,
                        "pool": medium.pool,
                        "media-set-name": _set_name(pools, each),
                        "seq-nr": found.position,
                        "store": found.store,
                        "snapshot": found.path,
                        "media-set-uuid": encode_uuid(each.uuid),
                        "backup-time": when,
                        "media-set-ctime": medium.in_set.time,
                        "uuid": encode_uuid(medium.uuid),
                        "file-number": found.file,
                    }
                )
            missing += [
                medium.name for medium in each.media if medium.uuid in lost and (not only or medium.uuid in only)
            ]
    items.sort(key=lambda item: (item["media-set-uuid"], item["seq-nr"], item["store"], item["snapshot"]))
    if output.as_json:
        output.document({"schema": 1, "items": items, "missing-catalogs": missing})
    else:
        columns = ("label-text", "pool", "media-set-name", ">seq-nr", "store", "snapshot", "media-set-uuid")
        listed(output, items, columns, "no snapshots are known on the media")
    if missing:
        output.message(f"the catalogs of these media cannot be had: {', '.join(missing)} (archiver tape catalog)")
        ctx.exit(EXIT_DAMAGED)


def _uuid_text(text: str) -> str:
    from formats.errors import FormatError
    from formats.tape.content import decode_uuid, encode_uuid

    try:
        return encode_uuid(decode_uuid(text, "uuid"))
    except FormatError as error:
        raise UsageError(f"--media-set {text!r} is no uuid", hint="see: archiver tape media list") from error


def _split(path: str) -> tuple[str, str, int | None]:
    """(type, id, time) of a snapshot; the time None for what is none."""
    from formats.errors import FormatError
    from formats.naming import parse_time

    parts = path.split("/")
    if len(parts) < 3:
        return "", "", None
    try:
        return parts[-3], parts[-2], parse_time(parts[-1])
    except FormatError:
        return parts[-3], parts[-2], None


@media.command()
@click.argument("medium", metavar="MEDIUM")
@click.argument("vault", required=False)
@global_options
def move(context: Context, medium: str, vault: str | None) -> None:
    """Note that MEDIUM (label or uuid) is in the VAULT now; without it, that it is on the shelf again.

    Media in a vault are not written, and their set does not go on.
    """
    from archiver.tape.labelling import change_medium
    from archiver.tape.state.inventory import OFFLINE, Location

    location = OFFLINE if vault is None else Location.vault(vault)
    moved = change_medium(tape_place(), medium, lambda each: replace(each, location=location))
    told(context.output, {"label-text": moved.name, "location": str(location)}, f"{moved.name} is at: {location}")


@media.command("set-status")
@click.argument("medium", metavar="MEDIUM")
@click.argument("status", type=click.Choice(["full", "damaged", "retired", "none"]))
@global_options
def set_status(context: Context, medium: str, status: str) -> None:
    """Say that MEDIUM (label or uuid) is full, damaged or retired; none: what follows from its media set."""
    from archiver.tape.labelling import change_medium
    from archiver.tape.state.inventory import STORED

    stored = next((each for each in STORED if each == status), None)
    changed = change_medium(tape_place(), medium, lambda each: replace(each, status=stored))
    told(context.output, {"label-text": changed.name, "status": stored}, f"{changed.name}: {status}")


@media.command()
@click.argument("medium", metavar="MEDIUM")
@click.option("--force", is_flag=True, help="Also one that is in a media set: restores will not find what is on it.")
@global_options
def destroy(context: Context, medium: str, force: bool) -> None:
    """Forget MEDIUM (label or uuid). What is on it is not touched, and its catalog stays, should it be met again."""
    from archiver.tape.labelling import forget
    from archiver.tape.state.inventory import InventoryFile
    from formats.tape.content import encode_uuid

    place = tape_place()
    found = InventoryFile(place).load().find(medium)
    forget(place, found, force=force)
    told(
        context.output,
        {"label-text": found.name, "uuid": encode_uuid(found.uuid)},
        f"{found.name} is not known any more",
    )
