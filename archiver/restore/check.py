"""The pass that reads a restored tree again, from the disk, and compares it with the archive.

What counts is on the disk, not in memory: the page cache of each file is dropped before it is read again. The disk is
told of many files ahead, so that few threads are enough: more of them would wait for the interpreter's lock.
"""

from __future__ import annotations

import errno
import os
import stat as st
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from archiver.core.events import FileProblem, Listener
from archiver.core.linux import open_noatime
from archiver.restore import attributes
from archiver.restore.digests import SegmentDigests
from archiver.restore.visitor import Directory, FileItem, Segment, link_target
from archiver.restore.write import Writer
from formats.pxar.items import Entry
from formats.wire import Buffer

_BUFFER = 1 << 20  # bytes
_KINDS = {"symlink": st.S_IFLNK, "fifo": st.S_IFIFO, "socket": st.S_IFSOCK, "char": st.S_IFCHR, "block": st.S_IFBLK}


class Checker:
    """A visitor of :class:`archiver.restore.traversal.Traversal`. Reports every difference as a FileProblem; entries
    that ``writer`` has told about already, or left as they were, are passed over. Of files whose contents were there
    already, which is known from reading them or was believed, only the attributes are looked at."""

    needs_contents = False
    keeps_names = False
    threads = 2
    segments_at_once = 128  # files opened ahead by each thread

    def __init__(self, target: str, writer: Writer, digests: SegmentDigests, listener: Listener) -> None:
        self._target = target
        self._writer = writer
        self._digests = digests
        self._listener = listener
        self._local = threading.local()

    def _differs(self, path: bytes, what: str) -> None:
        self._listener(FileProblem(path, f"after restoring: {what}", "different"))

    def _cannot(self, path: bytes, error: OSError) -> None:
        if error.errno == errno.EACCES:
            self._listener(FileProblem(path, "could not be read again to verify it", "not-verified"))
        else:
            self._differs(path, (error.strerror or str(error)).lower())

    # -- directories -------------------------------------------------------------------------------------------------

    def open_directory(self, directory: Directory) -> int:
        parent = directory.parent
        if parent is None:
            return os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if directory.number in self._writer.lost:
            return -1
        try:
            return open_noatime(directory.name, os.O_DIRECTORY, parent.fd)
        except OSError as error:
            self._cannot(parent.path_of(directory.name), error)
            return -1

    def unreachable(self, directory: Directory, entry: Entry, number: int) -> None:
        """Nothing: the directory has been told about."""

    def finish_directory(self, directory: Directory) -> None:
        if directory.number in self._writer.passed:
            return
        try:
            wrong = attributes.differences(directory.fd, directory.metadata, os.fstat(directory.fd))
        except OSError as error:
            self._cannot(directory.path, error)
            return
        for what in wrong:
            if directory.number not in self._writer.incomplete:
                self._differs(directory.path, what)

    def abandon_directory(self, directory: Directory) -> None:
        """Nothing."""

    # -- entries without contents ------------------------------------------------------------------------------------

    def leaf(self, directory: Directory, entry: Entry, number: int) -> None:
        assert entry.metadata is not None
        if number in self._writer.lost or number in self._writer.passed:
            return
        path = directory.path_of(entry.name)
        try:
            found = os.stat(entry.name, dir_fd=directory.fd, follow_symlinks=False)
            wrong = [] if number in self._writer.incomplete else attributes.stat_differences(entry.metadata.stat, found)
            if st.S_IFMT(found.st_mode) != _KINDS[entry.kind]:
                wrong.append("another kind of entry")
            elif entry.kind == "symlink" and os.readlink(entry.name, dir_fd=directory.fd) != entry.target:
                wrong.append("another link target")
            elif entry.kind in ("char", "block") and found.st_rdev != os.makedev(entry.major, entry.minor):
                wrong.append("another device number")
        except OSError as error:
            self._cannot(path, error)
            return
        for what in wrong:
            self._differs(path, what)

    def hardlink(self, directory: Directory, entry: Entry, number: int, root: Directory) -> None:
        if number in self._writer.lost or number in self._writer.passed:
            return
        path = directory.path_of(entry.name)
        try:
            with link_target(entry, root) as (parent, last):
                first = os.stat(last, dir_fd=parent, follow_symlinks=False)
            found = os.stat(entry.name, dir_fd=directory.fd, follow_symlinks=False)
            if (first.st_dev, first.st_ino) != (found.st_dev, found.st_ino):
                self._differs(path, "not linked to " + os.fsdecode(entry.target))
        except OSError as error:
            self._cannot(path, error)

    # -- files -------------------------------------------------------------------------------------------------------

    def wants_file(self, item: FileItem) -> bool:
        if item.number in self._writer.lost or item.number in self._writer.passed:
            return False
        if item.number in self._writer.equal:
            try:
                self._open(item)
            except OSError as error:
                self._cannot(item.directory.path_of(item.name), error)
            else:
                self.finish_file(item)
            return False
        return True

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Open them all, so that the disk reads ahead. What cannot be opened now is tried again in its turn."""
        with suppress(OSError):
            for segment in segments:
                item = segment.item
                if item.failed is None and item.lock is None:
                    self._open(item)
                    os.posix_fadvise(item.fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def segment(self, segment: Segment, data: Buffer | None, damage: str | None) -> None:
        item = segment.item
        if item.failed is not None:
            return
        try:
            if item.lock is None:
                if item.fd < 0:
                    self._open(item)
            else:
                with item.lock:
                    if item.fd < 0:
                        self._open(item)
            offset, length = segment.offset, segment.end - segment.start
            if offset < 0:  # the payload header, or a part of it
                length, offset = max(0, length + offset), 0
            if length and not self._digests.matches(segment.number, self._read(item.fd, offset, offset + length)):
                item.failed = "other contents"
        except OSError as error:
            item.failed = ""
            self._cannot(item.directory.path_of(item.name), error)

    def _read(self, fd: int, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from ``start`` to ``end`` in pieces, fewer where the file ends before. A piece is valid until the
        next one is asked for: the buffer belongs to the thread."""
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(_BUFFER))
        while start < end and (got := os.preadv(fd, [buffer[: end - start]], start)):
            yield buffer[:got]
            start += got

    def _open(self, item: FileItem) -> None:
        item.fd = open_noatime(item.name, os.O_NONBLOCK, item.directory.fd)
        os.posix_fadvise(item.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish_file(self, item: FileItem) -> None:
        if item.failed:
            self._differs(item.directory.path_of(item.name), item.failed)
        if item.fd < 0:
            return
        try:
            if item.failed is None:
                found = os.fstat(item.fd)
                wrong = attributes.differences(item.fd, item.metadata, found)
                if item.number in self._writer.incomplete:
                    wrong = []
                if found.st_size != item.size:
                    wrong.append(f"size {found.st_size} instead of {item.size}")
                for what in wrong:
                    self._differs(item.directory.path_of(item.name), what)
        except OSError as error:
            self._cannot(item.directory.path_of(item.name), error)
        finally:
            self.abandon(item)

    def abandon(self, item: FileItem) -> None:
        if item.fd >= 0:
            fd, item.fd = item.fd, -1  # closed even when that fails
            os.close(fd)
