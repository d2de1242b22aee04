"""Which chunk is already stored: decides, stores what is new, and tells the database.

A hit is trusted only after the chunk file was seen with the recorded length, and it is touched then; a chunk that was
not verified for 90 days is read and checked on its first hit in a run, so that new backups do not inherit rot.
Rows reach the database only after a durability barrier: what the database knows, a power cut cannot take away. A file
that it does not know may be what a power cut left of an interrupted run, so it is read and checked too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from archiver.core.disk import explained
from archiver.core.events import Notice
from archiver.core.spill import SpillTable
from archiver.store.chunks import ChunkDamaged
from archiver.store.database.records import UNKNOWN_SUM, ChunkRow
from archiver.store.sessions import Session
from archiver.store.store import Store
from formats.blob import BlobEncoder
from formats.crypt import CryptConfig
from formats.wire import Buffer

_RECHECK_AFTER = 90 * 86400  # seconds
_ROWS_AT_ONCE = 1 << 16
_BYTES_AT_ONCE = 8 << 30  # stored before they are made durable and told: what a run after a crash need not check
_LOOKED_UP_AT_ONCE = 4096
_IV_SIZE = 16


class Deduplicator:
    """Shared by all workers of a run."""

    def __init__(self, store: Store, session: Session, crypt: CryptConfig | None) -> None:
        self._store = store
        self._crypt = crypt
        self._session = session
        self._database = store.database
        self._lock = threading.Lock()
        self._claimed: set[bytes] = set()  # digests of this run that were not flushed yet
        self._unnumbered = SpillTable(session.path)  # digests that were, but not taken by the database
        self._seen = np.zeros(1 << 16, np.bool_)  # by chunk number: seen in this run
        self._rows: list[ChunkRow] = []
        self._stored = 0  # bytes of the chunks in ``_rows``

    def claim(self, digest: bytes, size: int) -> bool:
        """True when the caller must store the chunk; False when it is there, or another worker is storing it."""
        with self._lock:
            if digest in self._claimed or self._unnumbered.get(digest) is not None:
                return False
            (known,) = self._known([digest], [size])
            if known is not None:
                number, row = known
                if number < len(self._seen) and self._seen[number]:
                    return False
            self._claimed.add(digest)
        if known is None:
            return True
        status = self._trusted(row)
        if status is None or not self._store.chunks.touch(digest, status):
            return True
        with self._lock:
            self._mark_seen(number)
            self._claimed.discard(digest)
        return False

    def reuse(self, digests: Sequence[bytes], sizes: Sequence[int]) -> list[bool]:
        """Whether chunks may be referred to without their data at hand: each is there, is sound as far as one can see,
        and was touched."""
        found: list[bool] = []
        for first in range(0, len(digests), _LOOKED_UP_AT_ONCE):
            part = slice(first, first + _LOOKED_UP_AT_ONCE)
            trusted: dict[int, tuple[int, bytes, os.stat_result]] = {}  # place -> number, digest, status
            for place, known in enumerate(self._known(digests[part], sizes[part])):
                status = None if known is None else self._trusted(known[1])
                if known is not None and status is not None:
                    trusted[place] = (known[0], known[1].digest, status)
            touched = self._store.chunks.touch_all((digest, status) for _, digest, status in trusted.values())
            usable = {place for place, is_there in zip(trusted, touched, strict=True) if is_there}
            with self._lock:
                for place in usable:
                    self._mark_seen(trusted[place][0])
            found += [place in usable for place in range(len(digests[part]))]
        return found

    def recover(self, digests: Sequence[bytes], sizes: Sequence[int]) -> list[bool]:
        """The same for chunks that an interrupted run may not have told the database of: these are read and checked."""
        usable = self.reuse(digests, sizes)
        return [
            is_usable or self._recover(digest, size)
            for is_usable, digest, size in zip(usable, digests, sizes, strict=True)
        ]

    def _recover(self, digest: bytes, size: int) -> bool:
        row = self._found(digest, size)
        if row is None:
            return False
        with self._lock:
            self._rows.append(row)
            self._claimed.add(digest)
        return True

    def distrust(self, digest: bytes) -> None:
        """A chunk turned out to be damaged: it is set aside, and stored again when its contents come by."""
        reader = self._store.reader(self._crypt)
        with self._store.chunks.lock.cleared(int.from_bytes(digest[:2])):
            if reader.is_bad(digest):  # still: another process may just have stored it again
                self._store.chunks.set_aside(digest)
        known = self._database.lookup(digest) if self._database is not None else None
        if self._database is None or known is None:
            return
        self._database.mark_damaged(digest)
        with self._lock:
            if known[0] < len(self._seen):
                self._seen[known[0]] = False

    def _known(self, digests: Sequence[bytes], sizes: Sequence[int]) -> list[tuple[int, ChunkRow] | None]:
        """Number and row of each chunk that the database holds to be stored, and does not contradict itself about."""
        if self._database is None:
            return [None] * len(digests)
        found = self._database.find_chunks(digests)
        return [
            known if known is not None and (known[1].digest, known[1].size) == (digest, size) else None
            for known, digest, size in zip(found, digests, sizes, strict=True)
        ]

    def _mark_seen(self, number: int) -> None:
        if number >= len(self._seen):
            grown = np.zeros(max(2 * len(self._seen), number + 1), np.bool_)
            grown[: len(self._seen)] = self._seen
            self._seen = grown
        self._seen[number] = True

    def _trusted(self, row: ChunkRow) -> os.stat_result | None:
        """How the file was seen that may be used once it was touched; None when there is no sound one."""
        status = self._store.chunks.seen(row.digest)
        if status is None or status.st_size != row.stored:
            return None
        if not self._fresh(row.verified) and not self._fresh(int(status.st_mtime)):
            total = self._checked(row.digest, row.size)
            if total is None:
                return None
            if self._database is not None:
                self._database.mark_verified([(row.digest, total, row.stored)], self._now())
        return status

    def _fresh(self, when: int) -> bool:
        """A time in the future says nothing: a clock was wrong, then or now."""
        return 0 <= self._now() - when <= _RECHECK_AFTER

    def _checked(self, digest: bytes, size: int) -> bytes | None:
        """Read the stored chunk: BLAKE3 of its file. A damaged one is set aside, so that it is stored again."""
        reader = self._store.reader(self._crypt)

        def read() -> bytes:
            return reader.verify(digest, size, encrypted=self._crypt is not None)[0]

        try:
            return read()
        except ChunkDamaged as error:
            total = self._store.chunks.set_aside_unless(digest, read)
            if total is None:
                self._store.listener(Notice(f"{error}; it is stored again", "warning"))
            return total

    def store(self, digest: bytes, data: Buffer, encoder: BlobEncoder) -> tuple[bool, int]:
        """Encode and insert a claimed chunk; (whether it is new, stored length in bytes)."""
        row = self._found(digest, len(data))
        new = row is None
        if row is None:
            row = self._insert(digest, data, encoder)
        with self._lock:
            self._rows.append(row)
            self._stored += row.stored
            full = len(self._rows) >= _ROWS_AT_ONCE or self._stored >= _BYTES_AT_ONCE
        if full:
            self.flush()
        return new, row.stored

    def _found(self, digest: bytes, size: int) -> ChunkRow | None:
        """A sound file of the chunk that the database does not know."""
        status = self._store.chunks.seen(digest)
        if status is None or not status.st_size:
            return None
        total = self._checked(digest, size)
        if total is None or not self._store.chunks.keep(digest, status, self._session.barrier):
            return None
        return ChunkRow(digest, size, status.st_size, total, self._now())

    def _insert(self, digest: bytes, data: Buffer, encoder: BlobEncoder) -> ChunkRow:
        iv = self._store.random(_IV_SIZE) if self._crypt is not None else None
        header, body = encoder.encode(data, iv)
        if self._database is not None:
            self._database.about_to_store(digest)
        done = self._store.chunks.insert(
            digest, header, body, encrypted=self._crypt is not None, barrier=self._session.barrier
        )
        if done.duplicate:  # another process stored it just now
            return ChunkRow(digest, len(data), done.stored, UNKNOWN_SUM, 0)
        return ChunkRow(digest, len(data), done.stored, blake3(header).update(body).digest(), self._now())

    def _now(self) -> int:
        return self._store.clock.now()

    def flush(self) -> None:
        """Make everything stored so far durable, and known to the database."""
        with self._lock:
            rows, self._rows, self._stored = self._rows, [], 0
        with explained("write into", self._store.layout.base):
            self._session.barrier.commit()
        self._record(rows)
        with self._lock:
            for row in rows:
                known = self._database.lookup(row.digest) if self._database is not None else None
                if known is not None:
                    self._mark_seen(known[0])
                else:
                    self._unnumbered.put(row.digest, b"")
                self._claimed.discard(row.digest)

    def record(self) -> None:
        """Tell the database of chunks that a published snapshot has made durable."""
        rows, self._rows = self._rows, []
        self._record(rows)

    def _record(self, rows: list[ChunkRow]) -> None:
        if self._database is not None:
            self._database.put_chunks(rows)

    def close(self) -> None:
        self._unnumbered.close()
