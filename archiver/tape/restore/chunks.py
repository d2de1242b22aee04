"""Chunks from media into a store: what it has is not read again, what comes is checked before it is stored.

A chunk is believed to be there when the database knows it and its file has the recorded length; it is touched then. A
file that the database does not know is read. What comes is checked by its CRC, a plain chunk by its digest too, and an
encrypted one where its key is at hand. Nothing is told to the database before it is durable.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from archiver.core.disk import Barrier, explained
from archiver.core.events import Listener, Notice, Progress
from archiver.core.pipeline import Channel, Pipeline, chunk_workers
from archiver.core.spill import SpillTable
from archiver.errors import Damaged
from archiver.store.chunks import ChunkDamaged, ChunkReader
from archiver.store.database.records import UNKNOWN_SUM, ChunkRow
from archiver.store.digests import DistinctDigests
from archiver.store.sessions import Session
from archiver.store.store import Store
from archiver.tape.checking import ChunkChecker
from archiver.tape.drive.interface import MediumError
from formats import blob
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.index import Index
from formats.tape.catalog import Digests
from formats.tape.chunk_archive import StoredChunk

_QUEUED = 8
_LOOKED_UP_AT_ONCE = 4096
_ROWS_AT_ONCE = 1 << 14
_BYTES_AT_ONCE = 1 << 30  # stored before they are made durable and told


@dataclass(slots=True)
class Brought:
    """Chunks of a run: those stored, their bytes; those that were there."""

    chunks: int = 0
    bytes: int = 0
    present: int = 0


class Chunks:
    """For one store and one run, whose session lasts as long as this. Without a session, in a dry run, nothing is
    touched, and a file that the database does not know is believed."""

    def __init__(
        self, store: Store, session: Session | None, directory: str, crypt: CryptConfig | None, listener: Listener
    ) -> None:
        self._store, self._session, self._crypt = store, session, crypt
        self._database = store.database
        self._listener = listener
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._sound = np.zeros(1 << 16, np.bool_)  # by chunk number: nothing more is to be done
        self._unnumbered = SpillTable(directory)  # the same, of digests that the database does not know
        self._pending: set[bytes] = set()  # stored, and not durable yet
        self._rows: list[ChunkRow] = []
        self._bytes = 0
        self._reader = store.reader(crypt)
        self._plain_reader = store.reader()
        self.unproven: set[bytes] = set()  # encrypted ones that the key at hand does not open
        self.brought = Brought()

    @property
    def _barrier(self) -> Barrier:
        assert self._session is not None
        return self._session.barrier

    def close(self) -> None:
        self._unnumbered.close()

    # -- what the store has ------------------------------------------------------------------------------------------

    def missing(self, index: Index, *, encrypted: bool, with_key: bool) -> Digests:
        """The chunks of ``index`` that the store does not have, each once, in the order of the digests. What it has is
        spared by garbage collections from now on. ``with_key``: the key at hand is that of the chunks."""
        distinct = DistinctDigests(index.digests)
        missing = [np.empty((0, 32), np.uint8)]
        for digests, sizes in distinct.parts_with(distinct.one_of(index.sizes())):
            here = [digest.tobytes() for digest in digests]
            missing.append(digests[self._absent(here, sizes.tolist(), encrypted, with_key)])
        return np.concatenate(missing)

    def has_all(self, digests: Digests) -> bool:
        """Whether the store has every one of these chunks, as far as its database and its files tell."""
        for start in range(0, len(digests), _LOOKED_UP_AT_ONCE):
            part = [digest.tobytes() for digest in digests[start : start + _LOOKED_UP_AT_ONCE]]
            known = self._database.find_chunks(part) if self._database is not None else [None] * len(part)
            for digest, row in zip(part, known, strict=True):
                if self._is_sound(digest, None if row is None else row[0]):
                    continue
                status = self._store.chunks.seen(digest)
                if row is None or status is None or status.st_size != row[1].stored:
                    return False
        return True

    def _absent(self, digests: list[bytes], sizes: list[int], encrypted: bool, with_key: bool) -> list[bool]:
        known = self._database.find_chunks(digests) if self._database is not None else [None] * len(digests)
        absent = [False] * len(digests)
        usable = []
        for place, (digest, size, row) in enumerate(zip(digests, sizes, known, strict=True)):
            if row is not None and row[1].size != size:
                row = None
            number = None if row is None else row[0]
            if self._is_sound(digest, number):
                continue
            status = self._store.chunks.seen(digest)
            if status is None:
                absent[place] = True
            elif row is not None and status.st_size == row[1].stored:
                usable.append((place, number, status))
            elif self._session is None:
                absent[place] = not status.st_size
            else:
                absent[place] = not self._check(digest, size, encrypted, with_key, is_replaced=False)
        if self._session is None:
            return absent
        touched = self._store.chunks.touch_all((digests[place], status) for place, _, status in usable)
        for (place, number, _), is_there in zip(usable, touched, strict=True):
            if is_there:
                self._mark(digests[place], number)
                self.brought.present += 1
            else:
                absent[place] = True
        return absent

    def _is_sound(self, digest: bytes, number: int | None) -> bool:
        with self._lock:
            if digest in self._pending:
                return True
            if number is None:
                return self._unnumbered.get(digest) is not None
            return number < len(self._sound) and bool(self._sound[number])

    def _mark(self, digest: bytes, number: int | None) -> None:
        with self._lock:
            if number is None:
                self._unnumbered.put(digest, b"")
                return
            if number >= len(self._sound):
                grown = np.zeros(max(2 * len(self._sound), number + 1), np.bool_)
                grown[: len(self._sound)] = self._sound
                self._sound = grown
            self._sound[number] = True

    def _check(self, digest: bytes, size: int | None, encrypted: bool, with_key: bool, *, is_replaced: bool) -> bool:
        """Whether a file that the database does not vouch for is the chunk. ``size`` is known unless the chunk is
        encrypted and cannot be opened. ``is_replaced``: a bad one is set aside, as a good one is at hand."""
        reader: ChunkReader = self._reader if with_key else self._plain_reader

        def read() -> tuple[int, bytes]:
            with self._reading:
                data, total = reader.checked(digest, size or 0, encrypted=encrypted)
                return len(data), total

        status = self._store.chunks.seen(digest)
        if status is None or not status.st_size:
            return False
        try:
            found: tuple[int, bytes] | None = read()
        except ChunkDamaged:
            if not is_replaced:
                return False
            text = f"chunk {digest.hex()} was damaged in the store; it is stored again"
            self._listener(Notice(text, "warning"))
            found = self._store.chunks.set_aside_unless(digest, read)
        if found is None or not self._store.chunks.keep(digest, status, self._barrier):
            return False
        self.brought.present += 1
        self._stored(digest, self._row(digest, size, found[0], found[1] if with_key or not encrypted else None))
        return True

    def _row(self, digest: bytes, size: int | None, stored: int, total: bytes | None) -> ChunkRow | None:
        """``total``: BLAKE3 of the stored bytes, where they were proven to be the chunk."""
        if size is None:
            return None
        if total is None:
            return ChunkRow(digest, size, stored, UNKNOWN_SUM, 0)
        return ChunkRow(digest, size, stored, total, self._store.clock.now())

    # -- what comes --------------------------------------------------------------------------------------------------

    def bring(self, chunks: Iterable[StoredChunk], damaged: dict[bytes, str]) -> None:
        """Store those that the store does not have. Of those that are not what they should be ``damaged`` is told why.
        Raises what the reading of ``chunks`` raises when those that came before are stored, and ArchiverError when the
        store cannot be written."""
        unreadable: Exception | None = None
        with Pipeline() as pipeline:
            tasks: Channel[StoredChunk] = Channel(pipeline, _QUEUED)
            started = 0
            try:
                for chunk in chunks:
                    if started < chunk_workers():
                        started += 1
                        pipeline.start(lambda: self._work(tasks, damaged), f"tape-{started}")
                    tasks.put(chunk)
                    self._listener(Progress("restore", self.brought.chunks, self.brought.bytes))
            except (FormatError, MediumError) as error:
                unreadable = error
            tasks.close()
            pipeline.join()
        if unreadable is not None:
            raise unreadable

    def _work(self, tasks: Channel[StoredChunk], damaged: dict[bytes, str]) -> None:
        checker = ChunkChecker(self._crypt)
        while (chunk := tasks.get()) is not None:
            try:
                self._take(chunk, checker)
            except (FormatError, Damaged) as error:
                with self._lock:
                    damaged[chunk.digest] = str(error)

    def _take(self, chunk: StoredChunk, checker: ChunkChecker) -> None:
        digest, data = chunk
        known = self._database.lookup(digest) if self._database is not None else None
        number = known[0] if known is not None else None
        if self._is_sound(digest, number):
            return
        status = self._store.chunks.seen(digest)
        if known is not None and status is not None and status.st_size == known[1]:
            if self._store.chunks.touch(digest, status):
                self._mark(digest, number)
                self.brought.present += 1
                return
            status = None
        encrypted, size = checker.check(digest, data)
        if size is None and self._crypt is not None:
            with self._lock:  # of another key, or damaged: only its snapshot tells
                self.unproven.add(digest)
        if status is not None and self._check(digest, size, encrypted, False, is_replaced=True):
            return
        if self._database is not None:
            self._database.about_to_store(digest)
        view = memoryview(data)
        header, body = bytes(view[: blob.PLAIN_HEADER]), view[blob.PLAIN_HEADER :]
        done = self._store.chunks.insert(digest, header, body, encrypted=encrypted, barrier=self._barrier)
        total = None if size is None or done.duplicate else blake3(data).digest()
        with self._lock:
            self.brought.chunks += not done.duplicate
            self.brought.bytes += 0 if done.duplicate else len(data)
            self.brought.present += done.duplicate
        self._stored(digest, self._row(digest, size, done.stored, total))

    # -- telling the database ----------------------------------------------------------------------------------------

    def _stored(self, digest: bytes, row: ChunkRow | None) -> None:
        with self._lock:
            self._pending.add(digest)
            if row is not None:
                self._rows.append(row)
                self._bytes += row.stored
            is_full = len(self._pending) >= _ROWS_AT_ONCE or self._bytes >= _BYTES_AT_ONCE
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Make everything that was stored so far durable, and known to the database."""
        with self._lock:
            rows, self._rows, self._bytes = self._rows, [], 0
            pending = set(self._pending)
        with explained("write into", self._store.layout.base):
            self._barrier.commit()
        if self._database is not None:
            self._database.put_chunks(rows)
        for digest in pending:
            known = self._database.lookup(digest) if self._database is not None else None
            self._mark(digest, None if known is None else known[0])
        with self._lock:
            self._pending -= pending
