"""Index files: which chunks make up a stream (spec blob-index-crypto.md 7; integers little-endian).

    offset size   dynamic .didx                       fixed .fidx
         0    8   magic 1c914ea519bab3cd              magic 2f7f41ed91fd0fcd
         8   16   uuid                                uuid
        24    8   ctime, i64 seconds                  ctime, i64 seconds
        32   32   csum                                csum
        64    8   zero                                size of the image, u64
        72    8   zero                                chunk size, u64, a power of two
        80        zero up to 4096 (some foreign builds: 16384; both are read, 4096 is written)

    dynamic entry  40   end offset u64 (exclusive, cumulative), chunk digest [32]     csum = SHA-256(entries)
    fixed entry    32   chunk digest [32]; the last chunk has its real length         csum = SHA-256(digests)

An index has at least one entry. The header is not authenticated: readers compare the recomputed csum and the size with
the manifest. Chunk lengths that follow from an index are claims; whoever decodes a chunk caps them.

A decoded index is a set of views over the caller's buffer: nothing is copied, whatever its size. While an index over an
mmap lives, the mmap cannot be closed. The classes are plain ones, as making a dataclass costs every start 0.7 ms. Their
arrays are numpy's, which is imported when one of them is asked for, or the index is a large one: who looks up single
chunks of an ordinary index does without.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, NoReturn

from formats.errors import FormatError
from formats.wire import Buffer

if TYPE_CHECKING:
    from mmap import mmap

    import numpy as np
    import numpy.typing as npt

    IndexBuffer = Buffer | mmap
    Ends = npt.NDArray[np.uint64]
    Digests = npt.NDArray[np.uint8]

DYNAMIC_MAGIC = bytes.fromhex("1c914ea519bab3cd")
FIXED_MAGIC = bytes.fromhex("2f7f41ed91fd0fcd")
HEADER_SIZE = 4096
LARGE_HEADER_SIZE = 16384
DIGEST_SIZE = 32

_HEADER = struct.Struct("<8s16sq32s")
_IMAGE = struct.Struct("<QQ")  # size, chunk size; follows _HEADER in a fixed index
_ENTRY = struct.Struct("<Q32s")
_LARGE = 1 << 13  # entries; more are looked through by numpy
_CHECK_BLOCK = 1 << 20  # entries compared at once: bounds the temporary arrays
_NO_CSUM = bytes(32)
_MAX_OFFSET = 2**64 - 1


class DynamicIndex:
    """Chunks of varying size. ``ends`` (n,): exclusive end of each chunk in the stream; ``digests`` (n, 32); ``ctime``
    in Unix seconds; ``stored_csum`` as in the header, compare with ``csum()``."""

    __slots__ = ("_ends", "_entries", "ctime", "stored_csum", "uuid")

    def __init__(self, uuid: bytes, ctime: int, stored_csum: bytes, entries: memoryview, ends: memoryview) -> None:
        """``entries`` as bytes, ``ends`` as numbers."""
        self.uuid = uuid
        self.ctime = ctime
        self.stored_csum = stored_csum
        self._entries = entries
        self._ends = ends

    @classmethod
    def decode(cls, buffer: IndexBuffer) -> DynamicIndex:
        """Views over ``buffer``, a whole file. FormatError: magic, length, no entry, or ends that do not increase."""
        data = memoryview(buffer).cast("B")
        uuid, ctime, csum = _decode_header(data, "dynamic index", DYNAMIC_MAGIC)
        header = next((size for size in (HEADER_SIZE, LARGE_HEADER_SIZE) if (len(data) - size) % _ENTRY.size == 0), 0)
        if not header or len(data) <= header:
            raise FormatError("dynamic index length", expected="a header and 40 bytes per entry", got=len(data))
        entries = data[header:]
        index = cls(uuid, ctime, csum, entries, entries.cast("Q")[:: _ENTRY.size // 8])
        if len(index) < _LARGE:
            _check_few(index._ends, header)
        else:
            _check_increasing(index.ends, header)
        return index

    def first(self, count: int) -> DynamicIndex:
        """One of its first ``count`` entries."""
        entries, ends = self._entries[: count * _ENTRY.size], self._ends[:count]
        return DynamicIndex(self.uuid, self.ctime, self.stored_csum, entries, ends)

    @property
    def entries(self) -> Digests:
        """(n * 40,): the entries as stored."""
        import numpy as np

        return np.frombuffer(self._entries, np.uint8)

    @property
    def ends(self) -> Ends:
        return self.entries.view("<u8")[:: _ENTRY.size // 8]

    @property
    def digests(self) -> Digests:
        return self.entries.reshape(-1, _ENTRY.size)[:, _ENTRY.size - DIGEST_SIZE :]

    @property
    def size(self) -> int:
        """Length of the stream in bytes."""
        size: int = self._ends[-1]
        return size

    def __len__(self) -> int:
        return len(self._ends)

    def csum(self) -> bytes:
        """The checksum, computed from the entries."""
        return hashlib.sha256(self._entries).digest()

    def digest(self, i: int) -> bytes:
        end = (i + 1) * _ENTRY.size
        return bytes(self._entries[end - DIGEST_SIZE : end])

    def start(self, i: int) -> int:
        """Offset of the first byte of chunk ``i``."""
        return self._ends[i - 1] if i else 0

    def end(self, i: int) -> int:
        """Offset behind the last byte of chunk ``i``."""
        end: int = self._ends[i]
        return end

    def sizes(self, start: int = 0, stop: int | None = None) -> Ends:
        """Length in bytes of every chunk, or of the chunks [start, stop)."""
        import numpy as np

        return np.diff(self.ends[start:stop], prepend=np.uint64(self.start(start)))

    def find(self, offset: int) -> int:
        """The number of the chunk that holds byte ``offset``; FormatError outside the stream."""
        _check_offset(offset, self.size)
        return bisect_right(self._ends, offset)


class FixedIndex:
    """Chunks of one size, the last one shorter where the image ends. ``digests`` (n, 32); ``size``: of the image in
    bytes, not covered by the csum; ``chunk_size`` in bytes; the others as in DynamicIndex."""

    __slots__ = ("_digests", "chunk_size", "ctime", "size", "stored_csum", "uuid")

    def __init__(
        self, uuid: bytes, ctime: int, stored_csum: bytes, size: int, chunk_size: int, digests: memoryview
    ) -> None:
        """``digests`` as bytes."""
        self.uuid = uuid
        self.ctime = ctime
        self.stored_csum = stored_csum
        self.size = size
        self.chunk_size = chunk_size
        self._digests = digests

    @classmethod
    def decode(cls, buffer: IndexBuffer) -> FixedIndex:
        """Views over ``buffer``, a whole file. FormatError: magic, sizes, or a length that does not fit them."""
        data = memoryview(buffer).cast("B")
        uuid, ctime, csum = _decode_header(data, "fixed index", FIXED_MAGIC)
        size, chunk_size = _IMAGE.unpack_from(data, _HEADER.size)
        _check_image(size, chunk_size)
        count = -(-size // chunk_size)
        header = len(data) - count * DIGEST_SIZE
        if header not in (HEADER_SIZE, LARGE_HEADER_SIZE):
            expected = f"{HEADER_SIZE + count * DIGEST_SIZE} for {count} chunks"
            raise FormatError("fixed index length", expected=expected, got=len(data))
        return cls(uuid, ctime, csum, size, chunk_size, data[header:])

    @property
    def digests(self) -> Digests:
        import numpy as np

        return np.frombuffer(self._digests, np.uint8).reshape(-1, DIGEST_SIZE)

    @property
    def ends(self) -> Ends:
        """Exclusive end of each chunk in the image, (n,); computed on each use."""
        import numpy as np

        ends = np.arange(1, len(self) + 1, dtype=np.uint64)
        ends *= np.uint64(self.chunk_size)
        ends[-1] = self.size
        return ends

    def __len__(self) -> int:
        return len(self._digests) // DIGEST_SIZE

    def csum(self) -> bytes:
        """The checksum, computed from the digests."""
        return hashlib.sha256(self._digests).digest()

    def digest(self, i: int) -> bytes:
        return bytes(self._digests[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE])

    def start(self, i: int) -> int:
        """Offset of the first byte of chunk ``i``."""
        return i * self.chunk_size

    def end(self, i: int) -> int:
        """Offset behind the last byte of chunk ``i``."""
        return min((i + 1) * self.chunk_size, self.size)

    def sizes(self, start: int = 0, stop: int | None = None) -> Ends:
        """Length in bytes of every chunk, or of the chunks [start, stop)."""
        import numpy as np

        last = len(self) - 1
        numbers = range(len(self))[start:stop]
        sizes = np.full(len(numbers), self.chunk_size, np.uint64)
        if last in numbers:
            sizes[-1] = self.size - self.start(last)
        return sizes

    def find(self, offset: int) -> int:
        """The number of the chunk that holds byte ``offset``; FormatError outside the image."""
        _check_offset(offset, self.size)
        return offset // self.chunk_size


Index = DynamicIndex | FixedIndex


def decode_index(buffer: IndexBuffer) -> Index:
    """Decode an index file of either kind by its magic; FormatError."""
    magic = bytes(memoryview(buffer).cast("B")[:8])
    if magic == DYNAMIC_MAGIC:
        return DynamicIndex.decode(buffer)
    if magic == FIXED_MAGIC:
        return FixedIndex.decode(buffer)
    raise FormatError("index magic", offset=0, expected="that of a dynamic or fixed index", got=magic.hex())


class _Writer:
    """What the two writers share: pending entry bytes and the running checksum over those already taken."""

    def __init__(self, uuid: bytes, ctime: int) -> None:
        if len(uuid) != 16:
            raise FormatError("index uuid", expected="16 bytes", got=len(uuid))
        self.count = 0
        self._uuid = uuid
        self._ctime = ctime
        self._end = 0
        self._sha = hashlib.sha256()
        self._pending = bytearray()

    def take(self) -> bytes:
        """The entries added since the last call, to be appended to the file."""
        entries = bytes(self._pending)
        self._sha.update(entries)
        self._pending.clear()
        return entries

    @property
    def csum(self) -> bytes:
        """The checksum over everything added so far; the final one goes into the manifest."""
        sha = self._sha.copy()
        sha.update(self._pending)
        return sha.digest()

    def _append(self, end: int, entry: bytes) -> None:
        self._pending += entry
        self._end = end
        self.count += 1

    def _check_finished(self, what: str) -> None:
        if not self.count:
            raise FormatError(f"{what} without a chunk cannot be read back")
        if self._pending:
            raise ValueError("entries were added after the last take(): they are not in the file")


class DynamicIndexWriter(_Writer):
    """Builds a dynamic index as chunks come in; the caller does the writing.

    The file is ``header()``, then what each ``take()`` gives; at last ``finish()`` replaces the header. Memory is that
    of the entries not yet taken (40 bytes each). ``count`` chunks were added.
    """

    @property
    def size(self) -> int:
        """Length of the stream so far in bytes."""
        return self._end

    def header(self) -> bytes:
        """The header to start the file with: 4096 bytes, csum zero."""
        return self._header(_NO_CSUM)

    def add(self, end: int, digest: bytes) -> None:
        """The next chunk: it ends (exclusive) at stream offset ``end``. FormatError for an end that does not grow."""
        if not self._end < end <= _MAX_OFFSET or len(digest) != DIGEST_SIZE:
            _refuse_chunk(self.count, f"an end above {self._end}", end, digest)
        self._append(end, _ENTRY.pack(end, digest))

    def add_run(self, digest: bytes, size: int, count: int) -> None:
        """The next ``count`` chunks are of ``size`` bytes and the same contents: a hole. FormatError as for ``add``."""
        end = self._end + count * size
        if count < 1 or size < 1 or end > _MAX_OFFSET or len(digest) != DIGEST_SIZE:
            _refuse_chunk(self.count, f"{count} chunks up to {_MAX_OFFSET}", end, digest)
        self._pending += b"".join([_ENTRY.pack(each, digest) for each in range(self._end + size, end + 1, size)])
        self._end = end
        self.count += count

    def finish(self) -> bytes:
        """The final header. FormatError without any chunk, ValueError when entries were not taken."""
        self._check_finished("a dynamic index")
        return self._header(self.csum)

    def _header(self, csum: bytes) -> bytes:
        return _HEADER.pack(DYNAMIC_MAGIC, self._uuid, self._ctime, csum).ljust(HEADER_SIZE, b"\0")


class FixedIndexWriter(_Writer):
    """Builds a fixed index in the order of the image; used like DynamicIndexWriter.

    ``size`` is the image size in bytes, or None for a stream: then it is known after the last chunk. ``chunk_size`` is
    a power of two.
    """

    def __init__(self, uuid: bytes, ctime: int, size: int | None, chunk_size: int) -> None:
        super().__init__(uuid, ctime)
        _check_image(chunk_size if size is None else size, chunk_size)
        self._image_size = size
        self._chunk_size = chunk_size

    @property
    def size(self) -> int:
        """The image size given, else that of the chunks so far; bytes."""
        return self._end if self._image_size is None else self._image_size

    def header(self) -> bytes:
        """The header to start the file with: 4096 bytes, csum zero, size 0 if it is not known."""
        return self._header(self._image_size or 0, _NO_CSUM)

    def add(self, end: int, digest: bytes) -> None:
        """The next chunk, ending (exclusive) at ``end``: a full one, or the last. FormatError for any other end."""
        full = (self.count + 1) * self._chunk_size
        if self._image_size is None:
            fits = self.count * self._chunk_size == self._end < end <= min(full, _MAX_OFFSET)
            expected = f"an end up to {full}, after full chunks only"
        else:
            fits = self._end < end == min(full, self._image_size)
            expected = f"end {min(full, self._image_size)}, inside the image"
        if not fits or len(digest) != DIGEST_SIZE:
            _refuse_chunk(self.count, expected, end, digest)
        self._append(end, digest)

    def add_run(self, digest: bytes, count: int) -> None:
        """The next ``count`` chunks are full ones of the same contents: a hole. FormatError where they do not fit."""
        end = (self.count + count) * self._chunk_size
        fits = count > 0 and self._end == self.count * self._chunk_size
        limit = _MAX_OFFSET if self._image_size is None else self._image_size
        if not fits or end > limit or len(digest) != DIGEST_SIZE:
            _refuse_chunk(self.count, f"{count} full chunks up to {limit}", end, digest)
        self._pending += digest * count
        self._end = end
        self.count += count

    def finish(self) -> bytes:
        """The final header. FormatError when chunks are missing, ValueError when entries were not taken."""
        self._check_finished("a fixed index")
        if self._end != self.size:
            raise FormatError("fixed index: chunks of the image are missing", expected=self.size, got=self._end)
        return self._header(self.size, self.csum)

    def _header(self, size: int, csum: bytes) -> bytes:
        head = _HEADER.pack(FIXED_MAGIC, self._uuid, self._ctime, csum) + _IMAGE.pack(size, self._chunk_size)
        return head.ljust(HEADER_SIZE, b"\0")


def _decode_header(data: memoryview, what: str, magic: bytes) -> tuple[bytes, int, bytes]:
    """(uuid, ctime, csum)."""
    if len(data) < HEADER_SIZE:
        raise FormatError(f"{what} length", expected=f"a header of {HEADER_SIZE} bytes", got=len(data))
    found, uuid, ctime, csum = _HEADER.unpack_from(data)
    if found != magic:
        raise FormatError(f"{what} magic", offset=0, expected=magic.hex(), got=found.hex())
    return uuid, ctime, csum


def _check_few(ends: memoryview, header: int) -> None:
    before = 0
    for i, end in enumerate(ends):
        if end <= before:
            _refuse_end(header, i, before, end)
        before = end


def _check_increasing(ends: Ends, header: int) -> None:
    import numpy as np

    before = np.uint64(0)
    for first in range(0, len(ends), _CHECK_BLOCK):
        block = ends[first : first + _CHECK_BLOCK]
        wrong = np.empty(len(block), np.bool_)
        wrong[0] = block[0] <= before
        np.less_equal(block[1:], block[:-1], out=wrong[1:])
        if wrong.any():
            i = int(wrong.argmax())
            _refuse_end(header, first + i, int(block[i - 1] if i else before), int(block[i]))
        before = block[-1]


def _refuse_end(header: int, i: int, before: int, end: int) -> NoReturn:
    where = header + i * _ENTRY.size
    raise FormatError(f"dynamic index entry {i}: end", offset=where, expected=f"above {before}", got=end)


def _check_image(size: int, chunk_size: int) -> None:
    if not 0 < chunk_size <= _MAX_OFFSET or chunk_size & (chunk_size - 1):
        raise FormatError("fixed index chunk size", offset=72, expected="a power of two", got=chunk_size)
    if not 0 < size <= _MAX_OFFSET:
        raise FormatError("fixed index image size", offset=64, expected="at least 1", got=size)


def _check_offset(offset: int, size: int) -> None:
    if not 0 <= offset < size:
        raise FormatError("stream offset", offset=offset, expected=f"0 to {size - 1}")


def _refuse_chunk(number: int, expected: str, end: int, digest: bytes) -> NoReturn:
    raise FormatError(f"index entry {number}", expected=f"{expected}; 32 bytes", got=f"{end}; {len(digest)} bytes")
