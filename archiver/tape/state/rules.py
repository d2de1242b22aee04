"""What follows from the inventory and the pools: status, expiry, whether a set goes on (spec tape.md 6.4, 7.3, 7.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from archiver.core.calendar_events import CalendarEvent, TimeSpan
from archiver.tape.state.inventory import Inventory, MediaSet, Medium
from archiver.tape.state.pools import Pool

Status = Literal["writable", "full", "unknown", "damaged", "retired"]
ShownStatus = Literal["writable", "full", "unknown", "damaged", "retired", "expired"]


def status(inventory: Inventory, medium: Medium, pool: Pool | None) -> Status:
    """``pool``: that of the medium; None where it has none, or that is not configured."""
    if medium.status is not None:
        return medium.status
    place = medium.in_set
    if place is None:
        return "writable" if pool is not None or medium.pool is None else "unknown"
    if pool is None or place.pool != pool.name:
        return "unknown"
    current = inventory.latest_set(pool.name)
    return status_in(place.uuid, medium, current)


def status_in(uuid: bytes, medium: Medium, current: MediaSet | None) -> Status:
    """Of a medium in the set ``uuid`` where nothing is stored."""
    if current is None or uuid != current.uuid or current.last is None:
        return "full"
    return "writable" if medium.uuid == current.last.uuid else "full"


def shown_status(inventory: Inventory, medium: Medium, pools: Mapping[str, Pool], now: int) -> ShownStatus:
    pool = pools.get(medium.pool or "")
    found = status(inventory, medium, pool)
    if pool is not None and found in ("full", "writable") and is_expired(inventory, medium, pool, now):
        return "expired"
    return found


def expire_time(inventory: Inventory, medium: Medium, pool: Pool) -> int | None:
    """When its set may be overwritten, Unix seconds; None: never (spec tape.md 7.5)."""
    place = medium.in_set
    if pool.retention == "keep" or place is None:
        return None
    own = inventory.media_set(place.uuid)
    start = own.start if own.start is not None else place.time
    later = [
        other.in_set.time
        for other in inventory
        if other.in_set is not None
        and other.in_set.pool == pool.name
        and other.in_set.uuid != place.uuid
        and other.in_set.time > start
    ]
    base: int | None
    if pool.allocation == "always":
        base = start
    elif later:
        base = min(later)
    elif isinstance(pool.allocation, CalendarEvent):
        base = pool.allocation.next_after(start)
    else:
        base = None
    if base is None:
        return None
    return base + int(pool.retention.seconds) if isinstance(pool.retention, TimeSpan) else base


def is_expired(inventory: Inventory, medium: Medium, pool: Pool, now: int) -> bool:
    """Only full media expire."""
    if status(inventory, medium, pool) != "full":
        return False
    end = expire_time(inventory, medium, pool)
    return end is not None and now >= end


def is_available(medium: Medium, changer: str | None) -> bool:
    """Whether it can be had for writing: by ``changer``, or by hand where there is none."""
    if changer is None:
        return medium.location.kind == "offline"
    return medium.location.kind == "online" and medium.location.name == changer


def unusable(inventory: Inventory, current: MediaSet, pool: Pool) -> str | None:
    """Why the set cannot go on (spec tape.md 7.3); None when it can."""
    if current.missing:
        return f"medium {current.missing[0]} of it is not known"
    if current.doubled is not None:
        return f"two media have the position {current.doubled} in it"
    for medium in current.media:
        place = medium.in_set
        assert place is not None
        if place.pool != pool.name:
            return f"medium {medium.name} belongs to the pool {place.pool}"
        if place.fingerprint != pool.encrypt:
            return "the key of the pool is another one now"
        # of the set itself, which is what a new one is compared with while it is the latest
        found = medium.status or status_in(place.uuid, medium, current)
        if found in ("damaged", "retired"):
            return f"medium {medium.name} is {found}"
        if found == "writable" and medium.location.kind == "vault":
            return f"medium {medium.name} is in the vault {medium.location.name}"
    return None
