"""The tables of the database and how their records look.

==========  ================================  =======================================================================
table       key                               value
==========  ================================  =======================================================================
``meta``    ``schema`` ``store`` ``chunks``   u32 · 16-byte uuid · next chunk number u32
            ``snapshots`` ``archives``        next snapshot, archive number u32
``digest``  chunk digest, 32 bytes            chunk number u32, stored length u32 (0: missing or damaged)
``chunk``   chunk number, u32 big-endian      digest 32, BLAKE3 of the stored bytes 32 (zeros: not known), plain size
                                              u32, verified u32 (Unix seconds, 0: never)
``path``    first 16 bytes of SHA-256 of      snapshot number u32
            the snapshot's path
``snap``    snapshot number, u32 big-endian   JSON, see SnapshotRow
``index``   snapshot number u32, position of  BLAKE3 of key and rest 16, count u32, then zstd of the chunk numbers in
            the file in the manifest u16      stream order: differences to the one before as u32, byte-transposed
==========  ================================  =======================================================================

Chunk numbers are dense and never leave the database; a rebuild may number anew, but neither a chunk's nor a snapshot's
number ever comes to mean another one. The sum in an index record is what a garbage collection relies on: a record that
is not the one that was written under this key is never believed. ``meta`` also has ``walked`` (u32, Unix seconds of
the last look at every chunk file) and ``bad`` (u32, chunks set aside that were left then). Integers are little-endian
except in keys. A chunk's plain size is what an index needs besides its number, so index records hold numbers only.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

import zstandard
from blake3 import blake3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 9

META = b"meta"
DIGEST = b"digest"
CHUNK = b"chunk"
PATH = b"path"
SNAPSHOT = b"snap"
INDEX = b"index"
# of the file catalog, see store/catalog/catalog.py
ARCHIVE = b"archive"
RUN = b"run"
PACK = b"pack"
PLACE = b"place"
NEWEST = b"newest"
NAMES = b"names"
TABLES = (META, DIGEST, CHUNK, PATH, SNAPSHOT, INDEX, ARCHIVE, RUN, PACK, PLACE, NEWEST, NAMES)

U32 = struct.Struct("<I")
U32_KEY = struct.Struct(">I")
INDEX_KEY = struct.Struct(">IH")
DIGEST_VALUE = struct.Struct("<II")
CHUNK_VALUE = struct.Struct("<32s32sII")
UNKNOWN_SUM = bytes(32)

NO_NUMBER = (1 << 32) - 1

# What reading a record raises that holds other bytes than were written.
DAMAGED = (ValueError, TypeError, IndexError, OverflowError, RecursionError, MemoryError, struct.error)

_of_thread = threading.local()

_INDEX_SUM = 16
_MOST_REFERENCES = 1 << 28  # of one index; more is not believed


class ChunkRow(NamedTuple):
    """What is recorded of one chunk. ``stored`` and ``size`` in bytes, ``verified`` in Unix seconds (0: never)."""

    digest: bytes
    size: int
    stored: int
    blake3: bytes
    verified: int


class SnapshotRow(NamedTuple):
    """What is recorded of one snapshot; ``stamp`` is (inode, size, mtime in ns) of its manifest when it was read."""

    path: str
    stamp: tuple[int, int, int]
    manifest: bytes  # the decoded manifest JSON

    def encode(self) -> bytes:
        head = json.dumps([self.path, list(self.stamp)]).encode()
        return U32.pack(len(head)) + head + self.manifest

    @classmethod
    def decode(cls, data: bytes) -> SnapshotRow:
        """Raises one of DAMAGED when the bytes are no such record."""
        (length,) = U32.unpack_from(data)
        return cls(*decode_head(data), data[U32.size + length :])


def decode_head(data: bytes) -> tuple[str, tuple[int, int, int]]:
    """Path and stamp in the record of a snapshot."""
    (length,) = U32.unpack_from(data)
    path, stamp = json.loads(data[U32.size : U32.size + length])
    inode, size, mtime = (int(part) for part in stamp)
    return str(path), (inode, size, mtime)


def path_key(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()[:16]


def pack_numbers(key: bytes, numbers: NDArray[np.uint32]) -> bytes:
    """The value of the index record with this key."""
    import numpy as np

    differences = np.diff(numbers, prepend=numbers.dtype.type(0)).astype("<u4")
    planes = differences.view(np.uint8).reshape(-1, 4).T.tobytes()
    rest = U32.pack(len(numbers)) + zstandard.ZstdCompressor(level=1).compress(planes)
    return _index_sum(key, rest) + rest


def _index_sum(key: bytes, rest: bytes | memoryview) -> bytes:
    return blake3(key).update(rest).digest(length=_INDEX_SUM)


def unpack_numbers(key: bytes, value: bytes) -> NDArray[np.uint32]:
    """Chunk numbers of an index record. Raises one of DAMAGED when it is not the one that was written."""
    import numpy as np

    data = memoryview(value)[_INDEX_SUM:]
    if _index_sum(key, data) != value[:_INDEX_SUM]:
        raise ValueError("index record is damaged: its sum is another")
    (count,) = U32.unpack_from(data)
    if count > _MOST_REFERENCES:
        raise ValueError("index record is too large")
    try:
        planes = _decompressor().decompress(data[U32.size :], max_output_size=4 * count)
    except zstandard.ZstdError as error:
        raise ValueError(f"index record is damaged: {error}") from error
    if len(planes) != 4 * count:
        raise ValueError("index record has another length than it says")
    differences = np.empty((count, 4), np.uint8)
    for place, plane in enumerate(np.frombuffer(planes, np.uint8).reshape(4, count)):
        differences[:, place] = plane  # a quarter of the time of a copy of the transposed whole
    result: NDArray[np.uint32] = np.cumsum(differences.view("<u4").reshape(count), dtype=np.uint32)
    return result


def _decompressor() -> zstandard.ZstdDecompressor:
    """One a thread: making it takes as long as the numbers of an ordinary index."""
    try:
        found: zstandard.ZstdDecompressor = _of_thread.decompressor
    except AttributeError:
        found = _of_thread.decompressor = zstandard.ZstdDecompressor()
    return found
