"""What the database says of the stored bytes of a chunk, compared with the bytes that lie there (DESIGN.md 2, P3)."""

from __future__ import annotations

from archiver.store.chunks import ChunkDamaged, ChunkStore
from archiver.store.database.database import Database


def is_recorded(chunks: ChunkStore, database: Database | None, digest: bytes, total: bytes) -> bool:
    """Whether ``total`` is the BLAKE3 that was recorded of a chunk's stored bytes.

    False when none was, or when its file was written since: another program has stored the chunk again, encrypted with
    another IV. Raises ChunkDamaged when the bytes have changed by themselves.
    """
    recorded = database.recorded_sum(digest) if database is not None else None
    if recorded is None:
        return False
    if recorded[0] == total:
        return True
    status = chunks.seen(digest)
    if status is not None and status.st_mtime > recorded[1] + 1:
        return False
    raise ChunkDamaged(digest, "is not what was stored: its bytes have another BLAKE3 than the database says")
