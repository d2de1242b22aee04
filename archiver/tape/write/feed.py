"""Chunks read ahead of the drive: some threads read and check, the drive's thread takes them in their order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from archiver.core.pipeline import Pipeline
from archiver.errors import ArchiverError
from archiver.store.chunks import ChunkDamaged, ChunkReader
from archiver.store.store import Store
from formats.blob import BlobDecoder
from formats.errors import FormatError
from formats.tape.catalog import Digests

READERS = 2
_AHEAD = 32  # chunks
_AHEAD_BYTES = 48 << 20  # read ahead at most, one chunk for each reader apart
_LAST = (1 << 64) - 1


def in_inode_order(store: Store, digests: Digests) -> Digests:
    """The order in which a disk has the chunk files, about."""
    inodes = np.fromiter((_inode(store.layout.chunk(digest.tobytes().hex())) for digest in digests), np.uint64)
    return digests[np.argsort(inodes, kind="stable")]


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return _LAST


class ReadAhead:
    """A feed of the chunks ``digests`` of ``store``. Use ``reading``."""

    def __init__(self, store: Store, digests: Digests, pipeline: Pipeline) -> None:
        self._store, self._digests = store, digests
        self._pipeline = pipeline
        self._filled, self._emptied = pipeline.condition(), pipeline.condition()
        self._read: dict[int, bytes | ArchiverError] = {}
        self._bytes = 0
        self._next = 0  # to be read
        self._head = 0
        self._is_over = not len(digests)
        for number in range(min(READERS, len(digests))):
            pipeline.start(self._work, f"read-{number}")

    # -- the drive's thread ------------------------------------------------------------------------------------------

    def head(self) -> tuple[bytes, bytes] | None:
        """Raises ChunkDamaged, ArchiverError for one that cannot be read."""
        if self._head >= len(self._digests):
            return None
        with self._filled:
            while self._head not in self._read:
                self._pipeline.wait(self._filled)
            found = self._read[self._head]
        if isinstance(found, ArchiverError):
            raise found
        return self._digests[self._head].tobytes(), found

    def drop(self) -> None:
        with self._emptied:
            found = self._read.pop(self._head)
            self._bytes -= len(found) if isinstance(found, bytes) else 0
            self._head += 1
            self._emptied.notify_all()

    def stop(self) -> None:
        with self._emptied:
            self._is_over = True
            self._emptied.notify_all()

    # -- the readers -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        reader, decoder = self._store.reader(), BlobDecoder()
        while (number := self._take()) is not None:
            found = self._one(reader, decoder, self._digests[number].tobytes())
            with self._filled:
                self._read[number] = found
                self._bytes += len(found) if isinstance(found, bytes) else 0
                if number == self._head:
                    self._filled.notify_all()

    def _take(self) -> int | None:
        with self._emptied:
            while not self._is_over and (
                self._next - self._head >= _AHEAD or (self._bytes >= _AHEAD_BYTES and self._next > self._head)
            ):
                self._pipeline.wait(self._emptied)
            if self._is_over or self._next >= len(self._digests):
                return None
            self._next += 1
            return self._next - 1

    def _one(self, reader: ChunkReader, decoder: BlobDecoder, digest: bytes) -> bytes | ArchiverError:
        try:
            data = bytes(reader.stored(digest))
            decoder.check_stored(data)
        except FormatError as error:
            return ChunkDamaged(digest, f"is damaged: {error}")
        except ArchiverError as error:
            return error
        return data


@contextmanager
def reading(store: Store, digests: Digests) -> Iterator[ReadAhead]:
    with Pipeline() as pipeline:
        feed = ReadAhead(store, digests, pipeline)
        try:
            yield feed
        finally:
            feed.stop()
        pipeline.join()
