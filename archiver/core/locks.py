"""Kernel locks: they vanish with the process (promise P8), there is nothing to unlock by hand.

Two kinds: byte ranges of a file as open-file-description locks (two holders in one process exclude each other like
two processes, and they meet the POSIX record locks of a Proxmox Backup Server), and flock on directories and on files
that are there for that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_FLOCK = struct.Struct("hhqqi")  # native struct flock: type, whence, start, length, pid
_POLL_SECONDS = 0.05


def lock_range(fd: int, start: int, length: int, *, exclusive: bool) -> bool:
    """Lock ``length`` bytes from ``start`` (0 = to the end) of the open file; False when somebody else holds it."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def wait_range(fd: int, start: int, length: int, *, exclusive: bool) -> None:
    """The same, waiting for those who hold it. Locking again what this open file holds changes its kind."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def unlock_range(fd: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))


def range_is_locked(fd: int, start: int, length: int) -> bool:
    """Whether somebody else holds a lock of any kind on one of the bytes."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _try_flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_directory(fd: int) -> bool:
    """flock an open directory exclusively until it is closed; False when another holds it. Not every file system has
    such locks: True there."""
    try:
        return _try_flock(fd, fcntl.LOCK_EX)
    except OSError:
        return True


class _Flock:
    """flock on an open file or directory; released by ``close`` or the end of the process."""

    def __init__(self, fd: int, *, exclusive: bool, wait_seconds: float) -> None:
        """Takes ``fd`` over. Raises BlockingIOError when it is still held by another after ``wait_seconds``."""
        self.fd = fd
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        deadline = time.monotonic() + wait_seconds
        try:
            while not _try_flock(fd, kind):
                if time.monotonic() >= deadline:
                    raise BlockingIOError(errno.EAGAIN, "locked by another process")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1  # closed even when that fails
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class FileLock(_Flock):
    """flock on a regular file that is there for nothing else; it stays."""

    def __init__(self, path: str, mode: int, *, exclusive: bool = True, wait_seconds: float = 0.0) -> None:
        """The file is made where it is missing. Raises BlockingIOError when another still holds it after
        ``wait_seconds``, OSError otherwise."""
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:
            fd = os.open(path, os.O_RDONLY | os.O_CREAT | flags, mode)
        super().__init__(fd, exclusive=exclusive, wait_seconds=wait_seconds)


class DirectoryLock(_Flock):
    """flock on a directory; released by ``close`` or the end of the process."""

    def __init__(self, path: str, *, exclusive: bool = True, wait_seconds: float = 0.0, follow: bool = True) -> None:
        """Raises BlockingIOError when it is still held by another after ``wait_seconds``, OSError otherwise, for a
        symlink too unless ``follow``."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        super().__init__(fd, exclusive=exclusive, wait_seconds=wait_seconds)

    def is_at(self, path: str) -> bool:
        """Whether the locked directory is (still) the one at ``path``: it may have been renamed or removed before the
        lock was got."""
        try:
            there = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        ours = os.fstat(self.fd)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


@contextmanager
def replaced_file_lock(path: str, wait_seconds: float) -> Iterator[os.stat_result]:
    """Be the only one who replaces the regular file ``path`` by a new one, under this lock; yields what it is now.

    The lock is a flock on the file that is there: who gets it looks whether it is there still. Raises BlockingIOError
    when somebody else has it after ``wait_seconds``, OSError otherwise (ELOOP for anything but a regular file).
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ELOOP, "not a regular file")
            if _try_flock(fd, fcntl.LOCK_EX) and os.path.samestat(status, os.lstat(path)):
                yield status
                return
        finally:
            os.close(fd)
        if time.monotonic() >= deadline:
            raise BlockingIOError(errno.EAGAIN, "locked by another process")
        time.sleep(_POLL_SECONDS)
