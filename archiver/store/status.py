"""How full a store is, and how much its groups share."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.errors import ArchiverError
from archiver.store.database.database import unique_digests
from archiver.store.indexes import is_index, open_index
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.naming import format_time

Digests = NDArray[np.uint8]


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
    """Counted from the database where there is one, from the index files otherwise."""
    space = os.statvfs(store.layout.base)
    name = store.identity.name if store.identity is not None else os.path.basename(store.layout.base)
    result = StoreStatus(
        store.layout.base,
        name,
        space.f_blocks * space.f_frsize,
        (space.f_blocks - space.f_bfree) * space.f_frsize,
        space.f_bavail * space.f_frsize,
    )
    counter = _NumberCounter(store) if store.database is not None else _DigestCounter(store)
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
            counter.add(ref)
        except ArchiverError:
            continue  # unfinished or damaged: verify tells about it
        count += 1
        last = format_time(when)
        logical += sum(file.size for file in manifest.files)
    result.groups.append(GroupStatus(str(group), count, logical, counter.group_bytes(), last))
    result.snapshots += count
    result.logical_bytes += logical


class _NumberCounter:
    """Sets of chunk numbers from the database."""

    def __init__(self, store: Store) -> None:
        assert store.database is not None
        self._database = store.database
        _, self._stored = self._database.sizes()
        self._all = np.zeros(len(self._stored), np.bool_)
        self._group = self._all.copy()

    def start(self) -> None:
        self._group[:] = False

    def add(self, ref: SnapshotRef) -> None:
        for numbers in self._database.references(ref.path) or ():
            self._group[numbers] = True

    def group_bytes(self) -> int:
        self._all |= self._group
        return int(self._stored[self._group].sum(dtype=np.int64))

    def total(self) -> tuple[int, int]:
        return int(self._all.sum()), int(self._stored[self._all].sum(dtype=np.int64))


class _DigestCounter:
    """The same from the index files."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lengths: dict[bytes, int] = {}
        self._group: set[bytes] = set()

    def start(self) -> None:
        self._group = set()

    def add(self, ref: SnapshotRef) -> None:
        for file in self._store.manifest(ref).files:
            if is_index(file.filename):
                digests, _ = unique_digests(open_index(self._store.layout, ref, file).digests)
                self._group |= {row.tobytes() for row in digests}

    def group_bytes(self) -> int:
        for digest in self._group - self._lengths.keys():
            status = self._store.chunks.seen(digest)
            self._lengths[digest] = status.st_size if status is not None else 0
        return sum(self._lengths[digest] for digest in self._group)

    def total(self) -> tuple[int, int]:
        return len(self._lengths), sum(self._lengths.values())
