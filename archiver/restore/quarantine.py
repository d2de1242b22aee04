"""Where a restore puts what is in its way or not in the snapshot: nothing is deleted.

A directory beside the target, ``TARGET.removed-TIME``, with the same paths in it; inside the target where another file
system begins there, or nothing can be made beside it. It is made when something comes into it.
"""

from __future__ import annotations

import os
import re
import threading

from archiver.core.linux import rename_new
from archiver.restore.visitor import Directory
from formats.naming import format_time

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_NUMBERS = 1000
INSIDE = re.compile(rb"\.removed-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ(\.\d+)?")  # its name in the target's root


class Quarantine:
    """For several threads. ``path`` is None until there is one."""

    def __init__(self, target: str, now: int) -> None:
        self._target = os.path.realpath(target)
        self._now = now
        self._lock = threading.Lock()
        self._fd = -1
        self.path: str | None = None
        self.moved = 0

    def take(self, root_fd: int, directory: Directory, name: bytes) -> None:
        """Move an entry of an open directory of the target there. Raises OSError."""
        with self._lock:
            if self._fd < 0:
                self._make(root_fd)
            fd = os.dup(self._fd)
            try:
                for part in filter(None, directory.path.split(b"/")):
                    inner = _descend(fd, part)
                    os.close(fd)
                    fd = inner
                rename_new(name, name, src_dir_fd=directory.fd, dst_dir_fd=fd)
            finally:
                os.close(fd)
            self.moved += 1

    def _make(self, root_fd: int) -> None:
        name = os.path.basename(self._target)
        beside = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        try:
            one, other = os.fstat(root_fd), os.fstat(beside)
            if one.st_dev == other.st_dev and one.st_ino != other.st_ino and name:
                try:
                    self._make_in(beside, os.path.dirname(self._target), name)
                    return
                except PermissionError:
                    pass
        finally:
            os.close(beside)
        self._make_in(root_fd, self._target, "")

    def _make_in(self, fd: int, place: str, name: str) -> None:
        base = f"{name}.removed-{format_time(self._now)}"
        for number in range(_MOST_NUMBERS):
            chosen = base if not number else f"{base}.{number}"
            try:
                os.mkdir(chosen, 0o700, dir_fd=fd)
            except FileExistsError:
                continue
            self._fd = os.open(chosen, _DIRECTORY, dir_fd=fd)
            self.path = os.path.join(place, chosen)
            return
        raise FileExistsError(17, "there are too many of that name", base)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _descend(fd: int, name: bytes) -> int:
    """Into a directory that is made if need be."""
    try:
        os.mkdir(name, 0o700, dir_fd=fd)
    except FileExistsError:
        pass
    return os.open(name, _DIRECTORY, dir_fd=fd)
