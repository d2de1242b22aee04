"""Getting a complete entry to its name, in the place of what was there: at one instant, and nothing else is lost."""

from __future__ import annotations

import errno
import os
import stat as st
import threading
from collections.abc import Callable
from contextlib import suppress

from archiver.core import linux
from archiver.restore.existing import is_same_file, look, require_empty
from archiver.restore.quarantine import Quarantine
from archiver.restore.staging import TempNames
from archiver.restore.visitor import Directory


class Placer:
    """For several threads. ``found`` is always what was seen at the name before; ``replaced`` counts what gave way.
    Every method raises OSError."""

    def __init__(self, temps: TempNames, quarantine: Quarantine | None) -> None:
        self._temps = temps
        self._quarantine = quarantine
        self._lock = threading.Lock()
        self.root_fd = -1
        self.replaced = 0

    def require_way(self, directory: Directory, name: bytes, found: os.stat_result) -> None:
        """Before anything is made that could not get there."""
        if self._quarantine is None:
            require_empty(name, directory.fd, found)

    def place(self, directory: Directory, temp: bytes, name: bytes, found: os.stat_result | None) -> None:
        """Rename ``temp``, which is no directory, to ``name``."""
        fd = directory.fd
        if found is None:
            linux.rename_new(temp, name, src_dir_fd=fd, dst_dir_fd=fd)
            return
        with self._lock:
            if not is_same_file(found, look(name, fd)):
                raise OSError(errno.EBUSY, "another entry took its place while it was being restored")
            if st.S_ISDIR(found.st_mode):
                self._clear(directory, name)
                linux.rename_new(temp, name, src_dir_fd=fd, dst_dir_fd=fd)
            else:
                os.rename(temp, name, src_dir_fd=fd, dst_dir_fd=fd)
            self.replaced += 1

    def _clear(self, directory: Directory, name: bytes) -> None:
        """A directory is in the way of something else."""
        try:
            os.rmdir(name, dir_fd=directory.fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or self._quarantine is None:
                raise
            self._quarantine.take(self.root_fd, directory, name)

    def make(
        self, directory: Directory, name: bytes, found: os.stat_result | None, make: Callable[[bytes], object]
    ) -> None:
        """Have an entry made that is complete at once."""
        if found is None:
            make(name)
            return
        self.require_way(directory, name, found)
        temp = self._temps.new()
        try:
            make(temp)
            self.place(directory, temp, name, found)
        except OSError:
            with suppress(OSError):
                os.unlink(temp, dir_fd=directory.fd)
            raise

    def exchange(self, name: bytes, dir_fd: int, found: os.stat_result) -> None:
        """Make a directory in the place of something else."""
        temp = self._temps.new()
        os.mkdir(temp, 0o700, dir_fd=dir_fd)
        try:
            linux.exchange_at(temp, name, dir_fd)
            if not is_same_file(found, look(temp, dir_fd)):
                linux.exchange_at(temp, name, dir_fd)
                raise OSError(errno.EBUSY, "it was exchanged while it was being restored")
        except OSError:
            os.rmdir(temp, dir_fd=dir_fd)
            raise
        os.unlink(temp, dir_fd=dir_fd)
        with self._lock:
            self.replaced += 1
