"""What refers to chunks: by numbers as the database has them, by digests as the index files do.

A snapshot's references are taken from the database only when its manifest is the one that was recorded, and the index
files in its directory are those that this manifest names; all else is read from the files. An index file that cannot
be read, or is not what its own checksum says, ends the collection: nobody knows which chunks it needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from archiver.core.disk import explain, explained
from archiver.errors import ArchiverError, Damaged, NotFound
from archiver.store import snapshots
from archiver.store.database import records
from archiver.store.database import unused as queries
from archiver.store.database.bulk import Numbers
from archiver.store.database.database import Database
from archiver.store.database.unused import Counts, Unused
from archiver.store.digests import Prefixes, distinct_parts, prefixes_of
from archiver.store.gc.tree import Directory, directories
from archiver.store.indexes import is_index, load_index
from archiver.store.layout import Layout
from archiver.store.sessions import SNAPSHOT
from formats.errors import FormatError
from formats.index import HEADER_SIZE

_ENTRY = {".didx": (40, 8), ".fidx": (32, 0)}  # length of an entry, offset of the digest in it
_AT_ONCE = 1 << 18  # entries of an unfinished index
_BUCKETS = 256
_REMOVED_WITHIN = 2.0  # seconds that the removal of a snapshot's directory may take
_POLL = 0.05


class DatabaseFailed(Exception):
    """The database cannot be used, or contradicts itself: the files tell."""


class Prefixed:
    """A set of digests by their first 8 bytes, 8 bytes each. Two that begin alike are one: then a chunk is kept that
    could go, never the other way round."""

    def __init__(self) -> None:
        self._buckets: list[Prefixes] = [np.zeros(0, np.uint64)] * _BUCKETS

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def add(self, digests: NDArray[np.uint8]) -> None:
        """``digests``: (n, 32)."""
        found = np.unique(prefixes_of(digests))
        borders = np.searchsorted(found >> np.uint64(56), np.arange(_BUCKETS + 1))
        for number in np.flatnonzero(np.diff(borders)).tolist():
            part, known = found[borders[number] : borders[number + 1]], self._buckets[number]
            places = np.searchsorted(known, part)
            inside = places < len(known)
            inside[inside] = known[places[inside]] == part[inside]
            if not inside.all():
                self._buckets[number] = np.insert(known, places[~inside], part[~inside])

    def of_shard(self, shard: int) -> Prefixes:
        return shard_part(self._buckets[shard >> 8], shard)


def shard_part(prefixes: Prefixes, shard: int) -> Prefixes:
    """Those of one shard, of a sorted array."""
    first = np.searchsorted(prefixes, np.uint64(shard << 48))
    last = np.searchsorted(prefixes, np.uint64((shard << 48) + (1 << 48) - 1), "right")
    return prefixes[first:last]


class References:
    """Fill it with ``mark``; then ask ``unused`` (with a database), ``in_shard`` and the length."""

    def __init__(
        self,
        layout: Layout,
        database: Database | None,
        told: Callable[[int], None],
        heard: Callable[[Numbers], None] = lambda numbers: None,
    ) -> None:
        """``told``: called with the number of index files now and then; ``heard``: with chunk numbers as they are
        marked. Raises DatabaseFailed."""
        self._layout = layout
        self.database = database
        self._told = told
        self._heard = heard
        self.index_files = 0
        self.index_bytes = 0  # of the streams
        self.leftovers: list[str] = []
        self.digests = Prefixed()  # of those that have no number
        self._recorded = np.zeros(0, np.uint64)  # prefixes of all others
        self.before = Counts(0, 0)
        if database is not None:
            counts = queries.counts(database)
            if counts is None:
                raise DatabaseFailed
            self.before = counts
        self.marks = np.zeros(self.before.chunks, np.bool_)

    def mark(self, sessions: list[str]) -> None:
        """All references there are. ``sessions``: directories of sessions that are building a snapshot, or may go on.

        Sessions first: what they publish meanwhile is in the tree then. And the tree until nothing new is in it: what
        was moved to a place that had been looked at is found there.
        """
        for session in sessions:
            self.mark_session(session)
        seen: set[tuple[str, tuple[str, ...], snapshots.Stamp | None]] = set()
        is_new = True
        while is_new:
            is_new = False
            self.leftovers.clear()
            for directory in directories(self._layout):
                stamp = snapshots.manifest_stamp(self._layout, directory.ref) if directory.ref is not None else None
                self.leftovers += [os.path.join(directory.path, name) for name in directory.leftovers]
                key = (directory.path, directory.indexes, stamp)
                if key not in seen:
                    is_new = True
                    if self.mark_directory(directory, stamp):
                        seen.add(key)

    def mark_directory(self, directory: Directory, stamp: snapshots.Stamp | None) -> bool:
        """``stamp``: of the manifest when the directory was listed. False when it changed meanwhile: it is to be looked
        at once more. Raises UnreadableIndex, DatabaseFailed."""
        recorded = None
        if self.database is not None and stamp is not None:
            recorded = self.database.recorded(directory.path)
            if not self.database.usable:
                raise DatabaseFailed
        if recorded is None or recorded[0].stamp != stamp or directory.ref is None:
            return self._read_all(directory)
        row, numbers = recorded
        try:
            manifest = snapshots.decode_manifest(directory.ref, row.manifest)
        except Damaged:
            return self._read_all(directory)
        files = [file for file in manifest.files if is_index(file.filename)]
        if len(files) != len(numbers) or {file.filename for file in files} != set(directory.indexes):
            return self._read_all(directory)
        for file, references in zip(files, numbers, strict=True):
            self._mark_numbers(references)
            self._count(file.size)
        return True

    def _count(self, size: int) -> None:
        self.index_files += 1
        self.index_bytes += size
        self._told(self.index_files)

    def _mark_numbers(self, numbers: Numbers) -> None:
        """Chunks with later numbers than there were at the beginning are never taken for unused ones."""
        is_new = len(numbers) > 0 and int(numbers.max()) >= len(self.marks)
        known = numbers[numbers < len(self.marks)] if is_new else numbers
        self.marks[known] = True
        self._heard(known)

    def _read_all(self, directory: Directory) -> bool:
        if not self._is_complete(directory):
            return False
        for name in directory.indexes:
            path = os.path.join(self._layout.base, directory.path, name)
            try:
                index = load_index(path)
            except FileNotFoundError:
                return False  # removed, or moved: then it is found again
            except OSError as error:
                raise UnreadableIndex(path, explain(error, "read", path)) from error
            except FormatError as error:
                raise UnreadableIndex(path, error) from error
            if index.csum() != index.stored_csum:
                raise UnreadableIndex(path, "its checksum is another one")
            self._mark_digests(index.digests)
            self._count(index.size)
        return True

    def _is_complete(self, directory: Directory) -> bool:
        """False when the snapshot is being removed just now. An index file that its manifest names is there, else it
        may come back some day and need its chunks: Damaged."""
        if directory.ref is None:
            return True
        deadline = time.monotonic() + _REMOVED_WITHIN
        while True:
            try:
                text = snapshots.read_manifest_json(self._layout, directory.ref)
                manifest = snapshots.decode_manifest(directory.ref, text)
            except NotFound:
                return os.path.lexists(self._layout.snapshot(directory.ref))  # unfinished, or gone
            except Damaged:
                return True  # what is there counts
            names = {file.filename for file in manifest.files if is_index(file.filename)} - set(directory.indexes)
            paths = [os.path.join(self._layout.snapshot(directory.ref), name) for name in sorted(names)]
            if not paths:
                return True
            if all(map(os.path.lexists, paths)):
                return False  # listed while it was written
            if time.monotonic() > deadline:
                raise UnreadableIndex(next(path for path in paths if not os.path.lexists(path)), "it is missing")
            time.sleep(_POLL)

    def mark_session(self, session: str) -> None:
        """Index files under construction: whole entries count, the header is not written yet."""
        path = os.path.join(session, SNAPSHOT)
        try:
            with explained("list", path):
                found = sorted(os.listdir(path))
        except ArchiverError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                return
            raise
        for name in found:
            length, offset = _ENTRY.get(name[-5:], (0, 0))
            if not length:
                continue
            try:
                with snapshots.open_regular(os.path.join(path, name)) as file:
                    file.seek(HEADER_SIZE)
                    while data := file.read(_AT_ONCE * length):
                        count = len(data) // length
                        entries = np.frombuffer(data, np.uint8, count * length).reshape(count, length)
                        if count:
                            self._mark_digests(entries[:, offset:])
            except FileNotFoundError:
                continue  # published
            except (ArchiverError, OSError) as error:
                raise UnreadableIndex(os.path.join(path, name), error) from error

    def _mark_digests(self, digests: NDArray[np.uint8]) -> None:
        if self.database is None:
            self.digests.add(digests)
            return
        for part in distinct_parts(digests):
            numbers = queries.numbers_of(self.database, part)
            if numbers is None:
                raise DatabaseFailed
            without = numbers == records.NO_NUMBER
            self._mark_numbers(numbers[~without])
            if without.any():
                self.digests.add(part[without])

    def unused(self, *, with_all: bool) -> Unused:
        """What the database knows and nothing refers to; ``with_all``: ``in_shard`` will be asked. DatabaseFailed."""
        assert self.database is not None
        found = queries.unused(self.database, self.marks, with_prefixes=with_all)
        if found is None:
            raise DatabaseFailed
        self._recorded = found.prefixes
        return found

    def __len__(self) -> int:
        """Digests that something refers to, after ``unused(with_all=True)`` where there is a database."""
        return len(self._recorded) + len(self.digests)

    def in_shard(self, shard: int) -> set[int]:
        """Prefixes of the digests in a shard that something refers to."""
        parts = (shard_part(self._recorded, shard), self.digests.of_shard(shard))
        return set(np.concatenate(parts).tolist())


class UnreadableIndex(Damaged):
    """Nobody knows which chunks are needed by what is at ``path``."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(
            f"nothing is removed: {path} cannot be read, so nobody knows which chunks it needs ({reason})",
            hint="bring the file back, or remove its snapshot if that is of no use any more",
        )
        self.path = path
