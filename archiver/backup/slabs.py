"""Buffers that a stream is written into and cut in place.

A slab is headroom + body. The stream is written into the body; when the body is full, the bytes that belong to a chunk
still open are copied into the headroom of the next slab, so that every chunk is one contiguous piece of memory that can
be hashed and compressed where it lies. A slab goes back to its pool when nobody refers to it any more.
"""

from __future__ import annotations

import mmap
import threading

import numpy as np
from numpy.typing import NDArray

from archiver.core.pipeline import Pipeline, Pool


class Slab:
    """``view`` and ``array`` are the same memory; the body starts at ``headroom``."""

    __slots__ = ("_lock", "_pool", "_users", "array", "headroom", "size", "view")

    def __init__(self, headroom: int, body: int) -> None:
        self.headroom = headroom
        self.size = headroom + body
        # Pages that are never touched take no memory.
        memory = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(memory)
        self.array: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        self._users = 0
        self._lock = threading.Lock()
        self._pool: Pool[Slab] | None = None

    def hold(self) -> None:
        with self._lock:
            self._users += 1

    def drop(self) -> None:
        with self._lock:
            self._users -= 1
            free = self._users == 0
        if free and self._pool is not None:
            self._pool.release(self)


class SlabPool:
    """``count`` slabs: the byte budget of the streams that share it."""

    def __init__(self, pipeline: Pipeline, *, headroom: int, body: int, count: int) -> None:
        self._pool: Pool[Slab] = Pool(pipeline, [Slab(headroom, body) for _ in range(count)])

    def acquire(self) -> Slab:
        """A slab held once by the caller; waits while all are in use."""
        slab = self._pool.acquire()
        slab._pool = self._pool
        slab.hold()
        return slab
