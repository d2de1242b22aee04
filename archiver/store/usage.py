"""What snapshots and groups take in the store, and what would come back if they were removed.

Chunks are counted by their numbers in the database: who refers to each is one small number, the place of a snapshot and
of a group, or "several". A snapshot frees the chunks that nobody else refers to, exactly those that a garbage
collection would remove after it was forgotten: what interrupted and running sessions need is somebody else's. The
numbers are taken a range at a time, so that memory does not grow with the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.core.disk import is_directory
from archiver.core.events import Progress
from archiver.errors import ArchiverError, Damaged, NotFound
from archiver.store import snapshots
from archiver.store.database.bulk import Numbers
from archiver.store.database.database import Database
from archiver.store.database.unused import counts
from archiver.store.gc.exclusion import sessions_of
from archiver.store.gc.references import DatabaseFailed, References, UnreadableIndex
from archiver.store.gc.tree import Directory, directories
from archiver.store.layout import GroupRef, SnapshotRef, parse_reference
from archiver.store.store import Store
from formats.manifest import Manifest

_AT_ONCE = 8 << 20  # chunk numbers: about 13 bytes each
_PIECE = 1 << 20  # of them, for what is computed on the way
_NOBODY = 0

Named = SnapshotRef | GroupRef
Places = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(slots=True)
class Usage:
    """Bytes. ``contents``: what the snapshots hold, as their manifests have it; ``stored``: chunk files that they refer
    to, each counted once; ``freed``: those of them that nobody else refers to."""

    snapshots: int = 0
    contents: int = 0
    stored: int = 0
    freed: int = 0

    def as_json(self) -> dict[str, int]:
        return {
            "snapshots": self.snapshots,
            "contents_bytes": self.contents,
            "stored_bytes": self.stored,
            "freed_bytes": self.freed,
        }


@dataclass(slots=True)
class StoreUsage:
    """``items``: of what was asked for; ``together``: of all of it at once; ``stored`` and ``unused``: bytes of all
    chunks that are referred to, and of those that no longer are."""

    items: list[tuple[Named, Usage]]
    together: Usage
    stored: int = 0
    unused: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "items": [
                {
                    "snapshot": str(name) if isinstance(name, SnapshotRef) else None,
                    "group": str(name.group if isinstance(name, SnapshotRef) else name),
                    **usage.as_json(),
                }
                for name, usage in self.items
            ],
            "together": self.together.as_json(),
            "stored_bytes": self.stored,
            "unused_bytes": self.unused,
        }


def named(store: Store, texts: Sequence[str], namespace: str = "") -> list[Named]:
    """The snapshots and groups that ``texts`` name; without any all groups at or below ``namespace``. NotFound,
    UsageError."""
    if not texts:
        return [group for level in store.namespaces(namespace) for group in store.groups(level)]
    return list(dict.fromkeys(_named(store, text, namespace) for text in texts))


def _named(store: Store, text: str, namespace: str) -> Named:
    if text == "latest":
        return store.find(text, namespace)
    reference = parse_reference(store.qualified(text, namespace))
    if isinstance(reference, GroupRef):
        return store.find_group(text, namespace)
    if not is_directory(store.layout.snapshot(reference)):
        raise NotFound(f"there is no snapshot {reference}", hint="see the list with: archiver snapshots")
    return reference


def usage(store: Store, names: Sequence[Named]) -> StoreUsage:
    """Count. Raises Damaged where an index file cannot be read, ArchiverError without a database."""
    database = store.database
    found = counts(database) if database is not None else None
    if database is None or found is None:
        raise ArchiverError(
            "what a snapshot takes is counted in the database, and there is none",
            hint="name a place for it: ARCHIVER_DB_DIR",
        )
    tree = sorted(directories(store.layout), key=attrgetter("path"))
    result = StoreUsage([(name, Usage()) for name in names], Usage())
    counter = _Counter(store, database, tree, result)
    try:
        for first in range(0, found.chunks, _AT_ONCE):
            counter.count(range(first, min(first + _AT_ONCE, found.chunks)))
    except UnreadableIndex as error:
        raise Damaged(
            f"{error.path} cannot be read, so nobody knows which chunks it shares with others", hint=error.hint
        ) from error
    except DatabaseFailed as error:
        raise ArchiverError("the database cannot be read", hint="run it again: it is made anew") from error
    _count_contents(store, tree, result)
    return result


def _count_contents(store: Store, tree: Iterable[Directory], result: StoreUsage) -> None:
    named = dict(result.items)
    for directory in tree:
        ref = directory.ref
        if ref is None:
            continue
        touched = [named[name] for name in (ref, ref.group) if name in named]
        if touched:
            size = _contents(store, ref)
            for usage in (*touched, result.together):
                usage.snapshots += 1
                usage.contents += size


def _contents(store: Store, ref: SnapshotRef) -> int:
    try:
        manifest: Manifest = store.manifest(ref)
    except ArchiverError:  # unfinished, damaged
        return 0
    return sum(file.size for file in manifest.files)


class _Counter:
    """Adds what the chunks of a range of numbers amount to to ``result``."""

    def __init__(self, store: Store, database: Database, tree: Sequence[Directory], result: StoreUsage) -> None:
        self._store = store
        self._database = database
        self._tree = tree
        self._result = result
        # Places of snapshots and groups, from 1 on.
        self._snapshots = {ref: place for place, ref in enumerate(self._refs(), 1)}
        self._groups = {group: place for place, group in enumerate(dict.fromkeys(r.group for r in self._snapshots), 1)}
        self._several = (1 << (16 if len(self._snapshots) < 0xFFFF else 32)) - 1
        self._place = np.min_scalar_type(self._several)
        self._named = dict(result.items)

    def _refs(self) -> Iterator[SnapshotRef]:
        return (directory.ref for directory in self._tree if directory.ref is not None)

    def count(self, numbers: range) -> None:
        self._first = numbers.start
        size = len(numbers)
        self._stored = self._database.stored(numbers)
        self._by_snapshot, self._by_group = np.zeros(size, self._place), np.zeros(size, self._place)
        self._chosen, self._others = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        self._here, self._in_group = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        references = References(self._store.layout, self._database, self._tell, self._hear)
        for session in sessions_of(self._store, alone=False).kept:
            references.mark_session(session)
        self._end_directory(None)
        group: GroupRef | None = None
        for directory in self._tree:
            ref = directory.ref
            if ref is not None and ref.group != group:
                self._end_group(group)
                group = ref.group
            stamp = snapshots.manifest_stamp(self._store.layout, ref) if ref is not None else None
            references.mark_directory(directory, stamp)
            self._end_directory(ref)
        self._end_group(group)
        self._end()

    def _tell(self, count: int) -> None:
        self._store.listener(Progress("index files counted", count, 0))

    def _hear(self, numbers: Numbers) -> None:
        first, size = np.uint32(self._first), len(self._here)
        for start in range(0, len(numbers), _PIECE):
            part = numbers[start : start + _PIECE]
            if self._first or int(part.max()) >= size:
                part = part[(part >= first) & (part - first < size)]
            self._here[part - first] = True

    def _end_directory(self, ref: SnapshotRef | None) -> None:
        """All numbers that something refers to, a snapshot or anything else, were heard."""
        for start in range(0, len(self._here), _PIECE):
            here: NDArray[np.intp] = np.flatnonzero(self._here[start : start + _PIECE])
            if len(here):
                here += start
                self._here[here] = False
                self._refers(ref, here)

    def _refers(self, ref: SnapshotRef | None, here: NDArray[np.intp]) -> None:
        """A snapshot, or anything else, needs the chunks ``here``."""
        if ref is None:
            self._by_snapshot[here] = self._by_group[here] = self._several
            self._others[here] = True
            return
        self._claim(self._by_snapshot, here, self._snapshots[ref])
        self._claim(self._by_group, here, self._groups[ref.group])
        self._in_group[here] = True
        is_chosen = ref in self._named or ref.group in self._named
        (self._chosen if is_chosen else self._others)[here] = True
        if ref in self._named:
            self._named[ref].stored += int(self._stored[here].sum(dtype=np.int64))

    def _claim(self, owners: Places, here: NDArray[np.intp], place: int) -> None:
        """``place`` refers to the chunks ``here`` too."""
        before = owners[here]
        is_alone = (before == _NOBODY) | (before == place)
        owners[here] = np.where(is_alone, self._place.type(place), self._place.type(self._several))

    def _end_group(self, group: GroupRef | None) -> None:
        if group in self._named:
            self._named[group].stored += self._sum(self._in_group)
        self._in_group[:] = False

    def _end(self) -> None:
        result = self._result
        by_snapshot = self._sums(self._by_snapshot, len(self._snapshots))
        by_group = self._sums(self._by_group, len(self._groups))
        for name, usage in result.items:
            if isinstance(name, SnapshotRef):
                place, sums = self._snapshots.get(name), by_snapshot
            else:
                place, sums = self._groups.get(name), by_group
            if place is not None:  # it is gone, or empty
                usage.freed += int(sums[place])
        result.together.stored += self._sum(self._chosen)
        result.together.freed += self._sum(self._chosen & ~self._others)
        used = self._chosen | self._others
        result.stored += self._sum(used)
        result.unused += self._sum(~used)

    def _sum(self, which: NDArray[np.bool_]) -> int:
        return int(np.sum(self._stored, where=which, dtype=np.int64))

    def _sums(self, places: Places, count: int) -> NDArray[np.int64]:
        """Stored bytes by place, those with one."""
        sums = np.zeros(count + 1, np.int64)
        for start in range(0, len(places), _PIECE):
            part = slice(start, start + _PIECE)
            alone = places[part] != self._several
            weights = self._stored[part][alone]
            sums += np.bincount(places[part][alone], weights, count + 1).astype(np.int64)  # exact below 2**53
        return sums
