"""What became of the entries of a tree that is written: counted and told; and what in the target stays as it was."""

from __future__ import annotations

import errno
import os
import threading

from archiver.core.disk import explain
from archiver.core.events import FileProblem, Listener
from archiver.core.spill import SpillTable
from archiver.restore import attributes
from archiver.restore.visitor import Directory
from formats.pxar.metadata import Metadata

_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}


def is_fatal(error: OSError) -> bool:
    """Whether it concerns the target as a whole, not the entry that it was met at."""
    return error.errno in _FATAL


class Outcome:
    """``updated`` counts entries whose attributes alone were wrong, ``unchanged`` what was right, ``kept`` what stays
    by the rule: in one thread; several may tell what was lost.

    checks    what was written is compared with the archive
    exact     all file systems in the target keep what they are told
    """

    def __init__(self, target: str, kept_files: SpillTable, listener: Listener, *, checks: bool) -> None:
        """``kept_files`` is told which files in the target are not as the archive has them."""
        self._target = target
        self._kept_files = kept_files
        self._listener = listener
        self._lock = threading.Lock()
        self.updated = self.unchanged = self.kept = 0
        self.checks = checks
        self.exact = True

    def lost(self, path: bytes, reason: str, kind: str, found: os.stat_result | None = None) -> None:
        self.other(found)
        self._listener(FileProblem(path, reason, kind))

    def attributes_lost(self, path: bytes, reasons: list[str]) -> None:
        for reason in reasons:
            self._listener(FileProblem(path, reason, "attribute"))

    def differs(self, path: bytes, wrong: list[str]) -> None:
        for what in wrong:
            self._listener(FileProblem(path, f"after restoring: {what}", "different"))

    def failed(self, directory: Directory, name: bytes, error: OSError, found: os.stat_result | None = None) -> None:
        """What only concerns this entry is told, what concerns the target as a whole ends the restore."""
        path = directory.path_of(name)
        if is_fatal(error):
            raise explain(error, "restore", self._target + os.fsdecode(path)) from error
        self.lost(path, (error.strerror or str(error)).lower(), "not-restored", found)

    def keep(self, found: os.stat_result, *, faithful: bool = False) -> None:
        self.kept += 1
        if not faithful:
            self.other(found)

    def other(self, found: os.stat_result | None) -> None:
        """No hard link of the archive may be made to what stays there."""
        if found is not None:
            with self._lock:
                self._kept_files.put(_identity(found), b"")

    def is_other(self, found: os.stat_result) -> bool:
        with self._lock:
            return self._kept_files.get(_identity(found)) is not None

    def count_settled(self, wrong: list[str]) -> None:
        """An entry with the right contents, of which ``wrong`` attributes were brought to the archive's."""
        if wrong:
            self.updated += 1
        else:
            self.unchanged += 1

    def tell_attributes(self, fd: int, metadata: Metadata, path: bytes, lost: list[str]) -> None:
        """What could not be set, and what is different although it was."""
        if not lost and (self.checks or not self.exact):
            try:
                self.tell_differences(path, attributes.differences(fd, metadata, os.fstat(fd)))
            except OSError as error:
                if self.checks:
                    self.differs(path, [(error.strerror or str(error)).lower()])
        self.attributes_lost(path, lost)

    def tell_differences(self, path: bytes, wrong: list[str]) -> None:
        if self.exact:
            self.differs(path, wrong)
        else:
            self.attributes_lost(path, [f"the file system keeps {what}" for what in wrong])


def _identity(found: os.stat_result) -> bytes:
    return b"%d %d" % (found.st_dev, found.st_ino)
