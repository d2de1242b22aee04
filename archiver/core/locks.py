"""Kernel locks: they vanish with the process (promise P8), there is nothing to unlock by hand.

Two kinds: byte ranges of a file as open-file-description locks (two holders in one process exclude each other like
two processes, and they meet the POSIX record locks of a Proxmox Backup Server), and flock on directories.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from types import TracebackType

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


class DirectoryLock:
    """flock on a directory; released by ``close`` or the end of the process."""

    def __init__(self, path: str, *, exclusive: bool = True, wait_seconds: float = 0.0) -> None:
        """Raises BlockingIOError when it is still held by another after ``wait_seconds``, OSError otherwise."""
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        deadline = time.monotonic() + wait_seconds
        try:
            while True:
                try:
                    fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
