"""Streams that become index files: written by the archiver, cut, hashed and stored by other threads.

writer thread -> (filled parts of slabs) -> cutter thread -> (chunks) -> workers -> index file, in stream order
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from archiver.backup.deduplicator import Deduplicator
from archiver.backup.slabs import Slab, SlabPool
from archiver.core.disk import explained
from archiver.core.pipeline import Channel, Pipeline
from archiver.store import layout as names
from archiver.store.counters import Counters
from archiver.store.sessions import Session
from formats.blob import BlobEncoder
from formats.chunker import Chunker, PayloadChunker
from formats.crypt import CryptConfig, chunk_digest
from formats.index import DynamicIndexWriter

_TELL_EVERY = 512 << 10  # bytes written before the cutter is told
_INDEX_ENTRIES_AT_ONCE = 1024
_QUEUED_CHUNKS = 4
_QUEUED_PARTS = 64
_ZEROS = 1 << 20


class _Part(NamedTuple):
    """What the cutter is told: ``slab`` is filled up to ``end``; ``last``: the stream ends there."""

    stream: Stream
    slab: Slab
    end: int
    suggestions: list[int]
    last: bool


class _Chunk(NamedTuple):
    stream: Stream
    position: int  # number of the chunk in its stream
    slab: Slab
    start: int
    end: int


class StreamResult(NamedTuple):
    """``csum`` as in the manifest."""

    filename: str
    size: int
    csum: bytes
    counters: Counters


class Machinery:
    """The threads of a run: one cutter, and workers that hash, compress and store."""

    def __init__(
        self,
        pipeline: Pipeline,
        deduplicator: Deduplicator,
        session: Session,
        crypt: CryptConfig | None,
        uuid: Callable[[], bytes],
        now: int,
    ) -> None:
        """``crypt``: chunks are encrypted with it. ``uuid()`` and ``now`` go into index headers."""
        self.pipeline = pipeline
        self.session = session
        self.uuid = uuid
        self.now = now
        self._deduplicator = deduplicator
        self._crypt = crypt
        self.parts: Channel[_Part] = Channel(pipeline, _QUEUED_PARTS)
        self._chunks: Channel[_Chunk] = Channel(pipeline, _QUEUED_CHUNKS)
        pipeline.start(self._cut, "cut")
        for number in range(os.cpu_count() or 2):
            pipeline.start(self._work, f"store-{number}")

    def close(self) -> None:
        """No more streams will come; the threads end."""
        self.parts.close()

    def _cut(self) -> None:
        while (part := self.parts.get()) is not None:
            part.stream.cut(part, self._chunks)
        self._chunks.close()

    def _work(self) -> None:
        encoder = BlobEncoder(self._crypt)
        while (chunk := self._chunks.get()) is not None:
            data = chunk.slab.view[chunk.start : chunk.end]
            digest = chunk_digest(data, self._crypt)
            new, stored = False, 0
            if self._deduplicator.claim(digest):
                new, stored = self._deduplicator.store(digest, data, encoder)
            chunk.slab.drop()
            chunk.stream.stored(chunk.position, digest, chunk.end - chunk.start, new, stored)


class Stream:
    """One stream of a snapshot. ``write``/``reserve``/``commit`` are called by one thread, the archiver's."""

    def __init__(self, machinery: Machinery, filename: str, chunker: Chunker | PayloadChunker, slabs: SlabPool) -> None:
        self.filename = filename
        self._machinery = machinery
        self._chunker = chunker
        self._slabs = slabs
        # the writer's side
        self._slab = slabs.acquire()
        self._view = self._slab.view
        self._pos = self._slab.headroom
        self._limit = self._slab.size
        self._tell_at = self._pos + _TELL_EVERY
        self._suggestions: list[int] = []
        # the cutter's side
        self._cut_slab: Slab | None = None
        self._chunk_start = 0
        self._filled = 0
        self._cut_count = 0
        # the workers' side
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[bytes, int]] = {}
        self._next = 0
        self._index = DynamicIndexWriter(machinery.uuid(), machinery.now)
        self._end = 0
        self._expected: int | None = None
        self._ready = False
        self.counters = Counters()
        path = machinery.session.file(filename)
        with explained("write", path):
            self._file = machinery.session.disk.create(path, names.FILE_MODE)
            self._file.append(self._index.header())

    # -- writer ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        end = self._pos + len(data)
        if end > self._limit:
            self._write_across(data)
            return
        self._view[self._pos : end] = data
        self._pos = end
        if end >= self._tell_at:
            self._tell(last=False)

    def _write_across(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            room = self.reserve()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self.commit(count)
            rest = rest[count:]

    def reserve(self) -> memoryview:
        """Free memory (at least one byte) to put the next bytes of the stream into; then ``commit``."""
        if self._pos == self._limit:
            self._tell(last=False)
            full = self._slab
            self._slab = self._slabs.acquire()
            full.drop()
            self._view = self._slab.view
            self._pos = self._slab.headroom
            self._limit = self._slab.size
            self._tell_at = self._pos + _TELL_EVERY
        return self._view[self._pos : self._limit]

    def commit(self, length: int) -> None:
        self._pos += length
        if self._pos >= self._tell_at:
            self._tell(last=False)

    def write_zeros(self, length: int) -> None:
        """``length`` zero bytes: a hole."""
        while length:
            room = self.reserve()
            count = min(len(room), length, _ZEROS)
            self._slab.array[self._pos : self._pos + count] = 0
            self.commit(count)
            length -= count

    def suggest(self, offset: int) -> None:
        """A file starts at stream offset ``offset``, which is the current end of the stream."""
        self._suggestions.append(offset)

    def _tell(self, *, last: bool) -> None:
        self._slab.hold()
        suggestions, self._suggestions = self._suggestions, []
        self._tell_at = self._pos + _TELL_EVERY
        self._machinery.parts.put(_Part(self, self._slab, self._pos, suggestions, last))

    def finish(self) -> StreamResult:
        """The stream is complete: wait until all of it is stored and its index file is written."""
        self._tell(last=True)
        self._slab.drop()
        pipeline = self._machinery.pipeline
        with pipeline.changed:
            while not self._ready:
                pipeline.wait()
        path = self._machinery.session.file(self.filename)
        with explained("write", path):
            self._file.append(self._index.take())
            self._file.patch(self._index.finish(), 0)
            self._file.close()
        self._machinery.session.barrier.note(path)
        return StreamResult(self.filename, self._index.size, self._index.csum, self.counters)

    # -- cutter ------------------------------------------------------------------------------------------------------

    def cut(self, part: _Part, chunks: Channel[_Chunk]) -> None:
        """Cut what is decided by the bytes up to the end of ``part``; runs in the cutter's thread."""
        if isinstance(self._chunker, PayloadChunker):
            for offset in part.suggestions:
                self._chunker.suggest(offset)
        slab = self._cut_slab
        if slab is not part.slab:
            self._move_tail(part.slab)
            slab = part.slab
        else:
            slab.drop()  # already held
        self._filled = part.end
        while True:
            open_bytes = slab.array[self._chunk_start : self._filled]
            length = self._chunker.scan(open_bytes, part.last)
            if not length:
                break
            slab.hold()
            start = self._chunk_start
            self._chunk_start += length
            chunks.put(_Chunk(self, self._cut_count, slab, start, start + length))
            self._cut_count += 1
        if part.last:
            slab.drop()
            self._cut_slab = None
            self._expect(self._cut_count)

    def _move_tail(self, slab: Slab) -> None:
        """Go on in a new slab: the open chunk's bytes move into its headroom."""
        old = self._cut_slab
        tail = self._filled - self._chunk_start if old is not None else 0
        start = slab.headroom - tail
        if old is not None:
            slab.view[start : slab.headroom] = old.view[self._chunk_start : self._filled]
            old.drop()
        self._cut_slab = slab
        self._chunk_start = start

    # -- workers -----------------------------------------------------------------------------------------------------

    def stored(self, position: int, digest: bytes, size: int, new: bool, stored: int) -> None:
        """Chunk number ``position`` is in the store; entries reach the index in stream order."""
        with self._lock:
            self.counters.chunks += 1
            self.counters.size += size
            if new:
                self.counters.new_chunks += 1
                self.counters.new_bytes += size
                self.counters.stored_bytes += stored
            self._waiting[position] = (digest, size)
            while self._next in self._waiting:
                digest, size = self._waiting.pop(self._next)
                self._end += size
                self._index.add(self._end, digest)
                self._next += 1
                if self._next % _INDEX_ENTRIES_AT_ONCE == 0:
                    with explained("write", self._machinery.session.file(self.filename)):
                        self._file.append(self._index.take())
            complete = self._next == self._expected
        if complete:
            self._complete()

    def _expect(self, count: int) -> None:
        with self._lock:
            self._expected = count
            complete = self._next == count
        if complete:
            self._complete()

    def _complete(self) -> None:
        changed = self._machinery.pipeline.changed
        with changed:
            self._ready = True
            changed.notify_all()
