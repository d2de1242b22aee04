"""Streams that become index files: cut where they are written, hashed and stored by other threads.

archiver's thread: write, cut -> (chunks, in place) -> workers: hash, dedup, compress, write -> index, in stream order

Cutting is a stage of its own but not a thread of its own: with a third kind of thread it was not faster (both take and
give back the interpreter lock all the time), and every chunk had to change hands once more. The workers' calls are long
and run without the lock; they have a lower priority than the archiver's thread, which they all wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from archiver.backup.deduplicator import Deduplicator
from archiver.backup.slabs import Slab, SlabPool
from archiver.core.disk import explained
from archiver.core.pipeline import Channel, Pipeline, chunk_workers, yield_to_main_thread
from archiver.store import layout as names
from archiver.store.counters import Counters
from archiver.store.sessions import Session
from formats.blob import BlobEncoder
from formats.chunker import Chunker, PayloadChunker
from formats.crypt import CryptConfig, chunk_digest
from formats.index import DynamicIndexWriter, FixedIndexWriter
from formats.wire import Buffer

_CUT_EVERY = 512 << 10  # bytes written before the chunker looks at them
_INDEX_ENTRIES_AT_ONCE = 8  # what a run that is interrupted leaves to the next one lacks fewer than that
_RUN_AT_ONCE = 1 << 16  # entries
_QUEUED_CHUNKS = 16
_ZEROS = 1 << 20


def _ignore(*offsets: int) -> None:
    """Where files begin does not matter to a stream of another kind."""


class _Chunk(NamedTuple):
    stream: IndexedStream
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
    """The workers of a run, which hash, compress and store chunks."""

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
        self.crypt = crypt
        self.chunks: Channel[_Chunk] = Channel(pipeline, _QUEUED_CHUNKS)
        for number in range(chunk_workers()):
            pipeline.start(self._work, f"store-{number}")

    def close(self) -> None:
        """No more streams will come; the threads end."""
        self.chunks.close()

    def _work(self) -> None:
        yield_to_main_thread()
        encoder = BlobEncoder(self.crypt)
        while (chunk := self.chunks.get()) is not None:
            data = chunk.slab.view[chunk.start : chunk.end]
            digest = chunk_digest(data, self.crypt)
            new, stored = False, 0
            if self._deduplicator.claim(digest, len(data)):
                new, stored = self._deduplicator.store(digest, data, encoder)
            chunk.slab.drop()
            chunk.stream.stored(chunk.position, digest, chunk.end - chunk.start, new, stored)


class IndexedStream:
    """A stream that becomes the index file ``filename``; how it is cut is for the class that writes it."""

    def __init__(self, machinery: Machinery, filename: str, index: DynamicIndexWriter | FixedIndexWriter) -> None:
        self.filename = filename
        self.counters = Counters()
        self.written: Callable[[int, bytes], None] | None = None  # told how many entries are in the file, their csum
        self._machinery = machinery
        self._chunk_count = 0
        # the workers' side
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[bytes, int, int]] = {}
        self._next = 0
        self._index = index
        self._taken = 0
        self._end = 0
        self._expected: int | None = None
        self._ready = False
        path = machinery.session.file(filename)
        with explained("write", path):
            self._file = machinery.session.disk.create(path, names.FILE_MODE)
            self._file.append(self._index.header())

    # -- the archiver's thread ---------------------------------------------------------------------------------------

    def _hand_out(self, slab: Slab, start: int, end: int) -> None:
        """The next chunk is what ``slab`` holds from ``start`` to ``end``."""
        slab.hold()
        self._machinery.chunks.put(_Chunk(self, self._chunk_count, slab, start, end))
        self._chunk_count += 1

    def _refer(self, digest: bytes, size: int, count: int = 1, *, reused: bool) -> None:
        """The next ``count`` chunks are this one of ``size`` bytes, which the store has or is just getting."""
        self.stored(self._chunk_count, digest, size, new=False, stored=0, count=count, reused=reused)
        self._chunk_count += count

    def _finish(self) -> StreamResult:
        """All chunks were told: wait until they are stored, and the index file is written."""
        self._expect(self._chunk_count)
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

    # -- workers -----------------------------------------------------------------------------------------------------

    def stored(
        self, position: int, digest: bytes, size: int, new: bool, stored: int, *, count: int = 1, reused: bool = False
    ) -> None:
        """Chunk number ``position``, and with ``count`` those after it, which are the same, are in the store; entries
        reach the index in stream order."""
        with self._lock:
            if reused:
                self.counters.reused_chunks += count
                self.counters.reused_bytes += count * size
            self.counters.chunks += count
            self.counters.size += count * size
            if new:
                self.counters.new_chunks += 1
                self.counters.new_bytes += size
                self.counters.stored_bytes += stored
            self._waiting[position] = (digest, size, count)
            while self._next in self._waiting:
                digest, size, count = self._waiting.pop(self._next)
                self._next += count
                self._enter(digest, size, count)
            complete = self._next == self._expected
        if complete:
            self._complete()

    def _enter(self, digest: bytes, size: int, count: int) -> None:
        """Into the index."""
        index = self._index
        self._end += count * size
        while count > 1:
            part = min(count - 1, _RUN_AT_ONCE)
            if isinstance(index, FixedIndexWriter):
                index.add_run(digest, part)
            else:
                index.add_run(digest, size, part)
            count -= part
            self._write_entries()
        index.add(self._end, digest)
        if index.count - self._taken >= _INDEX_ENTRIES_AT_ONCE:
            self._write_entries()

    def _write_entries(self) -> None:
        with explained("write", self._machinery.session.file(self.filename)):
            self._file.append(self._index.take())
        self._taken = self._index.count
        if self.written is not None:
            self.written(self._index.count, self._index.csum)

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


class Stream(IndexedStream):
    """A stream that is cut by its contents. ``write``/``reserve``/``commit`` are called by one thread, the archiver's.

    ``suggest(*offsets)``: files start at these offsets of the stream, told before bytes behind them are committed.
    """

    def __init__(self, machinery: Machinery, filename: str, chunker: Chunker | PayloadChunker, slabs: SlabPool) -> None:
        self.uuid = machinery.uuid()
        super().__init__(machinery, filename, DynamicIndexWriter(self.uuid, machinery.now))
        self._chunker = chunker
        self.suggest = chunker.suggest if isinstance(chunker, PayloadChunker) else _ignore
        self._slabs = slabs
        self._slab = slabs.acquire()
        self._view = self._slab.view
        self._pos = self._slab.headroom
        self._limit = self._slab.size
        self._cut_at = self._pos + _CUT_EVERY
        self._chunk_start = self._pos
        self._zeros: bytes | None = None  # digest of the largest chunk of zeros, when one was handed out

    def write(self, data: Buffer) -> None:
        end = self._pos + len(data)
        if end > self._limit:
            self._write_across(data)
            return
        self._view[self._pos : end] = data
        self._pos = end
        if end >= self._cut_at:
            self._cut(last=False)

    def _write_across(self, data: Buffer) -> None:
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
            self._next_slab()
        return self._view[self._pos : self._limit]

    def commit(self, length: int) -> None:
        self._pos += length
        if self._pos >= self._cut_at:
            self._cut(last=False)

    def write_zeros(self, length: int) -> None:
        """``length`` zero bytes: a hole.

        The hash never passes in zeros, so a chunk that begins in a hole ends at the largest size, if the hole is that
        long. The first of these takes the way of any other; all others are the same and only referred to, at once.
        """
        largest = self._chunker.maximum
        done = 0  # zeros that were put into memory
        while length:
            if self._zeros is not None and self._pos == self._chunk_start and length >= largest:
                count = length // largest
                self._refer(self._zeros, largest, count, reused=False)
                self._chunker.advance(count * largest)
                length -= count * largest
                continue
            room = self.reserve()
            missing = largest - (self._pos - self._chunk_start)
            is_hole = largest - missing <= done  # nothing else is in the open chunk
            count = min(len(room), length, _ZEROS, missing if is_hole else length)
            self._slab.array[self._pos : self._pos + count] = 0
            if is_hole and count == missing and length - count >= largest and self._zeros is None:
                zeros = self._slab.view[self._chunk_start : self._pos + count]
                self._zeros = chunk_digest(zeros, self._machinery.crypt)
            self.commit(count)
            if is_hole and count == missing:
                self._cut(last=False)
            done += count
            length -= count

    def _cut(self, *, last: bool) -> None:
        """Hand out the chunks whose ends are decided by the bytes written so far."""
        self._cut_at = self._pos + _CUT_EVERY
        while length := self._chunker.scan(self._slab.array[self._chunk_start : self._pos], last):
            self._end_chunk(length)

    def inject(self, digest: bytes, size: int) -> None:
        """A chunk that the store has goes into the stream here, and what was written before is cut off from it."""
        self._cut(last=False)
        if self._pos > self._chunk_start:
            self._end_chunk(self._pos - self._chunk_start)
        assert isinstance(self._chunker, PayloadChunker)
        self._chunker.restart()
        self._chunker.advance(size)
        self._refer(digest, size, reused=True)

    def _end_chunk(self, length: int) -> None:
        start = self._chunk_start
        self._chunk_start += length
        self._hand_out(self._slab, start, start + length)

    def _next_slab(self) -> None:
        """Go on in a new slab: the bytes of the open chunk move into its headroom."""
        self._cut(last=False)
        old, tail = self._slab, self._pos - self._chunk_start
        self._slab = slab = self._slabs.acquire()
        start = slab.headroom - tail
        slab.view[start : slab.headroom] = old.view[self._chunk_start : self._pos]
        old.drop()
        self._view, self._limit = slab.view, slab.size
        self._chunk_start, self._pos = start, slab.headroom
        self._cut_at = self._pos + _CUT_EVERY

    def finish(self) -> StreamResult:
        """The stream is complete: wait until all of it is stored and its index file is written."""
        self._cut(last=True)
        self._slab.drop()
        return self._finish()
