"""A whole backup to media: locks, the media set, the plan, the writing, and what becomes of the media afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from archiver.core.clock import Random, system_random
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError
from archiver.store.store import Store
from archiver.tape.access import Access
from archiver.tape.keys import TapeKeys, use_key
from archiver.tape.known_set import KnownSet
from archiver.tape.loading import RequestedMedia
from archiver.tape.media_sets.media_sets import MediaSets
from archiver.tape.request import Pause
from archiver.tape.state.inventory import InventoryFile, Medium
from archiver.tape.state.pools import Pool
from archiver.tape.state.session import WriteSession, candidates, choose_set
from archiver.tape.write.media import Media
from archiver.tape.write.plan import WriteOptions, WritePlan, estimate, is_encrypted, make_plan
from archiver.tape.write.run import WriteResult, carry_out
from formats.tape.labels import MediaSetLabel


@dataclass(frozen=True, slots=True)
class JobOptions:
    """``eject``: take the medium out at the end; ``export``: all media of the set, for a person to take away."""

    write: WriteOptions
    force_new: bool = False
    eject: bool = False
    export: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """``media_set``: that is written; ``new_set``: why it is a new one, None where it goes on; ``media``: labels
    of those that would be written, the next one first."""

    plan: WritePlan
    media_set: bytes
    new_set: str | None
    media: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "items": [step.as_json() for step in self.plan.steps],
            "problems": [problem.as_json() for problem in self.plan.problems],
            "new_set": self.new_set,
            "next_media": self.media,
            "bytes": sum(step.bytes or 0 for step in self.plan.work),
        }


def look_ahead(access: Access, store: Store, pool: Pool, options: JobOptions, listener: Listener) -> Outlook:
    """What a backup would do now. Nothing is changed."""
    now = store.clock.now()
    inventory = InventoryFile(access.place).load()
    start = choose_set(inventory, pool, now, force_new=options.force_new)
    media = [medium.name for medium in candidates(inventory, pool, start.media_set, access.library, now)]
    with MediaSets(access.place, listener) as sets:
        known = KnownSet(access.place, sets, inventory.media_set(start.media_set))
        plan = make_plan(store, known, options.write)
        estimate(store, known, plan)
    return Outlook(plan, start.media_set, start.reason, media)


def back_up(
    access: Access,
    store: Store,
    pool: Pool,
    options: JobOptions,
    keys: TapeKeys,
    listener: Listener,
    *,
    wait_seconds: float = 0.0,
    pause: Pause = time.sleep,
    random: Random = system_random,
) -> tuple[WritePlan, WriteResult]:
    """Raises Locked, NotFound, ArchiverError where nothing can be begun; all else is in the result."""
    access.update_online()
    with (
        MediaSets(access.place, listener) as sets,
        WriteSession(
            access.place, pool, access.library, force_new=options.force_new, clock=store.clock, random=random
        ) as session,
    ):
        known = KnownSet(access.place, sets, session.members())
        media = Media(
            access.place,
            session,
            known,
            RequestedMedia(access, listener, wait_seconds=wait_seconds, pause=pause, clock=store.clock),
            listener,
            store.clock,
            random,
            namespaces=options.write.has_namespaces,
            complete=lambda label: _with_key(label, keys),
            use_key=lambda drive, label: use_key(drive, label, keys),
        )
        plan = make_plan(store, media, options.write)
        if plan.work and pool.encrypt is None and not options.write.require_encryption:
            _tell_of_plain(store, plan, pool, listener)
        if plan.work and pool.encrypt is not None and keys.wrapped(pool.encrypt) is None:
            text = f"the media of the pool {pool.name} do not carry their key: its wrapped form is not here"
            listener(Notice(text, "warning"))
        if plan.work and session.start.reason is not None:
            listener(Notice(f"a new media set is begun: {session.start.reason}"))
        result = carry_out(store, plan, options.write, media, listener)
        _put_away(access, session.members().media, options, listener)
    return plan, result


def _with_key(label: MediaSetLabel, keys: TapeKeys) -> MediaSetLabel:
    """With the wrapped key, so that the medium and its passphrase are enough to read it."""
    return label if label.fingerprint is None else replace(label, key=keys.wrapped(label.fingerprint))


def _tell_of_plain(store: Store, plan: WritePlan, pool: Pool, listener: Listener) -> None:
    for step in plan.work:
        try:
            if not is_encrypted(store.manifest(step.ref)):
                listener(Notice(f"the pool {pool.name} has no key: what is not encrypted is readable on its media"))
                return
        except ArchiverError:
            continue


def _put_away(access: Access, media: list[Medium], options: JobOptions, listener: Listener) -> None:
    """Also when nothing was to be written: who asked for it comes to fetch them. A failure here is told, the backup is
    done."""
    if not (options.eject or options.export):
        return
    try:
        if options.export:
            for medium in media:
                access.changer.export(medium.name)
        else:
            access.changer.unload()
        access.update_online()
    except ArchiverError as error:
        listener(Notice(f"the media were not put away: {error}", "warning"))
