"""Decoded chunks, kept for all who read at the same time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from hashlib import sha256
from queue import SimpleQueue

from archiver.store.chunks import ChunkReader
from archiver.store.layout import Layout
from formats.crypt import CryptConfig, chunk_digest
from formats.wire import Buffer

_KEPT = 48 << 20  # bytes
_READERS_AT_MOST = 2  # each of them may take 48 MiB
_SMALLEST_ZEROS = 64 << 10  # bytes; what a chunker makes of a run of zeros is a power of two

_Key = tuple[bytes, int, bool]


class ChunkCache:
    """A ChunkSource for any number of threads. Who asks for a chunk that another is reading waits for that one.

    Memory: 48 MiB of chunks, and the buffers of at most two readers.
    """

    def __init__(self, layout: Layout, crypt: CryptConfig | None) -> None:
        self._crypt = crypt
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._size = 0
        self._reading: dict[_Key, threading.Event] = {}
        self._readers: SimpleQueue[ChunkReader] = SimpleQueue()
        for _ in range(min(_READERS_AT_MOST, os.cpu_count() or 1)):
            self._readers.put(ChunkReader(layout, crypt))
        self._zeros: dict[tuple[int, bool], bytes] = {}

    def read(self, digest: bytes, size: int, *, encrypted: bool) -> Buffer:
        """As a ChunkReader; the buffer stays valid."""
        key = (digest, size, encrypted)
        while True:
            with self._lock:
                data = self._kept.get(key)
                if data is not None:
                    self._kept.move_to_end(key)
                    return data
                other = self._reading.get(key)
                if other is None:
                    mine = self._reading[key] = threading.Event()
                    break
            other.wait()
        try:
            return self._load(key)
        finally:
            with self._lock:
                del self._reading[key]
            mine.set()

    def _load(self, key: _Key) -> bytes:
        digest, size, encrypted = key
        reader = self._readers.get()
        try:
            data = bytes(reader.read(digest, size, encrypted=encrypted))
        finally:
            self._readers.put(reader)
        with self._lock:
            self._kept[key] = data
            self._size += size
            while self._size > _KEPT and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[0][1]
        return data

    def zeros(self, size: int, *, encrypted: bool) -> bytes | None:
        """The digest of a chunk of ``size`` zeros; None for a size that such a chunk never has."""
        if size < _SMALLEST_ZEROS or size & (size - 1):
            return None
        found = self._zeros.get((size, encrypted))
        if found is None:
            crypt = self._crypt if encrypted else None
            found = sha256(bytes(size)).digest() if crypt is None else chunk_digest(bytes(size), crypt)
            self._zeros[size, encrypted] = found
        return found
