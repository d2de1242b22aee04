"""The questions a store asks its index, and what is told to it.

Nothing here may fail a backup or a restore: when the LMDB file is damaged, full or not writable, the database says so
once, and from then on answers "not known"; the next process builds it anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from archiver.core.disk import is_full
from archiver.core.events import Listener, Notice
from archiver.errors import NoSpace
from archiver.store.database import environment, records
from archiver.store.database.environment import DatabaseDamaged, Environment
from archiver.store.database.records import ChunkRow, SnapshotRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from archiver.store.database.bulk import Numbers

T = TypeVar("T")
MakeRoom = Callable[[str], bool]  # told the directory when its disk is full; False when that is how it is


class Database:
    """The index over the store with identity ``store``. Open with :func:`open_database`."""

    def __init__(self, env: Environment, store: str, listener: Listener, make_room: MakeRoom) -> None:
        self._env = env
        self._listener = listener
        self._make_room = make_room
        self.usable = True
        if env.recreated is not None:
            self._tell(f"the database was not usable ({env.recreated}); it is built again from the files")
            env.recreated = None
        if not self._fits(store):
            self.reset(store)

    # -- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        environment.release(self._env)
        self.usable = False

    @property
    def directory(self) -> str:
        return self._env.directory

    def _tell(self, text: str) -> None:
        self._listener(Notice(text, "warning"))

    def _give_up(self, reason: str) -> None:
        if self.usable:
            self.usable = False
            self._tell(f"the database in {self.directory} cannot be used ({reason}); going on without it")

    def _fits(self, store: str) -> bool:
        """Schema and store are the right ones; False for a new file too."""

        def look(txn: Any) -> bool:
            meta = self._env.table(records.META)
            schema = txn.get(b"schema", db=meta)
            owner = txn.get(b"store", db=meta)
            return bool(schema == records.U32.pack(records.SCHEMA) and owner == _raw(store))

        try:
            with self._env.read() as txn:
                return look(txn)
        except (DatabaseDamaged, NoSpace) as error:
            self._give_up(str(error))
            return True

    def _reset(self, txn: Any, store: str) -> None:
        meta = self._env.table(records.META)
        used = {name: txn.get(name, db=meta) for name in (b"chunks", b"snapshots")}
        for name in records.TABLES:
            txn.drop(self._env.table(name), delete=False)
        for name, value in used.items():
            if value is not None:  # a running backup remembers chunks by numbers: none may come to mean another
                txn.put(name, value, db=meta)
        txn.put(b"schema", records.U32.pack(records.SCHEMA), db=meta)
        txn.put(b"store", _raw(store), db=meta)

    def reset(self, store: str) -> None:
        """Forget everything."""
        self._change(lambda txn: self._reset(txn, store))

    # -- for those who keep tables of their own ----------------------------------------------------------------------

    def table(self, name: bytes) -> Any:
        """The handle of a table, for transactions."""
        return self._env.table(name)

    def change(self, work: Callable[[Any], T]) -> T | None:
        """Run ``work`` in a write transaction, again when the map was too small; None when that cannot be done."""
        return self._change(work)

    def ask(self, work: Callable[[Any], T]) -> T | None:
        """Run ``work`` in a read transaction; None when the database cannot be read."""
        return self._ask(work, None)

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """A value; None when there is none, or the database cannot be read."""

        def look(txn: Any) -> bytes | None:
            value: bytes | None = txn.get(key, db=self._env.table(table))
            return value

        return self._ask(look, None)

    def keys(self, table: bytes, prefix: bytes) -> list[bytes]:
        """All keys of a table that begin with ``prefix``, in order."""

        def look(txn: Any) -> list[bytes]:
            cursor = txn.cursor(db=self._env.table(table))
            found: list[bytes] = []
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix):
                        break
                    found.append(key)
            return found

        return self._ask(look, [])

    def checked(self, decode: Callable[[], T]) -> T | None:
        """What ``decode`` makes of a value; when that is damaged, None, and no more use of this database."""
        try:
            return decode()
        except records.DAMAGED as error:
            self._condemn(error)
            return None

    def _change(self, work: Callable[[Any], T]) -> T | None:
        """Run a write transaction; None when the database cannot be written."""
        if not self.usable:
            return None
        try:
            try:
                return self._env.write(work)
            except NoSpace:
                if not self._make_room(self.directory):
                    raise
                return self._env.write(work)
        except (DatabaseDamaged, NoSpace) as error:
            self._give_up(str(error))
        except records.DAMAGED as error:
            self._condemn(error)
        return None

    def _ask(self, work: Callable[[Any], T], unknown: T) -> T:
        """Run a read transaction; ``unknown`` when the database cannot be read."""
        if not self.usable:
            return unknown
        try:
            try:
                with self._env.read() as txn:
                    return work(txn)
            except NoSpace:
                if not self._make_room(self.directory):
                    raise
                with self._env.read() as txn:
                    return work(txn)
        except (DatabaseDamaged, NoSpace) as error:
            self._give_up(str(error))
        except records.DAMAGED as error:
            self._condemn(error)
        return unknown

    def _condemn(self, error: Exception) -> None:
        """A record is not what was written; the next process starts with a new file."""
        self._env.condemn()
        self._give_up(f"a record in it is damaged: {error}")

    # -- chunks ------------------------------------------------------------------------------------------------------

    def lookup(self, digest: bytes) -> tuple[int, int] | None:
        """(chunk number, stored length in bytes) of a chunk that is known to be durable in the store, else None."""

        def look(txn: Any) -> tuple[int, int] | None:
            value = txn.get(digest, db=self._env.table(records.DIGEST))
            if value is None or len(value) != records.DIGEST_VALUE.size:
                return None
            number, stored = records.DIGEST_VALUE.unpack(value)
            return (number, stored) if stored else None

        return self._ask(look, None)

    def find_chunks(self, digests: Sequence[bytes]) -> list[tuple[int, ChunkRow] | None]:
        """Chunk number and row of each chunk that is known to be durable in the store, else None."""

        def find(txn: Any, digest: bytes) -> tuple[int, ChunkRow] | None:
            value = txn.get(digest, db=self._env.table(records.DIGEST))
            if value is None or len(value) != records.DIGEST_VALUE.size:
                return None
            number, stored = records.DIGEST_VALUE.unpack(value)
            row = self._chunk(txn, number) if stored else None
            return None if row is None else (number, row)

        return self._ask(lambda txn: [find(txn, digest) for digest in digests], [None] * len(digests))

    def chunk(self, number: int) -> ChunkRow | None:
        def look(txn: Any) -> ChunkRow | None:
            return self._chunk(txn, number)

        return self._ask(look, None)

    def _chunk(self, txn: Any, number: int) -> ChunkRow | None:
        value = txn.get(records.U32_KEY.pack(number), db=self._env.table(records.CHUNK))
        if value is None or len(value) != records.CHUNK_VALUE.size:
            return None
        digest, blake3, size, verified = records.CHUNK_VALUE.unpack(value)
        entry = txn.get(digest, db=self._env.table(records.DIGEST))
        stored = records.DIGEST_VALUE.unpack(entry)[1] if entry is not None else 0
        return ChunkRow(digest, size, stored, blake3, verified)

    def put_chunks(self, rows: Iterable[ChunkRow]) -> None:
        """Record chunks that are durable in the store now; known ones are replaced but keep their numbers."""
        self._put_chunks(sorted(rows), replace=True)

    def add_chunks(self, rows: Iterable[ChunkRow]) -> None:
        """The same, but what is known already of a chunk stays."""
        self._put_chunks(sorted(rows), replace=False)

    def _put_chunks(self, rows: Sequence[ChunkRow], *, replace: bool) -> None:
        if rows:
            self._change(lambda txn: self._write_chunks(txn, rows, replace))

    def _write_chunks(self, txn: Any, rows: Sequence[ChunkRow], replace: bool) -> None:
        digests, chunks = self._env.table(records.DIGEST), self._env.table(records.CHUNK)
        following = self._counter(txn, b"chunks")
        for row in rows:
            known = txn.get(row.digest, db=digests)
            if known is not None and not replace:
                continue
            number = following if known is None else records.DIGEST_VALUE.unpack(known)[0]
            following += known is None
            txn.put(row.digest, records.DIGEST_VALUE.pack(number, row.stored), db=digests)
            value = records.CHUNK_VALUE.pack(row.digest, row.blake3, row.size, row.verified)
            txn.put(records.U32_KEY.pack(number), value, db=chunks)
        txn.put(b"chunks", records.U32.pack(following), db=self._env.table(records.META))

    def _counter(self, txn: Any, name: bytes) -> int:
        value = txn.get(name, db=self._env.table(records.META))
        return records.U32.unpack(value)[0] if value is not None else 0

    def unknown(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """For each row of an (n, 32) array of digests, best sorted, whether it has no chunk number yet."""
        import numpy as np

        def look(txn: Any) -> NDArray[np.bool_]:
            without: NDArray[np.bool_] = self._numbers_of(txn, digests) == records.NO_NUMBER
            return without

        return self._ask(look, np.ones(len(digests), np.bool_))

    def _numbers_of(self, txn: Any, digests: NDArray[np.uint8]) -> Numbers:
        """The chunk number of each row, NO_NUMBER where it has none."""
        import numpy as np

        from archiver.store.database import bulk

        keys = np.ascontiguousarray(digests).view(bulk.DIGEST_KEYS).ravel()
        missing = records.DIGEST_VALUE.pack(records.NO_NUMBER, 0)
        found = bulk.fetch(txn, self._env.table(records.DIGEST), keys, bulk.DIGEST_VALUES, missing)
        numbers: Numbers = found["number"]
        return numbers

    def sizes(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """(plain size, stored length) of every chunk, indexed by chunk number; zeros where a number is free."""
        import numpy as np

        from archiver.store.database import bulk

        def look(txn: Any) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
            count = self._counter(txn, b"chunks")
            plain, stored = np.zeros(count, np.uint32), np.zeros(count, np.uint32)
            for numbers, rows in bulk.scan(txn, self._env.table(records.CHUNK), bulk.U32_KEYS, bulk.CHUNK_VALUES):
                plain[numbers] = rows["size"]
            table = self._env.table(records.DIGEST)
            for entries in bulk.values(txn, table, bulk.DIGEST_VALUES):
                stored[entries["number"]] = entries["stored"]
            return plain, stored

        empty = np.zeros(0, np.uint32)
        return self._ask(look, (empty, empty))

    def stored(self, chosen: range) -> NDArray[np.uint32]:
        """Stored length of every chunk with a number of ``chosen``; zeros where a number is free."""
        import numpy as np

        from archiver.store.database import bulk

        def look(txn: Any) -> NDArray[np.uint32]:
            found = np.zeros(len(chosen), np.uint32)
            table = self._env.table(records.DIGEST)
            for entries in bulk.values(txn, table, bulk.DIGEST_VALUES):
                mine = entries[(entries["number"] >= chosen.start) & (entries["number"] < chosen.stop)]
                found[mine["number"] - np.uint32(chosen.start)] = mine["stored"]
            return found

        return self._ask(look, np.zeros(len(chosen), np.uint32))

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshot(self, path: str) -> SnapshotRow | None:
        """The record of the snapshot at ``path`` (relative to the store)."""

        def look(txn: Any) -> SnapshotRow | None:
            number = self._snapshot_number(txn, path)
            return None if number is None else self._row(txn, number)

        return self._ask(look, None)

    def _snapshot_number(self, txn: Any, path: str) -> int | None:
        value = txn.get(records.path_key(path), db=self._env.table(records.PATH))
        return None if value is None else int(records.U32.unpack(value)[0])

    def _row(self, txn: Any, number: int) -> SnapshotRow | None:
        value = txn.get(records.U32_KEY.pack(number), db=self._env.table(records.SNAPSHOT))
        return None if value is None else SnapshotRow.decode(value)

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """Path and stamp of every recorded snapshot."""

        def look(txn: Any) -> dict[str, tuple[int, int, int]]:
            rows = txn.cursor(db=self._env.table(records.SNAPSHOT)).iternext(keys=False)
            return dict(map(records.decode_head, rows))

        return self._ask(look, {})

    def put_snapshot(self, row: SnapshotRow, indexes: Sequence[NDArray[np.uint8]]) -> None:
        """Record a published snapshot in the place of an older record. ``indexes``: the (n, 32) digests of each index
        file in manifest order, all of which have been told before.

        Nothing is recorded when one of them is not known any more: another process began a new database meanwhile.
        """

        import numpy as np

        from archiver.store.digests import DistinctDigests

        def work(txn: Any) -> None:
            found = []
            for digests in indexes:
                distinct = DistinctDigests(digests)
                numbers = np.empty(len(distinct), np.uint32)
                done = 0
                for part in distinct.parts():
                    numbers[done : done + len(part)] = self._numbers_of(txn, part)
                    done += len(part)
                if records.NO_NUMBER in numbers:
                    return
                found.append(numbers[distinct.positions])
            self._remove_snapshot(txn, row.path)
            number = self._counter(txn, b"snapshots")
            txn.put(b"snapshots", records.U32.pack(number + 1), db=self._env.table(records.META))
            txn.put(records.U32_KEY.pack(number), row.encode(), db=self._env.table(records.SNAPSHOT))
            txn.put(records.path_key(row.path), records.U32.pack(number), db=self._env.table(records.PATH))
            for position, numbers in enumerate(found):
                key = records.INDEX_KEY.pack(number, position)
                txn.put(key, records.pack_numbers(key, numbers), db=self._env.table(records.INDEX))

        self._change(work)

    def replace_manifest(self, row: SnapshotRow, before: tuple[int, int, int]) -> bool:
        """Record another manifest of the same files for a snapshot that is recorded with the stamp ``before``; False
        when it is not."""

        def work(txn: Any) -> bool:
            number = self._snapshot_number(txn, row.path)
            known = None if number is None else self._row(txn, number)
            if number is None or known is None or known.stamp != before:
                return False
            txn.put(records.U32_KEY.pack(number), row.encode(), db=self._env.table(records.SNAPSHOT))
            return True

        return bool(self._change(work))

    def remove_snapshot(self, path: str) -> None:
        self._change(lambda txn: self._remove_snapshot(txn, path))

    def _remove_snapshot(self, txn: Any, path: str) -> None:
        number = self._snapshot_number(txn, path)
        if number is None:
            return
        cursor = txn.cursor(db=self._env.table(records.INDEX))
        keys = []
        if cursor.set_range(records.INDEX_KEY.pack(number, 0)):
            for key in cursor.iternext(keys=True, values=False):
                if records.INDEX_KEY.unpack(key)[0] != number:
                    break
                keys.append(key)
        for key in keys:
            txn.delete(key, db=self._env.table(records.INDEX))
        txn.delete(records.U32_KEY.pack(number), db=self._env.table(records.SNAPSHOT))
        txn.delete(records.path_key(path), db=self._env.table(records.PATH))

    def references(self, path: str) -> list[Numbers] | None:
        """Chunk numbers of each index file of a snapshot, in manifest order; None when it is not recorded."""
        found = self.recorded(path)
        return None if found is None else found[1]

    def recorded(self, path: str) -> tuple[SnapshotRow, list[Numbers]] | None:
        """Record and references of a snapshot, as they were at one moment."""

        def look(txn: Any) -> tuple[SnapshotRow, list[Numbers]] | None:
            number = self._snapshot_number(txn, path)
            row = None if number is None else self._row(txn, number)
            if number is None or row is None:
                return None
            found, count = list(self.indexes(txn, number)), self._counter(txn, b"chunks")
            if any(len(numbers) and int(numbers.max()) >= count for numbers in found):
                raise ValueError(f"{path} refers to chunk numbers that do not exist")
            return row, found

        return self._ask(look, None)

    def indexes(self, txn: Any, number: int) -> Iterator[Numbers]:
        """Chunk numbers of each index of the snapshot with this number."""
        cursor = txn.cursor(db=self._env.table(records.INDEX))
        if cursor.set_range(records.INDEX_KEY.pack(number, 0)):
            for key, value in cursor:
                if records.INDEX_KEY.unpack(key)[0] != number:
                    return
                yield records.unpack_numbers(key, value)

    # -- verification ------------------------------------------------------------------------------------------------

    def mark_verified(self, found: Sequence[tuple[bytes, bytes, int]], now: int) -> None:
        """Record fully verified chunks as (digest, BLAKE3 of the stored bytes or UNKNOWN_SUM, stored length).

        A sum that is not known again stays as it was recorded, unless the stored bytes are other ones."""

        def work(txn: Any) -> None:
            digests, chunks = self._env.table(records.DIGEST), self._env.table(records.CHUNK)
            for digest, blake3, stored in sorted(found):
                value = txn.get(digest, db=digests)
                if value is None:
                    continue
                number = records.DIGEST_VALUE.unpack(value)[0]
                key = records.U32_KEY.pack(number)
                record = txn.get(key, db=chunks)
                if record is None:
                    continue
                _, before, size, _ = records.CHUNK_VALUE.unpack(record)
                if blake3 == records.UNKNOWN_SUM and stored == records.DIGEST_VALUE.unpack(value)[1]:
                    blake3 = before
                txn.put(key, records.CHUNK_VALUE.pack(digest, blake3, size, now), db=chunks)
                txn.put(digest, records.DIGEST_VALUE.pack(number, stored), db=digests)

        if found:
            self._change(work)

    def mark_damaged(self, digest: bytes) -> None:
        """The chunk's file is bad or gone: no dedup hit until it was stored again, or read and found good."""

        def work(txn: Any) -> None:
            table = self._env.table(records.DIGEST)
            value = txn.get(digest, db=table)
            if value is not None:
                txn.put(digest, records.DIGEST_VALUE.pack(records.DIGEST_VALUE.unpack(value)[0], 0), db=table)

        self._change(work)

    def about_to_store(self, digest: bytes) -> None:
        """Its file will not be durable at once: what is known of an earlier one that has gone must not vouch for what a
        power cut leaves of the new one."""
        if self.lookup(digest) is not None:
            self.mark_damaged(digest)

    def recorded_sum(self, digest: bytes) -> tuple[bytes, int] | None:
        """The BLAKE3 of the stored bytes of a chunk, also of one that was found damaged since, and when they were known
        to be right (Unix seconds); None: not known."""

        def look(txn: Any) -> tuple[bytes, int] | None:
            value = txn.get(digest, db=self._env.table(records.DIGEST))
            if value is None:
                return None
            row = self._chunk(txn, records.DIGEST_VALUE.unpack(value)[0])
            if row is None or row.digest != digest or row.blake3 == records.UNKNOWN_SUM:
                return None
            return row.blake3, row.verified

        return self._ask(look, None)

    # -- care --------------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Contradictions between the tables, as sentences; empty when there are none."""
        import numpy as np

        from archiver.store.database import bulk

        def look(txn: Any) -> list[str]:
            found = []
            digests, chunks = self._env.table(records.DIGEST), self._env.table(records.CHUNK)
            count = self._counter(txn, b"chunks")
            missing = bytes(records.CHUNK_VALUE.size)
            for keys, entries in bulk.scan(txn, digests, bulk.DIGEST_KEYS, bulk.DIGEST_VALUES):
                numbers = entries["number"].astype(bulk.U32_KEYS)
                rows = bulk.fetch(txn, chunks, numbers, bulk.CHUNK_VALUES, missing)
                for wrong in np.flatnonzero(rows["digest"] != keys):
                    digest = keys[wrong : wrong + 1].tobytes().hex()
                    found.append(f"chunk {digest} has the number {numbers[wrong]} of another chunk")
            if txn.stat(digests)["entries"] != txn.stat(chunks)["entries"]:
                found.append("the tables of digests and of chunks differ in length")
            for key, value in txn.cursor(db=self._env.table(records.SNAPSHOT)):
                number, (path, _) = records.U32_KEY.unpack(key)[0], records.decode_head(value)
                if self._snapshot_number(txn, path) != number:
                    found.append(f"snapshot {path} is not found by its path")
                if any(len(refs) and int(refs.max()) >= count for refs in self.indexes(txn, number)):
                    found.append(f"snapshot {path} refers to chunk numbers that do not exist")
            return found

        return self._ask(look, [])

    def statistics(self) -> dict[str, int]:
        """Entries per table, and ``bytes`` of the file."""

        def look(txn: Any) -> dict[str, int]:
            return {name.decode(): int(txn.stat(self._env.table(name))["entries"]) for name in records.TABLES}

        nothing: dict[str, int] = {}
        result = self._ask(look, nothing)
        result["bytes"] = os.path.getsize(os.path.join(self.directory, "data.mdb"))
        return result


def _raw(uuid: str) -> bytes:
    return bytes.fromhex(uuid.replace("-", ""))


def _attach(directory: str, make_room: MakeRoom) -> Environment:
    try:
        return environment.attach(directory)
    except (NoSpace, OSError) as error:
        if not is_full(error) or not make_room(directory):
            raise
        return environment.attach(directory)


def _no_room(directory: str) -> bool:
    return False


def open_database(directory: str, store: str, listener: Listener, make_room: MakeRoom = _no_room) -> Database | None:
    """Open (or make) the database in ``directory``; None when there can be none here, said in a notice if it is odd."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return Database(_attach(directory, make_room), store, listener, make_room)
    except DatabaseDamaged as error:
        listener(Notice(f"the database in {directory} cannot be used ({error}); going on without it", "warning"))
    except (NoSpace, OSError, lmdb.Error, MemoryError) as error:
        listener(Notice(f"no database can be opened in {directory} ({error}); going on without it", "warning"))
    return None
