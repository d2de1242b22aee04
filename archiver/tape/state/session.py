"""A write session: which media set is written, and which medium comes next (spec tape.md 7.2-7.4).

A medium is entered in the inventory, with an empty catalog, before anything is written on it. Where a run dies in
between, the next one finds another set label on the medium than the inventory has, and writes the right one.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

from archiver.core.calendar_events import CalendarEvent
from archiver.core.clock import Clock, Random, system_random
from archiver.errors import Locked, NoSpace, Skipped
from archiver.tape.state import rules
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import Inventory, InventoryFile, MediaSet, Medium
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pool
from formats.tape.content import encode_uuid
from formats.tape.labels import MediaSetLabel


class NoMediaLeft(NoSpace):
    """No medium of the pool, nor a free one, can be written."""

    code = "no-media"


@dataclass(frozen=True, slots=True)
class Start:
    """The set that is written: its uuid, and for a new one why (None: the current one goes on)."""

    media_set: bytes
    reason: str | None

    @property
    def is_new(self) -> bool:
        return self.reason is not None


@dataclass(frozen=True, slots=True)
class Allocated:
    """``is_new``: it was just added to the set; else it is the set's last medium, which goes on."""

    medium: Medium
    is_new: bool


def new_uuid(random: Random = system_random) -> bytes:
    return uuid.UUID(bytes=random(16), version=4).bytes


def choose_set(inventory: Inventory, pool: Pool, now: int, *, force_new: bool, random: Random = system_random) -> Start:
    """Whether the pool's current set goes on. Pure: a plan may ask."""
    current = inventory.latest_set(pool.name)
    reason = _reason(inventory, pool, current, now, force_new)
    if reason is None:
        assert current is not None
        return Start(current.uuid, None)
    return Start(new_uuid(random), reason)


def _reason(inventory: Inventory, pool: Pool, current: MediaSet | None, now: int, force_new: bool) -> str | None:
    if current is None:
        return "the pool has no media set yet" if not inventory.sets(pool.name) else "no set of the pool is the newest"
    if force_new:
        return "a new media set was asked for"
    why = rules.unusable(inventory, current, pool)
    if why is not None:
        return f"the current media set cannot go on: {why}"
    if pool.allocation == "always":
        return "the pool's policy is a new media set for each run"
    if isinstance(pool.allocation, CalendarEvent) and current.start is not None:
        due = pool.allocation.next_after(current.start)
        if due is not None and now >= due:
            return f"the pool's policy is a new media set at {pool.allocation.text}"
    return None


def candidates(inventory: Inventory, pool: Pool, media_set: bytes, changer: str | None, now: int) -> list[Medium]:
    """The media that may be written next, the best first; expired ones may turn out to be in use. Pure."""
    current = inventory.media_set(media_set)
    last = current.last
    found: list[Medium] = []
    if (
        last is not None
        and last.status is None
        and rules.is_available(last, changer)
        and rules.unusable(inventory, current, pool) is None
    ):
        found.append(last)
    there = [medium for medium in inventory if rules.is_available(medium, changer)]
    found += sorted(
        (medium for medium in there if medium.pool == pool.name and medium.in_set is None and medium.status is None),
        key=_by_label,
    )
    expired = [
        medium
        for medium in there
        if medium.pool == pool.name
        and medium.in_set is not None
        and medium.in_set.uuid != media_set
        and _is_expired(inventory, medium, pool, media_set, now)
    ]
    found += sorted(expired, key=lambda each: (each.in_set.time if each.in_set else 0, each.name))
    found += sorted((medium for medium in there if medium.pool is None and medium.status is None), key=_by_label)
    return found


def _by_label(medium: Medium) -> tuple[int, str]:
    return medium.label.time, medium.name


def _is_expired(inventory: Inventory, medium: Medium, pool: Pool, media_set: bytes, now: int) -> bool:
    """As ``rules.is_expired`` has it once the set that is written has a medium: then no other one is the current."""
    place = medium.in_set
    if place is None or medium.status not in (None, "full"):
        return False
    current = inventory.latest_set(pool.name)
    is_writable = medium.status is None and rules.status_in(place.uuid, medium, current) == "writable"
    if is_writable and (current is None or current.uuid == media_set):
        return False
    end = rules.expire_time(inventory, medium, pool)
    return end is not None and now >= end


