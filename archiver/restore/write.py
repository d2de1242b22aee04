"""The pass that writes a tree into an empty directory.

Every name is made relative to an open directory and must not exist before; directories are entered without following
symlinks; hard links are resolved name by name from the target's root. So no entry of an archive can leave the target.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from archiver.core.disk import explain
from archiver.core.events import FileProblem, Listener
from archiver.core.linux import make_node
from archiver.core.pipeline import chunk_workers
from archiver.restore import attributes
from archiver.restore.digests import SegmentDigests
from archiver.restore.marks import Marks
from archiver.restore.traversal import Directory, FileItem, Segment, link_target
from formats.pxar.constants import HEADER_SIZE
from formats.pxar.items import Entry
from formats.wire import Buffer

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 4096
_SPARSE_FROM = 64 << 10  # bytes; holes are looked for in files at least this long
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}


class Writer:
    """A visitor of :class:`archiver.restore.traversal.Traversal`."""

    needs_contents = True
    threads = chunk_workers()
    segments_at_once = 512

    def __init__(self, target: str, digests: SegmentDigests | None, listener: Listener) -> None:
        self._target = target
        self._digests = digests
        self._listener = listener
        self.incomplete = Marks()  # entries whose attributes could not all be set
        self.lost = Marks()  # entries that could not be made, or whose contents are damaged

    # -- telling -----------------------------------------------------------------------------------------------------

    def _lost(self, number: int, path: bytes, reason: str, kind: str) -> None:
        self.lost.add(number)
        self._listener(FileProblem(path, reason, kind))

    def _attributes_lost(self, number: int, path: bytes, reasons: list[str]) -> None:
        self.incomplete.add(number)
        for reason in reasons:
            self._listener(FileProblem(path, reason, "attribute"))

    def _failed(self, number: int, directory: Directory, name: bytes, error: OSError) -> None:
        """What only concerns this entry is told, what concerns the target as a whole ends the restore."""
        path = directory.path_of(name)
        if error.errno in _FATAL:
            raise explain(error, "restore", self._target + os.fsdecode(path)) from error
        self._lost(number, path, (error.strerror or str(error)).lower(), "not-restored")

    # -- directories -------------------------------------------------------------------------------------------------

    def open_root(self, entry: Entry) -> int:
        fd = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Its own rights, and those it hands down to new entries, must not mix into the archive's attributes.
        for name in (attributes.ACCESS_ACL, attributes.DEFAULT_ACL):
            with suppress(OSError):
                os.removexattr(fd, name)
        with suppress(OSError):
            os.fchmod(fd, 0o700)
        return fd

    def open_directory(self, parent: Directory, entry: Entry, number: int) -> int:
        try:
            os.mkdir(entry.name, 0o700, dir_fd=parent.fd)
            return os.open(entry.name, _DIRECTORY, dir_fd=parent.fd)
        except OSError as error:
            self._failed(number, parent, entry.name, error)
            return -1

    def finish_directory(self, directory: Directory) -> None:
        lost = attributes.apply(directory.fd, directory.metadata)
        if lost:
            self._attributes_lost(directory.number, directory.path, lost)

    # -- entries without contents ------------------------------------------------------------------------------------

    def leaf(self, directory: Directory, entry: Entry, number: int) -> None:
        assert entry.metadata is not None
        stat, name, fd = entry.metadata.stat, entry.name, directory.fd
        try:
            if entry.kind == "symlink":
                os.symlink(entry.target, name, dir_fd=fd)
            else:
                make_node(name, st.S_IFMT(stat.mode) | 0o600, entry.major, entry.minor, dir_fd=fd)
            lost = attributes.apply_at(name, fd, stat)
        except OSError as error:
            self._failed(number, directory, name, error)
            return
        if lost:
            self._attributes_lost(number, directory.path_of(name), lost)

    def hardlink(self, directory: Directory, entry: Entry, number: int, root: Directory) -> None:
        try:
            with link_target(entry, root) as (parent, last):
                try:
                    os.link(last, entry.name, src_dir_fd=parent, dst_dir_fd=directory.fd, follow_symlinks=False)
                except PermissionError:
                    _link_fixed(last, parent, entry.name, directory.fd)
        except OSError as error:
            self._failed(number, directory, entry.name, error)

    # -- files -------------------------------------------------------------------------------------------------------

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Nothing: files are made one after the other."""

    def segment(self, segment: Segment, data: Buffer | None, damage: str | None) -> None:
        item = segment.item
        if item.failed is not None:
            return
        if damage is not None:
            item.failed = damage
            return
        try:
            if item.lock is None:
                self._open(item)
            else:
                with item.lock:
                    if item.fd < 0:
                        self._open(item)
            if data is not None or segment.end == segment.start:
                self._write(item, segment, memoryview(data or b"")[segment.start : segment.end])
        except OSError as error:
            if error.errno in _FATAL:
                self._failed(item.number, item.directory, item.name, error)
            self._refused(item, error)

    def _open(self, item: FileItem) -> None:
        item.fd = os.open(item.name, _NEW_FILE, 0o600, dir_fd=item.directory.fd)
        attributes.prepare(item.fd, item.metadata.stat)

    def _write(self, item: FileItem, segment: Segment, data: memoryview) -> None:
        offset = segment.offset
        if offset < 0:
            count = min(-offset, len(data))
            start = HEADER_SIZE + offset
            if data[:count] != item.header[start : start + count]:
                item.failed = "the payload does not have the header that its entry describes"
                return
            data, offset = data[count:], offset + count
        if not data:
            return
        if self._digests is not None:
            self._digests.record(segment.number, data)
        if item.size >= _SPARSE_FROM:
            write_sparse(item.fd, data, offset)
        else:
            _write_at(item.fd, data, offset)

    def finish_file(self, item: FileItem) -> None:
        if item.failed is not None:
            self._drop(item)
            return
        fd = item.fd
        try:
            if item.size >= _SPARSE_FROM:
                os.ftruncate(fd, item.size)  # it may end in a hole
            lost = attributes.apply(fd, item.metadata)
        except OSError as error:
            self._refused(item, error)
            self._drop(item)
            return
        try:
            self._close(item)
        except OSError as error:  # a file system over the network may tell only now that it has not written everything
            os.unlink(item.name, dir_fd=item.directory.fd)
            self._failed(item.number, item.directory, item.name, error)
            return
        if lost:
            self._attributes_lost(item.number, item.directory.path_of(item.name), lost)

    def _refused(self, item: FileItem, error: OSError) -> None:
        item.failed, item.refused = (error.strerror or str(error)).lower(), True

    def _drop(self, item: FileItem) -> None:
        self.abandon(item)
        kind = "not-restored" if item.refused else "damaged"
        self._lost(item.number, item.directory.path_of(item.name), item.failed or "", kind)

    def abandon(self, item: FileItem) -> None:
        """A file that was not restored completely is not left behind in part."""
        if item.fd >= 0:
            self._close(item)
            os.unlink(item.name, dir_fd=item.directory.fd)

    def _close(self, item: FileItem) -> None:
        fd, item.fd = item.fd, -1  # it is closed even when that fails
        if fd >= 0:
            os.close(fd)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def write_sparse(fd: int, data: memoryview, offset: int) -> None:
    """Write ``data``, leaving out blocks of zeros; the file is extended to its size afterwards."""
    lead = -offset % _BLOCK
    if lead:
        _write_unless_zero(fd, data[:lead], offset)
        data, offset = data[lead:], offset + lead
    blocks = len(data) // _BLOCK
    words = np.frombuffer(data[: blocks * _BLOCK], np.uint64).reshape(blocks, _BLOCK // 8)
    holes = np.flatnonzero(words[:, 0] == 0)  # few blocks begin with a zero word, so few are looked at completely
    holes = holes[~words[holes].any(axis=1)]
    used = np.zeros(blocks + 2, np.bool_)
    used[1:-1] = True
    used[1 + holes] = False
    edges = np.flatnonzero(used[1:] != used[:-1]) * _BLOCK
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        _write_at(fd, data[start:end], offset + start)
    _write_unless_zero(fd, data[blocks * _BLOCK :], offset + blocks * _BLOCK)


def _write_unless_zero(fd: int, data: memoryview, offset: int) -> None:
    """Less than a block; a hole there would be lost by one written zero."""
    if data != bytes(len(data)):
        _write_at(fd, data, offset)


def _link_fixed(source: bytes, source_fd: int, name: bytes, dir_fd: int) -> None:
    """Link to a file whose attributes (immutable, append-only) forbid it for the moment."""
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=source_fd)
    try:
        flags = attributes.may_link(fd)
        try:
            os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        finally:
            attributes.linked(fd, flags)
    finally:
        os.close(fd)
