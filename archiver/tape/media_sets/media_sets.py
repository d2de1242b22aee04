"""The questions that are asked of media-set catalogs (spec tape.md 8.1).

The catalog logs are the facts. The database over them is brought up to date before a set is asked about: a log that has
grown is read from where it was left, a set with a log that is another one now is read anew. Where there can be no
database the logs are searched themselves: slower, and with the same answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from archiver.core.disk import read_at
from archiver.core.events import Listener
from archiver.core.locks import FileLock
from archiver.store.database import bulk
from archiver.tape.media_sets import records, search
from archiver.tape.media_sets.database import Tables, Unusable
from archiver.tape.media_sets.records import MemberRow
from archiver.tape.media_sets.search import Places
from archiver.tape.state.catalog_log import CatalogLogs, Stamp
from archiver.tape.state.inventory import MediaSet
from archiver.tape.state.place import TapePlace
from formats.tape.catalog import ChunkFile, Digests, MediaCatalog, SnapshotEntry, decode_catalog, encode_labels

_BATCH = 1 << 17  # chunks in a transaction
_DELETE = 1 << 14  # rows in a transaction
_WAIT_SECONDS = 600.0  # for another process that takes over logs


class SnapshotPlace(NamedTuple):
    """Where a snapshot is: the position of the medium in the set, and the file on it."""

    store: str
    path: str
    position: int
    file: int


class MediaSets:
    """The catalogs of all media sets of a place. Close it."""

    def __init__(self, place: TapePlace, listener: Listener, environment_variables: Mapping[str, str] = os.environ):
        self._logs = CatalogLogs(place)
        self._known: dict[bytes, MediaSet] = {}
        self._tables = Tables(place.path, listener, environment_variables)

    def close(self) -> None:
        self._tables.close()

    def __enter__(self) -> MediaSets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- bringing up to date -----------------------------------------------------------------------------------------

    def refresh(self, media_set: MediaSet) -> list[bytes]:
        """Take over what the logs of the set's members say now; to be called before the set is asked about, and after
        each commit to a log. The media of it that have no catalog of this set. Raises Damaged for a log that cannot be
        read."""
        self._known[media_set.uuid] = media_set
        missing = []
        members: dict[int, Stamp] = {}
        for position, medium in media_set.members.items():
            stamp = self._logs.stamp(medium.uuid)
            if stamp is None:
                missing.append(medium.uuid)
            else:
                members[position] = stamp
        try:
            with self._alone():
                missing += self._refresh(media_set, members)
        except Unusable:
            missing += self._without_database(media_set, members)
        return missing

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process takes over logs meanwhile."""
        try:
            lock = FileLock(os.path.join(self._tables.directory, "refresh.lck"), 0o600, wait_seconds=_WAIT_SECONDS)
        except OSError as error:
            raise Unusable from error
        with lock:
            yield

    def _without_database(self, media_set: MediaSet, members: Iterable[int]) -> list[bytes]:
        known = {position for position, _ in search.catalogs(self._logs, media_set)}
        return [media_set.members[position].uuid for position in members if position not in known]

    def _refresh(self, media_set: MediaSet, members: Mapping[int, Stamp]) -> list[bytes]:
        number = self._tables.ask(lambda txn: self._set_number(txn, media_set.uuid))
        rows = {} if number is None else self._tables.ask(lambda txn: self._rows(txn, number))
        is_other = any(
            not row.last_file or position not in members or media_set.members[position].uuid != row.medium
            for position, row in rows.items()
        )
        if number is None or is_other:
            return self._load(media_set, members)
        for position, stamp in sorted(members.items()):
            row = rows.get(position)
            if row is not None and row.stamp == stamp:
                continue
            if row is None or not self._add_tail(media_set, number, position, row):
                if row is not None:
                    return self._load(media_set, members)
                catalog = self._logs.load(media_set.members[position].uuid)
                if catalog is not None and (catalog.media_set, catalog.seq_nr) == (media_set.uuid, position):
                    self._add(number, position, catalog, catalog.end, stamp)
        have = self._tables.ask(lambda txn: self._rows(txn, number))
        return [media_set.members[position].uuid for position in sorted(members) if position not in have]

    def _load(self, media_set: MediaSet, members: Mapping[int, Stamp]) -> list[bytes]:
        """Read all logs of the set anew. Until that is done, what was known of it stays."""

        def begin(txn: Any) -> tuple[int | None, int]:
            meta = self._tables.table(records.META)
            left = txn.get(b"loading", db=meta)
            number = self._next(txn, b"sets")
            txn.put(b"loading", records.U32.pack(number), db=meta)
            return (None if left is None else int(records.U32.unpack(left)[0])), number

        def end(txn: Any) -> int | None:
            before = self._set_number(txn, media_set.uuid)
            txn.put(media_set.uuid, records.U32.pack(number), db=self._tables.table(records.SET))
            txn.delete(b"loading", db=self._tables.table(records.META))
            return before

        left, number = self._tables.change(begin)
        if left is not None:
            self._drop(left)
        missing = []
        for position, stamp in sorted(members.items()):
            medium = media_set.members[position].uuid
            catalog = self._logs.load(medium)
            if catalog is None or (catalog.media_set, catalog.seq_nr) != (media_set.uuid, position):
                missing.append(medium)
                continue
            self._add(number, position, catalog, catalog.end, stamp)
        before = self._tables.change(end)
        if before is not None:
            self._drop(before)
        return missing

    def _add_tail(self, media_set: MediaSet, number: int, position: int, row: MemberRow) -> bool:
        """Take over what was appended to a log since; False where it is not the same log with more behind it."""
        stamp = self._logs.stamp(row.medium)
        if stamp is None or stamp.inode != row.stamp.inode or stamp.size < row.end:
            return False
        try:
            fd = os.open(self._logs.path(row.medium), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            if read_at(fd, len(row.tail), row.end - len(row.tail)) != row.tail:
                return False
            data = read_at(fd, stamp.size - row.end, row.end)
        finally:
            os.close(fd)
        start = encode_labels(row.medium, media_set.uuid, position)
        try:
            catalog = decode_catalog(start + data)
        except ValueError:
            return False
        files = [entry.file for entry in catalog.archives] + [entry.file for entry in catalog.snapshots]
        if min(files, default=row.last_file + 1) <= row.last_file:
            return False
        self._add(number, position, catalog, row.end + catalog.end - len(start), stamp, row.last_file)
        return True

    def _add(
        self, number: int, position: int, catalog: MediaCatalog, end: int, stamp: Stamp, last_file: int = 0
    ) -> None:
        if not last_file:  # what an interruption leaves is seen
            self._put_member(number, position, MemberRow(catalog.media, stamp, 0, 0, bytes(records.TAIL)))
        names = {entry.store for entry in catalog.archives} | {entry.store for entry in catalog.snapshots}
        stores = {name: self._tables.change(partial(self._store_number, name=name)) for name in names}
        for store, batch in _batches(catalog.archives):
            keys, values = _chunk_rows(number, stores[store], position, batch)
            self._tables.change(partial(self._put_chunks, keys=keys, values=values))

        def finish(txn: Any) -> None:
            snapshots, listed = self._tables.table(records.SNAPSHOT), self._tables.table(records.LIST)
            for entry in catalog.snapshots:
                store = stores[entry.store]
                key = records.snapshot_key(number, store, entry.path)
                txn.put(key, records.PLACE.pack(position, entry.file), db=snapshots)
                value = records.U32.pack(store) + entry.path.encode()
                txn.put(records.LIST_KEY.pack(number, position, entry.file), value, db=listed)

        self._tables.change(finish)
        tail = self._tail(catalog.media, end)
        self._put_member(
            number, position, MemberRow(catalog.media, stamp, end, max(catalog.last_file, last_file), tail)
        )

    def _put_member(self, number: int, position: int, row: MemberRow) -> None:
        key, table = records.MEMBER_KEY.pack(number, position), self._tables.table(records.MEMBER)
        self._tables.change(lambda txn: txn.put(key, row.encode(), db=table))

    def _tail(self, medium: bytes, end: int) -> bytes:
        fd = os.open(self._logs.path(medium), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return read_at(fd, records.TAIL, end - records.TAIL)
        finally:
            os.close(fd)

    def _put_chunks(self, txn: Any, keys: list[bytes], values: list[bytes]) -> None:
        txn.cursor(db=self._tables.table(records.CHUNK)).putmulti(zip(keys, values, strict=True))

    def _drop(self, number: int) -> None:
        """Remove all rows of a set that is known by another number now."""
        prefix = records.NUMBER.pack(number)
        for name in (records.MEMBER, records.CHUNK, records.SNAPSHOT, records.LIST):
            while self._tables.change(partial(_delete_some, table=self._tables.table(name), prefix=prefix)):
                pass

    # -- questions ---------------------------------------------------------------------------------------------------

    def find_chunks(self, media_set: bytes, store: str, digests: Digests) -> Places:
        """Where each of the (n, 32) ``digests`` is: ``position`` of the medium in the set and ``file`` on it, both
        ``records.NOWHERE`` where the set does not hold it. The set was brought up to date with ``refresh``."""
        if not len(digests):
            return search.nowhere(0)
        try:
            return self._tables.ask(lambda txn: self._places(txn, media_set, store, digests))
        except Unusable:
            return search.find_chunks(search.catalogs(self._logs, self._known[media_set]), store, digests)

    def _places(self, txn: Any, media_set: bytes, store: str, digests: Digests) -> Places:
        number = self._set_number(txn, media_set)
        name = txn.get(store.encode(), db=self._tables.table(records.STORE))
        if number is None or name is None:
            return search.nowhere(len(digests))
        order = np.argsort(np.ascontiguousarray(digests[:, :8]).view(">u8").ravel(), kind="stable")
        keys = _keys(number, records.U32.unpack(name)[0], digests[order])
        missing = records.PLACE.pack(records.NOWHERE, records.NOWHERE)
        found = bulk.fetch(txn, self._tables.table(records.CHUNK), keys, records.PLACES, missing)
        places = np.empty(len(digests), records.PLACES)
        places[order] = found
        return places

    def find_snapshot(self, media_set: bytes, store: str, path: str) -> SnapshotPlace | None:
        """Where a snapshot is, the newest place; None when the set does not hold it."""

        def look(txn: Any) -> SnapshotPlace | None:
            number = self._set_number(txn, media_set)
            name = txn.get(store.encode(), db=self._tables.table(records.STORE))
            if number is None or name is None:
                return None
            key = records.snapshot_key(number, records.U32.unpack(name)[0], path)
            value = txn.get(key, db=self._tables.table(records.SNAPSHOT))
            return None if value is None else SnapshotPlace(store, path, *records.PLACE.unpack(value))

        try:
            return self._tables.ask(look)
        except Unusable:
            found = [each for each in self.snapshots(media_set) if (each.store, each.path) == (store, path)]
            return found[-1] if found else None

    def snapshots(self, media_set: bytes) -> list[SnapshotPlace]:
        """All snapshots of a set, in the order in which they were written."""

        def look(txn: Any) -> list[SnapshotPlace]:
            number = self._set_number(txn, media_set)
            if number is None:
                return []
            names = {
                records.U32.unpack(value)[0]: key.decode() for key, value in txn.cursor(db=self._tables.table(b"store"))
            }
            found = []
            for key, value in _scan(txn, self._tables.table(records.LIST), records.NUMBER.pack(number)):
                _, position, file = records.LIST_KEY.unpack(key)
                store = names[records.U32.unpack_from(value)[0]]
                found.append(SnapshotPlace(store, value[records.U32.size :].decode(), position, file))
            return found

        try:
            return self._tables.ask(look)
        except Unusable:
            known = search.catalogs(self._logs, self._known[media_set])
            return [_place(position, entry) for position, entry in search.snapshots(known)]

    # -- records -----------------------------------------------------------------------------------------------------

    def _set_number(self, txn: Any, media_set: bytes) -> int | None:
        value = txn.get(media_set, db=self._tables.table(records.SET))
        return None if value is None else int(records.U32.unpack(value)[0])

    def _rows(self, txn: Any, number: int) -> dict[int, MemberRow]:
        prefix = records.NUMBER.pack(number)
        return {
            records.MEMBER_KEY.unpack(key)[1]: MemberRow.decode(value)
            for key, value in _scan(txn, self._tables.table(records.MEMBER), prefix)
        }

    def _next(self, txn: Any, name: bytes) -> int:
        meta = self._tables.table(records.META)
        value = txn.get(name, db=meta)
        number = 1 if value is None else int(records.U32.unpack(value)[0])
        txn.put(name, records.U32.pack(number + 1), db=meta)
        return number

    def _store_number(self, txn: Any, name: str) -> int:
        table = self._tables.table(records.STORE)
        value = txn.get(name.encode(), db=table)
        if value is not None:
            return int(records.U32.unpack(value)[0])
        number = self._next(txn, b"stores")
        txn.put(name.encode(), records.U32.pack(number), db=table)
        return number


def _place(position: int, entry: SnapshotEntry) -> SnapshotPlace:
    return SnapshotPlace(entry.store, entry.path, position, entry.file)


def _batches(archives: list[ChunkFile]) -> Iterator[tuple[str, list[ChunkFile]]]:
    """Parts of archives of one store, some thousand chunks each."""
    batch: list[ChunkFile] = []
    count = 0
    for archive in archives:
        for start in range(0, len(archive.digests), _BATCH):
            part = archive._replace(digests=archive.digests[start : start + _BATCH])
            if batch and (part.store != batch[0].store or count + len(part.digests) > _BATCH):
                yield batch[0].store, batch
                batch, count = [], 0
            batch.append(part)
            count += len(part.digests)
    if batch:
        yield batch[0].store, batch


def _chunk_rows(number: int, store: int, position: int, batch: list[ChunkFile]) -> tuple[list[bytes], list[bytes]]:
    """Keys and values, sorted so far that pages are met once; of a digest that is there twice the later one last."""
    digests = np.concatenate([archive.digests for archive in batch])
    values = np.empty(len(digests), records.PLACES)
    values["position"] = position
    values["file"] = np.repeat([archive.file for archive in batch], [len(archive.digests) for archive in batch])
    order = np.argsort(np.ascontiguousarray(digests[:, :8]).view(">u8").ravel(), kind="stable")
    keys = _keys(number, store, digests[order])
    return keys.tolist(), values[order].view("V8").tolist()


def _keys(number: int, store: int, digests: Digests) -> np.ndarray[Any, np.dtype[np.void]]:
    rows = np.empty((len(digests), records.CHUNK_KEYS.itemsize), np.uint8)
    rows[:, :8] = np.frombuffer(records.STORE_KEY.pack(number, store), np.uint8)
    rows[:, 8:] = digests
    return rows.view(records.CHUNK_KEYS).ravel()


def _scan(txn: Any, table: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    cursor = txn.cursor(db=table)
    if cursor.set_range(prefix):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield key, value


def _delete_some(txn: Any, table: Any, prefix: bytes) -> bool:
    """Whether there may be more."""
    cursor = txn.cursor(db=table)
    for _ in range(_DELETE):
        if not cursor.set_range(prefix) or not cursor.key().startswith(prefix):
            return False
        cursor.delete()
    return True
