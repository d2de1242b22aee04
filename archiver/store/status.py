"""How full a store is, and how much its groups share."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from archiver.errors import ArchiverError
from archiver.store.database.database import Database
from archiver.store.digests import distinct_digests
from archiver.store.indexes import Index, is_index, open_index
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.manifest import Manifest
from formats.naming import format_time


@dataclass(slots=True)
class GroupStatus:
    """``logical_bytes``: streams of all its snapshots; ``stored_bytes``: chunk files they use, each counted once."""

    group: str
    snapshots: int
    logical_bytes: int
    stored_bytes: int
    last: str

    @property
    def factor(self) -> float:
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else 1.0


@dataclass(slots=True)
class StoreStatus:
    """Bytes; ``total``, ``used``, ``available`` are the file system's."""

    path: str
    name: str
    total: int
    used: int
    available: int
    chunks: int = 0
    stored_bytes: int = 0
    logical_bytes: int = 0
    snapshots: int = 0
    groups: list[GroupStatus] = field(default_factory=list)

    @property
    def factor(self) -> float:
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else 1.0

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"schema": 1, **asdict(self), "deduplication_factor": round(self.factor, 3)}
        for item, group in zip(document["groups"], self.groups, strict=True):
            item["deduplication_factor"] = round(group.factor, 3)
        document["items"] = document.pop("groups")
        return document


def store_status(store: Store) -> StoreStatus:
    """Counted from the database where it knows every snapshot, from the index files otherwise."""
    if store.database is not None:
        try:
            return _counted(store, _NumberCounter(store, store.database))
        except _NotRecorded:
            pass
    return _counted(store, _DigestCounter(store))


def _counted(store: Store, counter: _NumberCounter | _DigestCounter) -> StoreStatus:
    space = os.statvfs(store.layout.base)
    name = store.identity.name if store.identity is not None else os.path.basename(store.layout.base)
    result = StoreStatus(
        store.layout.base,
        name,
        space.f_blocks * space.f_frsize,
        (space.f_blocks - space.f_bfree) * space.f_frsize,
        space.f_bavail * space.f_frsize,
    )
    for namespace in store.namespaces():
        for group in store.groups(namespace):
            _count_group(store, group, counter, result)
    result.chunks, result.stored_bytes = counter.total()
    return result


def _count_group(store: Store, group: GroupRef, counter: _NumberCounter | _DigestCounter, result: StoreStatus) -> None:
    logical = count = 0
    last = ""
    counter.start()
    for when in store.times(group):
        ref = SnapshotRef(group, when)
        try:
            manifest = store.manifest(ref)
            counter.add(ref, manifest)
        except ArchiverError:
            continue  # unfinished or damaged: verify tells about it
        count += 1
        last = format_time(when)
        logical += sum(file.size for file in manifest.files)
    result.groups.append(GroupStatus(str(group), count, logical, counter.group_bytes(), last))
    result.snapshots += count
    result.logical_bytes += logical


def _indexes(store: Store, ref: SnapshotRef, manifest: Manifest) -> list[Index]:
    return [open_index(store.layout, ref, file) for file in manifest.files if is_index(file.filename)]


class _NotRecorded(Exception):
    """The database does not know a sound snapshot: it is stale, or was given up meanwhile."""


class _NumberCounter:
    """Sets of chunk numbers from the database."""

    def __init__(self, store: Store, database: Database) -> None:
        self._store = store
        self._database = database
        _, self._stored = database.sizes()
        self._all = np.zeros(len(self._stored), np.bool_)
        self._group = self._all.copy()

    def start(self) -> None:
        self._group[:] = False

    def add(self, ref: SnapshotRef, manifest: Manifest) -> None:
        """Raises _NotRecorded, or ArchiverError for a snapshot that is damaged."""
        references = self._database.references(ref.path)
        if references is None:
            _indexes(self._store, ref, manifest)
            raise _NotRecorded
        for numbers in references:
            if len(numbers) and int(numbers.max()) >= len(self._stored):
                raise _NotRecorded  # later than the sizes
            self._group[numbers] = True

    def group_bytes(self) -> int:
        self._all |= self._group
        return int(self._stored[self._group].sum(dtype=np.int64))

    def total(self) -> tuple[int, int]:
        return int(self._all.sum()), int(self._stored[self._all].sum(dtype=np.int64))


class _DigestCounter:
    """The same from the index files: three arrays, in the order of the digests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._digests = np.empty(0, "V32")
        self._stored = np.empty(0, np.int64)
        self._group = np.empty(0, np.bool_)

    def start(self) -> None:
        self._group[:] = False

    def add(self, ref: SnapshotRef, manifest: Manifest) -> None:
        for index in _indexes(self._store, ref, manifest):
            digests = distinct_digests(index.digests).view("V32").ravel()
            places = np.searchsorted(self._digests, digests)
            new = places == len(self._digests)
            new[~new] = self._digests[places[~new]] != digests[~new]
            self._group[places[~new]] = True
            places, digests = places[new], digests[new]
            stored = np.fromiter((self._length(digest.tobytes()) for digest in digests), np.int64, len(digests))
            self._digests = np.insert(self._digests, places, digests)
            self._stored = np.insert(self._stored, places, stored)
            self._group = np.insert(self._group, places, True)

    def _length(self, digest: bytes) -> int:
        status = self._store.chunks.seen(digest)
        return status.st_size if status is not None else 0

    def group_bytes(self) -> int:
        return int(self._stored[self._group].sum())

    def total(self) -> tuple[int, int]:
        return len(self._digests), int(self._stored.sum())