class WriteSession:
    """Holds the locks of the pool and of the set that is written until ``close``.

    ``changer``: the name of what loads media, None where a person does. ``start``: which set, and why.
    """

    def __init__(
        self,
        place: TapePlace,
        pool: Pool,
        changer: str | None,
        *,
        force_new: bool = False,
        clock: Clock | None = None,
        random: Random = system_random,
    ) -> None:
        """Raises Locked when another writes into the pool."""
        self.pool = pool
        self._place = place
        self._changer = changer
        self._clock = clock or Clock()
        self._file = InventoryFile(place)
        self._logs = CatalogLogs(place)
        self._opened = ExitStack()
        try:
            self._opened.enter_context(place.lock_pool(pool.name))
            self.start = choose_set(self._file.load(), pool, self._clock.now(), force_new=force_new, random=random)
            self._opened.enter_context(place.lock_media_set(encode_uuid(self.start.media_set)))
        except BaseException:
            self._opened.close()
            raise

    @property
    def media_set(self) -> bytes:
        return self.start.media_set

    @property
    def by_hand(self) -> bool:
        """Whether a person changes the media."""
        return self._changer is None

    @property
    def label(self) -> MediaSetLabel:
        """Of the set that is written, as on its first medium, were that to join it now."""
        return MediaSetLabel(self.pool.name, self.media_set, 0, self._clock.now(), self.pool.encrypt)

    def members(self) -> MediaSet:
        return self._file.load().media_set(self.media_set)

    def next_medium(self) -> Medium:
        """Which one ``allocate`` will give, as far as can be told; nothing is entered. So what is on it can be
        looked at first. Raises NoMediaLeft."""
        inventory = self._file.load()
        for medium in candidates(inventory, self.pool, self.media_set, self._changer, self._clock.now()):
            place = medium.in_set
            if place is None or place.uuid == self.media_set:
                return medium
            try:
                self._place.lock_media_set(encode_uuid(place.uuid), wait_seconds=0).close()
            except Locked:
                continue
            return medium
        raise self._none_left()

    def allocate(self, chosen: Medium | None = None) -> Allocated:
        """The medium to be written now: that which goes on, or the next one, entered in the inventory. ``chosen``: this
        one or none, as it was looked at. Raises NoMediaLeft, Skipped where another process has taken ``chosen``."""
        now = self._clock.now()
        with ExitStack() as opened:
            opened.enter_context(self._place.lock_pool(None))  # a free medium goes to one pool
            inventory = self._file.load()
            for medium in candidates(inventory, self.pool, self.media_set, self._changer, now):
                place = medium.in_set
                if chosen is not None and (medium.uuid, place) != (chosen.uuid, chosen.in_set):
                    continue
                if place is not None and place.uuid == self.media_set:
                    if self._logs.stamp(medium.uuid) and not self._logs.is_of(medium.uuid, place.uuid, place.seq_nr):
                        # A crash came before the log was made: see _add. What is on it nevertheless is an unknown tail.
                        self._logs.create(medium.uuid, place.uuid, place.seq_nr)
                    return Allocated(medium, is_new=False)
                try:
                    if place is not None:
                        opened.enter_context(self._place.lock_media_set(encode_uuid(place.uuid), wait_seconds=0))
                except Locked:
                    continue  # a restore reads it
                return Allocated(self._add(medium.uuid, now), is_new=True)
        if chosen is not None:
            raise Skipped(f"medium {chosen.name} was taken by another process", hint="try again")
        raise self._none_left()

    def _none_left(self) -> NoMediaLeft:
        where = "on the shelf" if self._changer is None else f"in {self._changer}"
        return NoMediaLeft(
            f"no medium {where} can be written for the pool {self.pool.name}",
            hint=f"label a new one: archiver tape label --label-text TEXT --pool {self.pool.name}",
        )

    def _add(self, medium: bytes, now: int) -> Medium:
        def enter(inventory: Inventory) -> Medium:
            number = max(inventory.media_set(self.media_set).members, default=-1) + 1
            label = replace(self.label, seq_nr=number, time=now)
            entered = replace(inventory.get(medium), set_label=label, status=None, bytes_used=None)
            inventory.put(entered)
            return entered

        entered = self._file.change(enter)
        assert entered.in_set is not None
        # Behind the inventory: where a crash comes between, the old log is seen to be that of another set.
        self._logs.create(medium, self.media_set, entered.in_set.seq_nr)
        return entered

    def set_full(self, medium: bytes) -> None:
        """The end of the medium was met: the set goes on with another one."""
        self.set_status(medium, "full")

    def set_status(self, medium: bytes, status: Literal["full", "damaged"]) -> None:
        self._file.change(lambda inventory: inventory.put(replace(inventory.get(medium), status=status)))

    def set_bytes_used(self, medium: bytes, used: int | None) -> None:
        """At each commit, before the catalog is told."""
        if used is not None:
            self._file.change(lambda inventory: inventory.put(replace(inventory.get(medium), bytes_used=used)))

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
