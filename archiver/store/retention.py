"""The plan of a prune: what the keep options say of every group, then guards that can only keep more, or hold it all.

The options decide as PBS does (:mod:`archiver.store.prune`). Added to that:

* ``keep_within``: what is at most that much older than the newest finished snapshot of its group is kept;
* the newest snapshot of a group that was verified and found good is kept;
* a clock that is or was wrong: a group with a snapshot from the future, or of which more than half would be removed at
  once, holds the whole plan until a person confirms it.

Without any option everything is kept.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from archiver.errors import UsageError
from archiver.store.layout import GroupRef
from archiver.store.prune import Candidate, Keep, mark_all
from archiver.store.removal import Hold, Item, RemovalPlan
from archiver.store.snapshots import SnapshotInfo
from archiver.store.store import Store
from formats.naming import format_time

_SKEW = 300  # seconds that a snapshot may be ahead of the clock: backups in quick succession push each other on
_DURATION = re.compile(r"(?:[0-9]{1,6}[ymdh])+")
_NO_OPTION = "no keep option is given"


class Duration(NamedTuple):
    """A time span of the calendar; a month has as many days as the one it leads to."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @classmethod
    def parse(cls, text: str) -> Duration:
        """``1y5m7d2h``; UsageError."""
        parts = re.findall(r"([0-9]+)([ymdh])", text) if _DURATION.fullmatch(text) else []
        numbers = {unit: int(number) for number, unit in parts}
        if not parts or len(numbers) < len(parts) or not any(numbers.values()):
            raise UsageError(f"{text!r} is no duration", hint="write years, months, days and hours: 1y5m7d2h, 36h")
        return cls(numbers.get("y", 0), numbers.get("m", 0), numbers.get("d", 0), numbers.get("h", 0))

    def before(self, when: int) -> int:
        """The moment that lies this much before ``when``, in UTC; 0 when that is before 1970."""
        start = datetime.fromtimestamp(when, UTC)
        months = start.year * 12 + start.month - 1 - self.years * 12 - self.months
        year, month = months // 12, months % 12 + 1
        if year < 1970:
            return 0
        moved = start.replace(year=year, month=month, day=min(start.day, monthrange(year, month)[1]))
        try:
            return max(int((moved - timedelta(days=self.days, hours=self.hours)).timestamp()), 0)
        except OverflowError:
            return 0


class Retention(NamedTuple):
    """What is to be kept."""

    keep: Keep
    within: Duration | None = None


def plan_prune(store: Store, groups: Iterable[GroupRef], retention: Retention) -> RemovalPlan:
    """What a prune of ``groups`` would do now."""
    items: list[Item] = []
    holds: list[Hold] = []
    for group in groups:
        infos = list(store.infos(group))[::-1]
        decided = decide(infos, retention)
        items += decided
        holds += [Hold(group, reason) for reason in doubts(decided, store.clock.now())]
    return RemovalPlan(tuple(items), tuple(holds))


def decide(infos: Sequence[SnapshotInfo], retention: Retention) -> list[Item]:
    """The items of one group; ``infos``: all its snapshots, the newest first."""
    found = [Candidate(info.ref.time, _finished(info), info.protected) for info in infos]
    marked = zip(infos, mark_all(found, retention.keep), strict=True)
    items = [Item(info.ref, entry.mark, entry.reason, _finished(info)) for info, entry in marked]
    if retention.keep.keeps_nothing and retention.within is None:
        items = [_rescue(item, _NO_OPTION) for item in items]
    if retention.within is not None:
        items = _within(items, retention.within)
    return _last_good(items, infos)


def _finished(info: SnapshotInfo) -> bool:
    """There is a manifest, one that cannot be read too."""
    return info.manifest is not None or info.problem is not None


def _rescue(item: Item, reason: str) -> Item:
    return item if item.keep else item._replace(mark="keep", reason=reason)


def _within(items: Sequence[Item], within: Duration) -> list[Item]:
    newest = max((item.ref.time for item in items if item.finished), default=0)
    since = within.before(newest) if newest else 0
    return [
        _rescue(item, "keep-within of the newest") if item.finished and item.ref.time >= since else item
        for item in items
    ]


def _last_good(items: Sequence[Item], infos: Sequence[SnapshotInfo]) -> list[Item]:
    good = [info.ref for info in infos if info.verify_state is not None and info.verify_state["state"] == "ok"]
    return [
        _rescue(item, "the newest that was verified and found good") if good and item.ref == good[0] else item
        for item in items
    ]


def doubts(items: Sequence[Item], now: int) -> list[str]:
    """Why a person should look at this before anything of a group is removed."""
    finished = [item for item in items if item.finished]
    gone = [item for item in finished if not item.keep]
    if all(item.keep for item in items):
        return []
    found = []
    newest = max(items, key=lambda item: item.ref.time)
    if newest.ref.time > now + _SKEW:
        found.append(f"{format_time(newest.ref.time)} is in the future: is the clock right, and was it then?")
    if 2 * len(gone) > len(finished):
        found.append(f"{len(gone)} of {len(finished)} snapshots would be removed at once")
    return found
