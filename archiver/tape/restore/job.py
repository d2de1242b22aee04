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
from formats.tape.catalog import Entry
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
    uuid = find_set(InventoryFile(place).load(), Pools(place).all(), name).uuid
    with place.lock_media_set(encode_uuid(uuid)), MediaSets(place, listener) as sets:
        # a backup may have taken one of its media before the lock was had
        known = KnownSet(place, sets, InventoryFile(place).load().media_set(uuid))
        media = RequestedMedia(access, listener, media_set=uuid, keys=keys, wait_seconds=wait_seconds, pause=pause)
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

    def catalogued(member: Member, entries: list[Entry], lost: int) -> None:
        unsure = f"{lost} of its files cannot be read" if lost else None
        try:
            CatalogLogs(opened.place).rebuild(member.uuid, opened.known.uuid, member.seq_nr, entries, unsure)
        except ArchiverError as error:  # without it the restore is as good
            listener(Notice(f"the catalog of {member.label} is not kept: {error}", "warning"))

    return run.carry_out(opened.known, plan, routes, opened.media, crypt, listener, catalogued=catalogued)
