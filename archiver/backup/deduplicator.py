"""Which chunk is already stored: decides, stores what is new, and tells the database.

A hit is trusted only after the chunk file was seen with the recorded length, and it is touched then; a chunk that was
not verified for 90 days is read and checked on its first hit in a run, so that new backups do not inherit rot.
Rows reach the database only after a durability barrier: what the database knows, a power cut cannot take away.
"""

from __future__ import annotations

import threading

import numpy as np
from blake3 import blake3

from archiver.core.disk import explained
from archiver.core.events import Notice
from archiver.store.chunks import ChunkDamaged
from archiver.store.database.records import ChunkRow
from archiver.store.sessions import Session
from archiver.store.store import Store
from formats.blob import BlobEncoder
from formats.crypt import CryptConfig
from formats.wire import Buffer

_RECHECK_AFTER = 90 * 86400  # seconds
_ROWS_AT_ONCE = 1 << 16
_IV_SIZE = 16


class Deduplicator:
    """Shared by all workers of a run."""

    def __init__(self, store: Store, session: Session, crypt: CryptConfig | None) -> None:
        self._store = store
        self._crypt = crypt
        self._session = session
        self._database = store.database
        self._lock = threading.Lock()
        self._claimed: set[bytes] = set()  # digests of this run that have no number yet
        self._seen = np.zeros(1 << 16, np.bool_)  # by chunk number: seen in this run
        self._rows: list[ChunkRow] = []

    def claim(self, digest: bytes) -> bool:
        """True when the caller must store the chunk; False when it is there, or another worker is storing it."""
        with self._lock:
            if digest in self._claimed:
                return False
            known = self._database.lookup(digest) if self._database is not None else None
            if known is not None:
                number, stored = known
                if number < len(self._seen) and self._seen[number]:
                    return False
            self._claimed.add(digest)
        if known is None or not self._trusted(digest, number, stored):
            return True
        with self._lock:
            self._mark_seen(number)
            self._claimed.discard(digest)
        return False

    def _mark_seen(self, number: int) -> None:
        if number >= len(self._seen):
            grown = np.zeros(max(2 * len(self._seen), number + 1), np.bool_)
            grown[: len(self._seen)] = self._seen
            self._seen = grown
        self._seen[number] = True

    def _trusted(self, digest: bytes, number: int, stored: int) -> bool:
        status = self._store.chunks.seen(digest)
        if status is None or status.st_size != stored:
            return False
        row = self._database.chunk(number) if self._database is not None else None
        checked = max(row.verified if row is not None else 0, int(status.st_mtime))
        if row is None or self._store.clock.now() - checked > _RECHECK_AFTER:
            return row is not None and self._recheck(row)
        self._store.chunks.touch(digest, status)
        return True

    def _recheck(self, row: ChunkRow) -> bool:
        """Read and check the stored chunk; one that is damaged is set aside so that it is stored again."""
        reader = self._store.reader(self._crypt)
        try:
            total, stored = reader.verify(row.digest, row.size, encrypted=self._crypt is not None)
        except ChunkDamaged as error:
            self._store.listener(Notice(f"{error}; it is stored again", "warning"))
            self._store.chunks.set_aside(row.digest)
            return False
        status = self._store.chunks.seen(row.digest)
        if status is None:
            return False
        self._store.chunks.touch(row.digest, status)
        if self._database is not None:
            self._database.mark_verified([(row.digest, total, stored)], self._store.clock.now())
        return True

    def store(self, digest: bytes, data: Buffer, encoder: BlobEncoder) -> tuple[bool, int]:
        """Encode and insert a claimed chunk; (whether it is new, stored length in bytes)."""
        iv = self._store.random(_IV_SIZE) if self._crypt is not None else None
        header, body = encoder.encode(data, iv)
        done = self._store.chunks.insert(
            digest, header, body, encrypted=self._crypt is not None, barrier=self._session.barrier
        )
        total = b"" if done.duplicate else blake3(header).update(body).digest()
        row = ChunkRow(digest, len(data), done.stored, total or bytes(32), 0 if done.duplicate else self._now())
        with self._lock:
            self._rows.append(row)
            full = len(self._rows) >= _ROWS_AT_ONCE
        if full:
            self.flush()
        return not done.duplicate, done.stored

    def _now(self) -> int:
        return self._store.clock.now()

    def flush(self) -> None:
        """Make everything stored so far durable, and known to the database."""
        with self._lock:
            rows, self._rows = self._rows, []
        with explained("write into", self._store.layout.base):
            self._session.barrier.commit()
        self._record(rows)

    def record(self) -> None:
        """Tell the database of chunks that a published snapshot has made durable."""
        rows, self._rows = self._rows, []
        self._record(rows)

    def _record(self, rows: list[ChunkRow]) -> None:
        if self._database is None or not self._database.usable:
            return
        self._database.put_chunks(rows)
        with self._lock:
            for row in rows:
                known = self._database.lookup(row.digest)
                if known is not None:
                    self._mark_seen(known[0])
                    self._claimed.discard(row.digest)
