"""Contents of a regular file that others may be writing to: open, read, holes, and whether it held still.

A name can be given to another file at any time, so what counts is the open file: its ``stat`` is taken after opening,
and it is checked to be the regular file that was listed. A file that shrinks ends a read early; one that grows or
changes is found by :func:`unchanged` afterwards.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from archiver.core.linux import open_noatime

if TYPE_CHECKING:
    from archiver.source.walk import SourceDirectory, SourceEntry

# open() of something that took a regular file's place: symlink, socket, device without a driver.
_NO_REGULAR_FILE = {errno.ELOOP, errno.ENXIO, errno.ENODEV}
_NO_HOLES = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ESPIPE}


class Replaced(OSError):
    """The name no longer belongs to the file that was listed: look again (:meth:`SourceDirectory.look`)."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "was replaced by something else while it was read")


class OpenFile:
    """A regular file open for reading. ``stat`` was taken after opening."""

    __slots__ = ("fd", "stat")

    def __init__(self, fd: int, stat: os.stat_result) -> None:
        self.fd = fd
        self.stat = stat

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1  # closed even when that fails
            os.close(fd)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_file(directory: SourceDirectory, entry: SourceEntry) -> OpenFile:
    """Open a listed regular file. Never blocks on a fifo and never follows a symlink that took its place.

    Raises OSError; :class:`Replaced` when the name now belongs to another file.
    """
    try:
        fd = open_noatime(entry.name, os.O_NONBLOCK, directory.fd)
    except BlockingIOError:
        fd = open_noatime(entry.name, 0, directory.fd)  # a lease (of a file server): its holder is asked to let go
    except OSError as error:
        if error.errno in _NO_REGULAR_FILE:
            raise Replaced from error
        raise
    try:
        stat = os.fstat(fd)
        if stat.st_ino != entry.stat.st_ino or stat.st_dev != entry.stat.st_dev or not st.S_ISREG(stat.st_mode):
            raise Replaced
    except BaseException:
        os.close(fd)
        raise
    return OpenFile(fd, stat)


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` with the bytes from ``offset`` on. Returns how many: fewer only where the file ends."""
    length = len(view)
    done = os.preadv(fd, [view], offset)
    while 0 < done < length:
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def unchanged(before: os.stat_result, fd: int) -> bool:
    """Whether size, modification and change time are still what they were before the contents were read."""
    now = os.fstat(fd)
    return (
        now.st_size == before.st_size
        and now.st_mtime_ns == before.st_mtime_ns
        and now.st_ctime_ns == before.st_ctime_ns
    )


def may_have_holes(stat: os.stat_result) -> bool:
    """Whether fewer blocks are allocated than the size needs; asking for extents is pointless otherwise."""
    return stat.st_blocks * 512 < stat.st_size


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, is_data) from 0 to ``size`` without gaps; what is not data reads as zeros.

    One data extent where the file system cannot tell. Raises OSError.
    """
    position = 0
    while position < size:
        try:
            data = _seek(fd, position, os.SEEK_DATA, size)
            end = _seek(fd, data, os.SEEK_HOLE, size) if data < size else size
        except OSError as error:
            if error.errno not in _NO_HOLES:
                raise
            data, end = position, size
        if data > position:
            yield position, data - position, False
        if data < size:
            end = end if end > data else size  # an answer that makes no progress is no answer: all data
            yield data, end - data, True
        position = end


def _seek(fd: int, position: int, whence: int, size: int) -> int:
    try:
        return min(os.lseek(fd, position, whence), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing of the kind up to the end of the file
            return size
        raise
