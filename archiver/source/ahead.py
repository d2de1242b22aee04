"""Small files that are not in memory are fetched from the disk many at a time, ahead of the reader.

Read one after the other they have the disk wait for the program and the program for the disk. Who reads tries without
waiting first, and tells of the first file for which that fails: nothing is done, and no time lost, while all are in
memory. A first backup of /usr/share (51,749 files) with cold caches: 10 s instead of 20 s.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Sequence

from archiver.core.linux import open_noatime
from archiver.source.walk import SourceDirectory

_FILES = 64
_BYTES = 1 << 20  # of each; behind that the kernel reads ahead by itself
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  # a Python that was made for old C libraries does not have it

_blocking: set[int] = set()  # devices whose file systems cannot read without waiting


class ReadAhead:
    """Files of one directory in the order in which they are going to be read: ``names``. With ``stats``, which belong
    to them, only what is a regular file."""

    __slots__ = ("_at", "_directory", "_names", "_stats", "_until")

    def __init__(
        self, directory: SourceDirectory, names: Sequence[bytes], stats: Sequence[os.stat_result | None] | None = None
    ) -> None:
        self._directory = directory
        self._names = names
        self._stats = stats
        self._at = 0  # the reader is there
        self._until = 0  # those before this one are fetched

    def read(self, name: bytes, fd: int, view: memoryview, device: int) -> bool:
        """Fill ``view`` with the start of the open file ``name``; False when it is shorter. Raises OSError."""
        done, size = 0, len(view)
        if _NOWAIT is not None and device not in _blocking:
            try:
                done = os.preadv(fd, [view], 0, _NOWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                _blocking.add(device)
            if done == size:
                return True
            if device not in _blocking:
                self._fetch(name)
        return done + os.preadv(fd, [view[done:]], done) == size

    def _fetch(self, name: bytes) -> None:
        """What comes behind ``name``, which was not in memory."""
        self._at = at = self._names.index(name, self._at)
        stop = min(at + _FILES, len(self._names))
        for number in range(max(at + 1, self._until), stop):
            stat = None if self._stats is None else self._stats[number]
            if self._stats is None or (stat is not None and st.S_ISREG(stat.st_mode) and stat.st_size):
                try:
                    fd = open_noatime(self._names[number], os.O_NONBLOCK, self._directory.fd)
                except OSError:
                    continue  # who reads it will be told
                try:
                    os.posix_fadvise(fd, 0, _BYTES, os.POSIX_FADV_WILLNEED)
                except OSError:
                    pass
                finally:
                    os.close(fd)
        self._until = stop
