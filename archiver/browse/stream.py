"""The logical stream behind an index file: bytes at any offset, assembled from checked chunks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from archiver.store.indexes import Index
from formats.wire import Buffer

_KEPT_CHUNKS = 3


class ChunkSource(Protocol):
    """A ChunkReader, or what hands out the chunks that one has read."""

    def read(self, digest: bytes, size: int, *, encrypted: bool) -> Buffer:
        """The ``size`` plain bytes of a chunk."""


class ChunkStream:
    """For one thread. Every byte comes from a chunk whose kind, checksums, digest and length were enforced."""

    def __init__(self, index: Index, reader: ChunkSource, *, encrypted: bool) -> None:
        self.index = index
        self.size = index.size
        self.encrypted = encrypted
        self._reader = reader
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def chunk(self, number: int) -> bytes:
        """Plain bytes of chunk ``number`` of the index. Raises ChunkDamaged, KeyProblem or ArchiverError."""
        data = self._kept.get(number)
        if data is not None:
            self._kept.move_to_end(number)
            return data
        data = self._kept[number] = self._same(number) or self._load(number)
        if len(self._kept) > _KEPT_CHUNKS:
            self._kept.popitem(last=False)
        return data

    def _same(self, number: int) -> bytes | None:
        """Sparse files and images repeat one chunk again and again."""
        digest = self.index.digest(number)
        size = self.index.end(number) - self.index.start(number)
        for other, data in self._kept.items():
            if len(data) == size and self.index.digest(other) == digest:
                return data
        return None

    def _load(self, number: int) -> bytes:
        return self._decoded(self._reader, number)

    def _decoded(self, reader: ChunkSource, number: int) -> bytes:
        index = self.index
        size = index.end(number) - index.start(number)
        return bytes(reader.read(index.digest(number), size, encrypted=self.encrypted))

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; fewer only at the end of the stream."""
        length = min(length, self.size - offset)
        if length <= 0 or offset < 0:
            return b""
        pieces: list[bytes] = []
        number = self.index.find(offset)
        while length > 0:
            data = self.chunk(number)
            inner = offset - self.index.start(number)
            piece = data[inner : inner + length]
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
            number += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pieces(self, offset: int, length: int) -> Iterator[Buffer]:
        """The same bytes piece by piece, a chunk at most each."""
        end = min(offset + length, self.size)
        while offset < end:
            number = self.index.find(offset)
            data = memoryview(self.chunk(number))
            inner = offset - self.index.start(number)
            piece = data[inner : inner + end - offset]
            yield piece
            offset += len(piece)


class SharedStream(ChunkStream):
    """The same for several threads, over a source that is for several threads and keeps what was read itself."""

    def chunk(self, number: int) -> bytes:
        return self._load(number)


class Cursor:
    """A stream read from its start on (the decoder's input)."""

    def __init__(self, stream: ChunkStream) -> None:
        self._stream = stream
        self._offset = 0

    def read(self, length: int) -> bytes:
        data = self._stream.read_at(self._offset, length)
        self._offset += len(data)
        return data

    def skip(self, length: int) -> None:
        self._offset += length
