"""The stream of a disk image: chunks of one size, and those that are all zeros known without reading a hole twice.

The digest of a chunk of zeros is computed once. The first such chunk takes the way of any other, so that it is in the
store; all others are only referred to, a run of them in one step.
"""

from __future__ import annotations

import numpy as np

from archiver.backup.slabs import SlabPool
from archiver.backup.streams import IndexedStream, Machinery, StreamResult
from formats.crypt import chunk_digest
from formats.index import FixedIndexWriter

SLAB = 4 << 20  # bytes that are read at once


def image_slabs(machinery: Machinery, chunk_size: int, count: int) -> SlabPool:
    """Buffers for image streams with chunks of that size, a power of two."""
    return SlabPool(machinery.pipeline, headroom=0, body=max(SLAB, chunk_size), count=count)


class ImageStream(IndexedStream):
    """``reserve``, ``commit``, ``write_zeros``, ``refer`` and ``finish`` are called by one thread. ``position``: how
    many bytes there are so far."""

    def __init__(self, machinery: Machinery, filename: str, size: int | None, chunk_size: int, slabs: SlabPool) -> None:
        """``size`` of the image in bytes, None where only its end will tell."""
        super().__init__(machinery, filename, FixedIndexWriter(machinery.uuid(), machinery.now, size, chunk_size))
        self.position = 0
        self.chunk_size = chunk_size
        self._slabs = slabs
        self._slab = slabs.acquire()
        self._start = self._pos = 0  # of the open chunk, and behind its last byte, in the slab
        self._zeros: bytes | None = None  # digest of a chunk of zeros, when one was handed out

    def reserve(self) -> memoryview:
        """Free memory (at least one byte) to put the next bytes of the image into; then ``commit``."""
        if self._pos == self._slab.size:
            self._slab.drop()
            self._slab = self._slabs.acquire()
            self._start = self._pos = 0
        return self._slab.view[self._pos :]

    def commit(self, length: int) -> None:
        self._pos += length
        self.position += length
        while self._pos - self._start >= self.chunk_size:
            self._end_chunk()

    def _end_chunk(self) -> None:
        start, end = self._start, self._start + self.chunk_size
        self._start = end
        words = self._slab.array[start:end].view(np.uint64)
        if words[0] or words.max():
            self._hand_out(self._slab, start, end)
        elif self._zeros is None:
            self._zeros = chunk_digest(self._slab.view[start:end], self._machinery.crypt)
            self._hand_out(self._slab, start, end)
        else:
            self._refer(self._zeros, self.chunk_size, reused=False)

    def write_zeros(self, length: int) -> None:
        """``length`` zero bytes: a hole."""
        while length:
            count = length // self.chunk_size
            if count and self._zeros is not None and self._start == self._pos:
                self._refer(self._zeros, self.chunk_size, count, reused=False)
                count *= self.chunk_size
                self.position += count
            else:
                self.reserve()
                count = min(length, self.chunk_size - (self._pos - self._start))
                self._slab.array[self._pos : self._pos + count] = 0
                self.commit(count)
            length -= count

    def refer(self, digest: bytes, size: int) -> None:
        """A chunk that the store has comes next, where a chunk begins."""
        assert self._start == self._pos
        self._refer(digest, size, reused=True)
        self.position += size

    def finish(self) -> StreamResult:
        """The image is complete, with at least one byte: wait until all of it is stored and its index is written."""
        if self._pos > self._start:
            self._hand_out(self._slab, self._start, self._pos)
        self._slab.drop()
        return self._finish()
