"""Between those who use chunk files and the garbage collection that removes them: ``.archiver/chunks.lock``.

=============  =====================================================================================================
byte           lock
=============  =====================================================================================================
0 to 65535     a shard: shared while a chunk in it is touched or put into place, exclusive while unused ones are
               looked at and removed. So nothing can come between a look at an access time and the unlink, nor
               between a touch and what it promises.
65536          shared by a writer that waits for a garbage collection to end
65537          exclusive while a garbage collection runs that ends early for such a writer
65538          the door to the shards: taken, of the same kind, before the lock on a shard and given back once that is
               held. So who waits for a shard lets nobody overtake: those who share one follow each other without a
               gap, and would keep a garbage collection waiting; and it, shard after shard, those who want them all.
=============  =====================================================================================================

The file's mtime is the start of the last garbage collection that ran beside writers. A touch is never earlier than it,
nor than the start of the writer's own session: what was used during either is known by its access time, however the
clock was set meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from archiver.core.disk import Disk, explained
from archiver.core.locks import lock_range, range_is_locked, unlock_range, wait_range
from archiver.store import layout as names
from archiver.store.layout import Layout

SHARDS = 1 << 16

_WAITING = SHARDS
_YIELDING = SHARDS + 1
_DOOR = SHARDS + 2


class ChunkLock:
    """Usable from several threads: each use has an open file of its own, as such locks belong to the open file."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._idle: list[int] = []

    def _open(self) -> int:
        path = self._layout.chunk_lock
        with explained("open", path):
            try:
                return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                pass
            with suppress(FileExistsError):
                self._disk.make_directory(self._layout.private, names.PRIVATE_MODE)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, names.FILE_MODE)
            os.utime(fd, ns=(0, 0))
            os.fchmod(fd, names.FILE_MODE)
            with suppress(OSError):  # root may be the first one to need it, in somebody else's store
                owner = os.stat(self._layout.private)
                os.fchown(fd, owner.st_uid, owner.st_gid)
            return fd

    def _take(self) -> int:
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    @contextmanager
    def _locked(self, start: int, length: int, *, exclusive: bool) -> Iterator[int]:
        """An open file that has the lock on these bytes. Whoever has one must not ask for another: it may be waited for
        behind the door."""
        fd = self._take()
        try:
            with explained("lock", self._layout.chunk_lock):
                wait_range(fd, _DOOR, 1, exclusive=exclusive)
                wait_range(fd, start, length, exclusive=exclusive)
                unlock_range(fd, _DOOR, 1)
            yield fd
        finally:
            try:
                unlock_range(fd, 0, 0)
                self._idle.append(fd)
            except OSError:
                os.close(fd)  # the lock goes with it

    @contextmanager
    def used(self, digest: bytes | None = None) -> Iterator[int]:
        """While a chunk (None: many of them) is touched or put into place; the earliest access time that it may get, in
        ns. 10 us: many should be touched at a time."""
        start, length = (0, SHARDS) if digest is None else (int.from_bytes(digest[:2]), 1)
        with self._locked(start, length, exclusive=False) as fd:
            with explained("look at", self._layout.chunk_lock):
                earliest = os.fstat(fd).st_mtime_ns
            yield earliest

    @contextmanager
    def cleared(self, shard: int) -> Iterator[None]:
        """While chunks of a shard are looked at and removed."""
        with self._locked(shard, 1, exclusive=True):
            yield

    def begin(self, now_ns: int) -> None:
        """From now on nothing is touched with an earlier time. The clock was wrong the last time, or is it now: what
        counts is the last word."""
        fd = self._take()
        try:
            with explained("set the time of", self._layout.chunk_lock):
                os.utime(fd, ns=(now_ns, now_ns))
        finally:
            self._idle.append(fd)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While a writer waits for a garbage collection."""
        fd = self._open()
        try:
            with explained("lock", self._layout.chunk_lock):
                wait_range(fd, _WAITING, 1, exclusive=False)
            yield
        finally:
            os.close(fd)

    def yields(self) -> bool:
        """Whether a garbage collection runs that ends early for a writer that waits."""
        return self._held(_YIELDING)

    @contextmanager
    def yielding(self) -> Iterator[None]:
        """While a garbage collection runs that asks ``writer_waits`` now and then."""
        fd = self._open()
        try:
            with explained("lock", self._layout.chunk_lock):
                lock_range(fd, _YIELDING, 1, exclusive=True)
            yield
        finally:
            os.close(fd)

    def writer_waits(self) -> bool:
        return self._held(_WAITING)

    def _held(self, byte: int) -> bool:
        try:
            fd = self._idle.pop()  # a garbage collection asks for every shard
        except IndexError:
            try:
                fd = os.open(self._layout.chunk_lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return False  # it was never used, or is not ours to write: then nobody waits for us
        try:
            with explained("look at the locks of", self._layout.chunk_lock):
                return range_is_locked(fd, byte, 1)
        finally:
            self._idle.append(fd)

    def close(self) -> None:
        while self._idle:
            os.close(self._idle.pop())


def tell_unlisted(layout: Layout, disk: Disk) -> None:
    """Files may lie in the shards now that the database does not know: the next garbage collection looks at all."""
    with suppress(OSError):  # they wait longer then
        disk.put(layout.unlisted, [], names.FILE_MODE, sync=False)
