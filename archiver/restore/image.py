"""Images and blobs: one new file each, or a device that is overwritten.

A new file has no name before it is complete, durable and checked, so an interruption leaves nothing half.
"""

from __future__ import annotations

import errno
import os
import stat as st
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from archiver.browse.snapshot import Snapshot
from archiver.core.disk import explained, write_all
from archiver.core.events import Listener, Progress, ignore
from archiver.core.holes import is_hole
from archiver.core.linux import device_size, mount_points
from archiver.core.new_file import new_file
from archiver.core.pipeline import Cancelled, Pipeline, chunk_workers
from archiver.errors import Damaged, Held, NoSpace, UsageError
from archiver.restore.sparse import write_sparse
from archiver.source.content import read_into
from archiver.store.chunks import MAX_CHUNK
from archiver.store.indexes import Index
from formats.crypt import chunk_digest
from formats.manifest import FileInfo

_DEVICE = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC  # refused while a file system, swap, RAID or another disk uses it
_PROGRESS_BYTES = 64 << 20


def is_device(path: str) -> bool:
    try:
        return st.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def check_device(path: str, size: int, *, allowed: bool) -> None:
    """Raises UsageError unless the user ``allowed`` to overwrite it, Held when it is in use, NoSpace when it is smaller
    than ``size`` bytes."""
    if not allowed:
        raise UsageError(
            f"{path} is a device: everything on it would be replaced", hint="if that is what you want: --to-device"
        )
    fd = _open_device(path)
    try:
        room = device_size(fd)
    finally:
        os.close(fd)
    if room < size:
        raise NoSpace(f"{path} has {room} bytes, the image {size}", hint="use a device that is as large as the image")


def _open_device(path: str) -> int:
    with explained("open", path):
        places = mount_points(os.stat(path).st_rdev)
        if places:
            raise Held(f"{path} is mounted at {', '.join(places)}", hint="unmount it first")
        try:
            return os.open(path, _DEVICE)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Held(
                f"{path} is in use: it, or a part of it, is mounted, swap, or part of a RAID",
                hint="lsblk shows what uses it",
            ) from error


def write_image(snapshot: Snapshot, file: FileInfo, path: str, verify: bool, listener: Listener) -> int:
    """Write a disk image to the new file ``path``, sparse where it holds zeros, or to the device there; returns its
    size in bytes."""
    image = _Image(snapshot, file, listener)
    if is_device(path):
        fd = _open_device(path)
        try:
            with explained("write", path):
                image.write(fd, path, onto_device=True)
                os.fsync(fd)
                if verify:
                    image.check(fd, path)
        finally:
            os.close(fd)
        return image.size
    with new_file(path) as fd:
        os.ftruncate(fd, image.size)
        image.write(fd, path, onto_device=False)
        os.fsync(fd)
        if verify:
            image.check(fd, path)
    return image.size


def size_without_holes(snapshot: Snapshot, file: FileInfo) -> int:
    """Bytes of a disk image, but for those of chunks that are nothing but zeros. Raises Damaged."""
    return _Image(snapshot, file, ignore).size_without_holes()


def write_blob(snapshot: Snapshot, file: FileInfo, path: str, verify: bool, listener: Listener) -> int:
    """Write the contents of a blob to the new file ``path``; returns their size in bytes."""
    data = snapshot.blob(file)
    with new_file(path) as fd:
        write_all(fd, [data])
        os.fsync(fd)
        if verify:
            _drop_from_memory(fd)
            with open(os.dup(fd), "rb") as again:
                again.seek(0)
                if again.read(len(data) + 1) != data:
                    raise _different(path)
    return len(data)


class _Image:
    """Chunks of an image go to their places by several threads, in any order."""

    def __init__(self, snapshot: Snapshot, file: FileInfo, listener: Listener) -> None:
        snapshot.require_key(file)
        self._snapshot = snapshot
        self._encrypted = file.crypt_mode == "encrypt"
        self._crypt = snapshot.crypt if self._encrypted else None
        self._index: Index = snapshot.index(file)
        self._listener = listener
        self.size = self._index.size
        if self._index.end(0) > MAX_CHUNK:
            raise Damaged(f"{file.filename} of {snapshot.ref} is damaged: its chunks are larger than chunks can be")
        self._zeros = bytes(self._index.end(0))
        self._hole = chunk_digest(self._zeros, self._crypt)

    def size_without_holes(self) -> int:
        is_hole = (self._index.digests == np.frombuffer(self._hole, np.uint8)).all(axis=1)
        return int(self._index.sizes()[~is_hole].sum())

    def write(self, fd: int, path: str, *, onto_device: bool) -> None:
        """Into a new file of the image's size, or over what a device holds."""
        index = self._index

        def worker() -> Callable[[int], None]:
            reader = self._snapshot.store.reader(self._snapshot.crypt)

            def write(number: int) -> None:
                digest, start = index.digest(number), index.start(number)
                if digest == self._hole:
                    if onto_device:
                        _write_at(fd, memoryview(self._zeros), start)
                    return
                data = memoryview(reader.read(digest, index.end(number) - start, encrypted=self._encrypted))
                if onto_device:
                    _write_at(fd, data, start)
                else:
                    write_sparse(fd, data, start)

            return write

        self._each_chunk(worker, "restore")

    def check(self, fd: int, path: str) -> None:
        """Read everything again. Raises Damaged when a chunk is not what it was."""
        _drop_from_memory(fd)
        index = self._index

        def worker() -> Callable[[int], None]:
            buffer = memoryview(bytearray(len(self._zeros)))

            def check(number: int) -> None:
                digest, start, end = index.digest(number), index.start(number), index.end(number)
                if digest == self._hole and is_hole(fd, start, end):
                    return
                view = buffer[: end - start]
                if read_into(fd, view, start) != len(view) or chunk_digest(view, self._crypt) != digest:
                    raise _different(path)

            return check

        self._each_chunk(worker, "check")

    def _each_chunk(self, worker: Callable[[], Callable[[int], None]], task: str) -> None:
        """Call for every chunk what ``worker`` gives to each thread. Raises what was raised first."""
        index, lock = self._index, threading.Lock()
        numbers = iter(range(len(index)))
        done = said = 0

        def work() -> None:
            nonlocal done, said
            call = worker()
            while True:
                if pipeline.error is not None:
                    raise Cancelled
                with lock:
                    number = next(numbers, -1)
                if number < 0:
                    return
                call(number)
                with lock:
                    done += index.end(number) - index.start(number)
                    if done - said >= _PROGRESS_BYTES:
                        said = done
                        self._listener(Progress(task, 1, done, self.size))

        with Pipeline() as pipeline:
            for number in range(chunk_workers()):
                pipeline.start(work, f"{task}-{number}")
            pipeline.join()


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _drop_from_memory(fd: int) -> None:
    """So that what is read comes from the disk."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _different(path: str) -> Damaged:
    return Damaged(f"{path} does not read back as it was written", hint="its disk may be failing")
