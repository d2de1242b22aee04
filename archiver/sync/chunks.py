"""Chunks from one store to another: every one is read and checked before it is stored, and stored as it is.

What the target has is not read from the source: the database knows the chunk to be durable, and its file is seen with
the recorded length and touched. A file that the database does not know may be what a power cut left of an interrupted
run: it is read in the target and checked, and replaced only by one that was found good in the source.

No key is needed. A plain chunk is checked by its digest. Of an encrypted one kind and CRC are checked, and the BLAKE3
of its stored bytes where a database has it from who had the contents at hand; only such sums are handed on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from archiver.core.disk import Barrier, explained
from archiver.core.events import Listener, Notice, Progress
from archiver.core.pipeline import Channel, Pipeline, chunk_workers
from archiver.core.spill import SpillTable
from archiver.store.chunks import ChunkDamaged, ChunkReader
from archiver.store.database.records import UNKNOWN_SUM, ChunkRow
from archiver.store.digests import DistinctDigests
from archiver.store.indexes import Index
from archiver.store.recorded_sums import is_recorded
from archiver.store.store import Store
from archiver.sync.rate import Rate
from formats import blob

_QUEUED = 16
_LOOKED_UP_AT_ONCE = 4096
_ROWS_AT_ONCE = 1 << 14
_BYTES_AT_ONCE = 1 << 30  # copied before they are made durable and told: what a run after a crash need not check
_TOUCHED, _CHECKED = 1, 2  # what this run did with a chunk of the target

_Task = tuple[bytes, int]  # digest, plain size


@dataclass(slots=True)
class Copied:
    """Chunks of a run: those copied, their stored bytes; those found in the target."""

    chunks: int = 0
    bytes: int = 0
    present: int = 0


class Chunks:
    """For one run, whose session lasts as long as this: what was found or stored once needs no second look."""

    def __init__(self, source: Store, target: Store, rate: Rate, directory: str, listener: Listener) -> None:
        self._source, self._target = source, target
        self._from, self._into = source.database, target.database
        self._rate = rate
        self._listener = listener
        self.copied = Copied()
        self._lock = threading.Lock()
        self._done = np.zeros(1 << 16, np.uint8)  # by chunk number in the target
        self._pending: dict[bytes, int] = {}  # digest -> size of those that the database was not told of yet
        self._rows: list[ChunkRow] = []  # of those that are not durable yet
        self._bytes = 0  # of the chunks in ``_rows``
        self._unnumbered = SpillTable(directory)  # digests that the database did not take -> nothing

    def bring(self, index: Index, barrier: Barrier, *, encrypted: bool, doubted: bool) -> None:
        """Have every chunk of ``index`` in the target, durable after ``barrier.commit``. ``doubted``: whatever is there
        is read and checked.

        Raises ChunkDamaged for the first chunk that cannot be had, ArchiverError.
        """
        with Pipeline() as pipeline:
            tasks: Channel[_Task] = Channel(pipeline, _QUEUED)
            started = 0
            for task in self._wanted(index, doubted):
                if started < chunk_workers():
                    started += 1
                    pipeline.start(lambda: self._work(pipeline, tasks, barrier, encrypted), f"sync-{started}")
                tasks.put(task)
                self._listener(Progress("sync", self.copied.chunks, self.copied.bytes))
            tasks.close()
            pipeline.join()

    # -- what the target has -----------------------------------------------------------------------------------------

    def _wanted(self, index: Index, doubted: bool) -> Iterator[_Task]:
        """The chunks that are not known to be there."""
        pairs = _pairs(index)
        while part := list(islice(pairs, _LOOKED_UP_AT_ONCE)):
            yield from self._missing(part, doubted)

    def _missing(self, part: list[_Task], doubted: bool) -> list[_Task]:
        found = self._into.find_chunks([digest for digest, _ in part]) if self._into is not None else [None] * len(part)
        missing: list[_Task] = []
        usable = []
        for task, known in zip(part, found, strict=True):
            digest, size = task
            if known is not None and known[1].size != size:
                known = None
            if self._is_done(digest, size, known[0] if known is not None else None, doubted):
                continue
            status = None if doubted or known is None else self._target.chunks.seen(digest)
            if known is None or status is None or status.st_size != known[1].stored:
                missing.append(task)
            else:
                usable.append((task, known[0], status))
        touched = self._target.chunks.touch_all((task[0], status) for task, _, status in usable)
        with self._lock:
            for (task, number, _), is_there in zip(usable, touched, strict=True):
                if is_there:
                    self._mark(number, _TOUCHED)
                    self.copied.present += 1
                else:
                    missing.append(task)
        return missing

    def _is_done(self, digest: bytes, size: int, number: int | None, doubted: bool) -> bool:
        with self._lock:
            pending = self._pending.get(digest)
            if pending is not None:
                return pending == size
            if number is None:
                return not doubted and self._unnumbered.get(digest) is not None
            return number < len(self._done) and self._done[number] >= (_CHECKED if doubted else _TOUCHED)

    def _mark(self, number: int, how: int) -> None:
        if number >= len(self._done):
            grown = np.zeros(max(2 * len(self._done), number + 1), np.uint8)
            grown[: len(self._done)] = self._done
            self._done = grown
        self._done[number] = how

    # -- one chunk ---------------------------------------------------------------------------------------------------

    def _work(self, pipeline: Pipeline, tasks: Channel[_Task], barrier: Barrier, encrypted: bool) -> None:
        readers = self._source.reader(), self._target.reader()
        while (task := tasks.get()) is not None:
            digest, size = task
            row, is_damaged = self._found(readers[1], digest, size, barrier, encrypted)
            is_new = row is None
            if row is None:
                row = self._fetch(pipeline, readers, digest, size, barrier, encrypted, is_damaged)
            with self._lock:
                self._pending[digest] = size
                self._rows.append(row)
                self._bytes += row.stored
                self.copied.present += not is_new
                if is_new:
                    self.copied.chunks += 1
                    self.copied.bytes += row.stored
                full = len(self._rows) >= _ROWS_AT_ONCE or self._bytes >= _BYTES_AT_ONCE
            if full:
                self.flush(barrier)

    def _found(
        self, reader: ChunkReader, digest: bytes, size: int, barrier: Barrier, encrypted: bool
    ) -> tuple[ChunkRow | None, bool]:
        """(A sound file of the chunk in the target; whether there is one that is not sound)."""
        status = self._target.chunks.seen(digest)
        if status is None or not status.st_size:
            return None, False
        try:
            stored, total, is_proven = self._read(reader, digest, size, encrypted)
        except ChunkDamaged:
            return None, True
        if not is_proven and self._from is not None:
            recorded = self._from.recorded_sum(digest)
            is_proven = recorded is not None and recorded[0] == total
        if not self._target.chunks.keep(digest, status, barrier):
            return None, False
        return self._row(digest, size, stored, total if is_proven else None), False

    def _read(self, reader: ChunkReader, digest: bytes, size: int, encrypted: bool) -> tuple[int, bytes, bool]:
        """(Length of the file in the target, BLAKE3 of its bytes, whether that proves it). Raises ChunkDamaged."""
        data, total = reader.checked(digest, size, encrypted=encrypted)
        is_proven = not encrypted or is_recorded(self._target.chunks, self._into, digest, total)
        return len(data), total, is_proven

    def _fetch(
        self,
        pipeline: Pipeline,
        readers: tuple[ChunkReader, ChunkReader],
        digest: bytes,
        size: int,
        barrier: Barrier,
        encrypted: bool,
        is_damaged: bool,
    ) -> ChunkRow:
        """Copy a chunk. ``is_damaged``: a bad one is in its place. ``readers``: of the source and of the target."""
        data, total = readers[0].checked(digest, size, encrypted=encrypted)
        is_proven = not encrypted or is_recorded(self._source.chunks, self._from, digest, total)
        self._rate.spend(len(data), pipeline)
        if is_damaged:
            self._listener(Notice(f"chunk {digest.hex()} was damaged in the target; it is stored again", "warning"))
            self._target.chunks.set_aside_unless(digest, lambda: self._read(readers[1], digest, size, encrypted))
        if self._into is not None:
            self._into.about_to_store(digest)
        header = bytes(data[: blob.PLAIN_HEADER])
        done = self._target.chunks.insert(
            digest, header, data[blob.PLAIN_HEADER :], encrypted=encrypted, barrier=barrier
        )
        if done.duplicate:  # another process stored it just now
            return self._row(digest, size, done.stored, None)
        return self._row(digest, size, done.stored, total if is_proven else None)

    def _row(self, digest: bytes, size: int, stored: int, total: bytes | None) -> ChunkRow:
        if total is None:
            return ChunkRow(digest, size, stored, UNKNOWN_SUM, 0)
        return ChunkRow(digest, size, stored, total, self._target.clock.now())

    # -- telling the database ----------------------------------------------------------------------------------------

    def flush(self, barrier: Barrier) -> None:
        """Make everything that was stored so far durable, and known to the database."""
        rows = self._take()
        with explained("write into", self._target.layout.base):
            barrier.commit()
        self._record(rows)

    def record(self) -> None:
        """Tell the database of what a published snapshot has made durable."""
        self._record(self._take())

    def _take(self) -> list[ChunkRow]:
        with self._lock:
            rows, self._rows, self._bytes = self._rows, [], 0
        return rows

    def _record(self, rows: list[ChunkRow]) -> None:
        if self._into is not None:
            self._into.put_chunks(rows)
        with self._lock:
            for row in rows:
                known = self._into.lookup(row.digest) if self._into is not None else None
                if known is not None:
                    self._mark(known[0], _CHECKED)
                else:
                    self._unnumbered.put(row.digest, b"")
                self._pending.pop(row.digest, None)

    def close(self) -> None:
        self._unnumbered.close()


def _pairs(index: Index) -> Iterator[_Task]:
    """Digest and size of every chunk of an index once, in the order of the digests; twice with two sizes."""
    distinct, sizes = DistinctDigests(index.digests), index.sizes()
    one = distinct.one_of(sizes)
    for digests, here in distinct.parts_with(one):
        yield from zip(map(bytes, digests), here.tolist(), strict=True)
    for place in np.flatnonzero(one[distinct.positions] != sizes).tolist():
        yield index.digest(place), int(sizes[place])
