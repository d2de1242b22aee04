"""A whole restore from media: the media set, its lock, the plan, the reading, catalogs made on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError
from archiver.tape.access import Access
from archiver.tape.keys import TapeKeys
from archiver.tape.known_set import KnownSet, find_set
from archiver.tape.loading import RequestedMedia
from archiver.tape.media_sets.media_sets import MediaSets
from archiver.tape.members import Member
from archiver.tape.request import Pause
from archiver.tape.restore import run
from archiver.tape.restore.plan import RestorePlan, make_plan
from archiver.tape.restore.routes import Routes
from archiver.tape.restore.run import RestoreResult
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pools
from formats.crypt import CryptConfig
from formats.tape.catalog import ChunkFile, SnapshotEntry, encode_chunk_file, encode_labels, encode_snapshot
from formats.tape.content import encode_uuid


@dataclass(frozen=True, slots=True)
class OpenedSet:
    """A media set that nobody overwrites meanwhile, and what brings its media."""

    known: KnownSet
    media: RequestedMedia
    place: TapePlace


@contextmanager
def opened_set(
    access: Access,
    name: str,
    keys: TapeKeys,
    listener: Listener,
    *,
    wait_seconds: float = 0.0,
    pause: Pause = time.sleep,
) -> Iterator[OpenedSet]:
    """Raises NotFound, Locked, Damaged."""
    place = access.place
    access.update_online()
    media_set = find_set(InventoryFile(place).load(), Pools(place).all(), name)
    with place.lock_media_set(encode_uuid(media_set.uuid)), MediaSets(place, listener) as sets:
        known = KnownSet(place, sets, media_set)
        media = RequestedMedia(
            access, listener, media_set=media_set.uuid, keys=keys, wait_seconds=wait_seconds, pause=pause
        )
        yield OpenedSet(known, media, place)


def look_ahead(opened: OpenedSet, routes: Routes, crypt: CryptConfig | None, listener: Listener) -> RestorePlan:
    """What a restore would read; the snapshots' archives are read from media that are at hand."""
    plan = make_plan(opened.known, routes)
    run.survey(opened.known, plan, routes, opened.media, crypt, listener)
    return plan


def restore(
    opened: OpenedSet, plan: RestorePlan, routes: Routes, crypt: CryptConfig | None, listener: Listener
) -> RestoreResult:
    """Carry out the plan that ``make_plan`` made of ``opened.known``. Media that had no catalog here get one. Raises
    UsageError, Locked during a gc; all else is in the result."""

    def catalogued(member: Member, entries: list[ChunkFile | SnapshotEntry]) -> None:
        _keep(CatalogLogs(opened.place), opened.known.uuid, member, entries, listener)

    return run.carry_out(opened.known, plan, routes, opened.media, crypt, listener, catalogued=catalogued)


def _keep(
    logs: CatalogLogs,
    media_set: bytes,
    member: Member,
    entries: list[ChunkFile | SnapshotEntry],
    listener: Listener,
) -> None:
    """The catalog of a medium that had none; without it the restore is as good."""
    parts = [encode_labels(member.uuid, media_set, member.seq_nr)]
    for entry in entries:
        parts.append(encode_chunk_file(entry) if isinstance(entry, ChunkFile) else encode_snapshot(entry))
    try:
        logs.replace(member.uuid, b"".join(parts))
    except ArchiverError as error:
        listener(Notice(f"the catalog of {member.label} is not kept: {error}", "warning"))
