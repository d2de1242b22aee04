"""The entries of one archive as nodes of a file system.

The number of a node says where its entry is in the archive, so nothing has to be remembered of what the kernel knows,
however many entries that are:

    bit 63   1        bits 46-61   number of the archive
    bit 62   directory: the position is that of its end, where its goodbye table is; otherwise that of its FILENAME item
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from archiver.browse.mounted.chunk_cache import ChunkCache
from archiver.browse.mounted.links import SEARCHED_AT_ONCE, LinkCounts
from archiver.browse.snapshot import ArchiveFiles, Snapshot, Tree
from archiver.browse.stream import ChunkStream
from archiver.core import linux
from archiver.core.fuse.protocol import Attributes, Found, Listed
from formats.errors import FormatError
from formats.pxar.accessor import Node
from formats.pxar.acl import to_xattrs
from formats.pxar.items import Entry

POSITION_BITS = 46
ARCHIVES = 1 << 16  # that can be told apart
IN_ARCHIVE = 1 << 63
_DIRECTORY = 1 << 62
_POSITION = (1 << POSITION_BITS) - 1

_KEPT_ENTRIES = 1024
_LISTED_AT_ONCE = 128  # entries; others may ask in between
_BLOCK = 512
_SPARSE_FROM = 64 << 10  # bytes
_FSXATTR = struct.Struct("=12xI12x")


def archive_number(node: int) -> int:
    return node >> POSITION_BITS & (ARCHIVES - 1)


class MountedTree:
    """For any number of threads. Raises OSError for what a file system says no to, FormatError and ArchiverError."""

    def __init__(self, snapshot: Snapshot, files: ArchiveFiles, number: int, chunks: ChunkCache) -> None:
        tree = Tree(snapshot, files, chunks)
        if tree.archive.size > _POSITION:
            raise OSError(errno.EOVERFLOW, "the archive is too large to be mounted")
        self._tree = tree
        self._chunks = chunks
        self._base = IN_ARCHIVE | number << POSITION_BITS
        self._lock = threading.Lock()  # of the accessor
        self._accessor = tree.accessor()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._links = LinkCounts(tree)

    def root(self, node: int) -> Found:
        return Found(node, self._attributes(self._accessor.root))

    def entry(self, node: int) -> Entry:
        """Of a node that was told before; one that is not in an archive stands for the root."""
        if not node & IN_ARCHIVE:
            return self._accessor.root
        with self._lock:
            entry = self._entries.get(node)
            if entry is not None:
                self._entries.move_to_end(node)
                return entry
            position = node & _POSITION
            directory = node & _DIRECTORY
            entry = self._accessor.directory_at(position) if directory else self._accessor.entry_at(position)
            self._keep(node, entry)
            return entry

    def _keep(self, node: int, entry: Entry) -> None:
        self._entries[node] = entry
        if len(self._entries) > _KEPT_ENTRIES:
            self._entries.popitem(last=False)

    def _node(self, entry: Node) -> int:
        if entry.kind == "dir":
            return self._base | _DIRECTORY | entry.entry_end
        return self._base | entry.filename_offset

    def path(self, node: int) -> bytes:
        """For messages, as good as it can be told."""
        if not node & IN_ARCHIVE:
            return b"/"
        try:
            with self._lock:
                position = node & _POSITION
                return b"/" + self._accessor.path_to(position - 1 if node & _DIRECTORY else position)
        except Exception:
            return b"/..."

    # -- names ---------------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Found:
        directory = self.directory(parent)
        with self._lock:
            child = self._accessor.lookup(directory, name)
            if child is None:
                raise FileNotFoundError(errno.ENOENT, "no such file or directory")
            child = self._resolved(child)
            node = self._node(child)
            self._keep(node, child)
        return Found(node, self._attributes(child))

    def _resolved(self, entry: Node) -> Node:
        """A hard link is the file that it leads to."""
        return self._accessor.follow_hardlink(entry) if entry.kind == "hardlink" else entry

    def directory(self, node: int) -> Entry:
        entry = self.entry(node)
        if entry.kind != "dir":
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return entry

    def list_directory(self, node: int) -> Iterator[Listed]:
        children = self._accessor.entries(self.directory(node))
        while True:
            listed: list[tuple[bytes, Node]] = []
            problem: Exception | None = None
            with self._lock:
                try:
                    listed.extend((child.name, self._resolved(child)) for child in islice(children, _LISTED_AT_ONCE))
                except Exception as error:  # what came before is told first
                    problem = error
            for name, child in listed:
                yield self._listed(name, child)
            if problem is not None:
                raise problem
            if not listed:
                return

    def _listed(self, name: bytes, entry: Node) -> Listed:
        node = self._node(entry)
        assert entry.metadata is not None
        mode = entry.metadata.stat.mode
        if entry.kind == "file" and not self._links.known and self._tree.archive.size > SEARCHED_AT_ONCE:
            return Listed(name, node, mode)  # who only wants names must not wait
        return Listed(name, node, mode, Found(node, self._attributes(entry)))

    # -- what is known of an entry -------------------------------------------------------------------------------------

    def attributes(self, node: int) -> Found:
        return Found(node, self._attributes(self.entry(node)))

    def _attributes(self, entry: Entry) -> Attributes:
        assert entry.metadata is not None
        mode, _, uid, gid, seconds, nanos = entry.metadata.stat
        size = blocks = device = 0
        links = 1  # of a directory: nobody counts them
        if entry.kind == "file":
            size = entry.size
            blocks = self._blocks(entry)
            links = self._links.of(entry.filename_offset)
        elif entry.kind == "symlink":
            size = len(entry.target)
        elif entry.kind in ("char", "block"):
            device = os.makedev(entry.major & 0xFFF, entry.minor & 0xFFFFF)
        return Attributes(mode & 0o177777, size, blocks, seconds, nanos, links, uid, gid, device)

    def _blocks(self, entry: Entry) -> int:
        size = entry.size
        if size >= _SPARSE_FROM:
            start = entry.content_offset
            size -= sum(
                end - begin for begin, end in zero_chunks(self._tree.content, self._chunks, start, start + size)
            )
        return -(-size // _BLOCK)

    def target(self, node: int) -> bytes:
        entry = self.entry(node)
        if entry.kind != "symlink":
            raise OSError(errno.EINVAL, "not a symbolic link")
        return entry.target

    def extended(self, node: int) -> dict[bytes, bytes]:
        metadata = self.entry(node).metadata
        assert metadata is not None
        values = dict(metadata.xattrs)
        if metadata.fcaps is not None:
            values[b"security.capability"] = metadata.fcaps
        try:
            access, default = to_xattrs(metadata.stat.mode, metadata.acl)
        except FormatError:  # no kernel can hold it
            return values
        if access is not None:
            values[b"system.posix_acl_access"] = access
        if default is not None:
            values[b"system.posix_acl_default"] = default
        return values

    def control(self, node: int, command: int, size: int) -> bytes:
        """chattr flags and the project id."""
        metadata = self.entry(node).metadata
        assert metadata is not None
        if command == linux.FS_IOC_GETFLAGS:
            answer = struct.pack("=Q", linux.chattr_flags(metadata.stat.flags))
        elif command == linux.FS_IOC_FSGETXATTR:
            answer = _FSXATTR.pack((metadata.quota_project_id or 0) & 0xFFFF_FFFF)
        else:
            raise OSError(errno.ENOTTY, "no such control")
        return answer[:size]

    # -- contents ------------------------------------------------------------------------------------------------------

    def _content(self, node: int) -> tuple[int, int]:
        """(offset, size) of a file's contents in the stream that has them."""
        entry = self.entry(node)
        if entry.kind != "file":
            raise OSError(errno.EISDIR if entry.kind == "dir" else errno.EINVAL, "not a regular file")
        _, offset, size = self._accessor.content(entry)  # needs no lock: it reads the other stream, if any
        return offset, size

    def read(self, node: int, offset: int, size: int) -> list[bytes | memoryview]:
        start, length = self._content(node)
        return read_pieces(self._tree.content, start + offset, min(size, length - offset))

    def seek(self, node: int, offset: int, whence: int) -> int:
        start, length = self._content(node)
        return seek_in(self._tree.content, self._chunks, start, length, offset, whence)


def read_pieces(stream: ChunkStream, offset: int, size: int) -> list[bytes | memoryview]:
    return [memoryview(piece) for piece in stream.pieces(offset, size)] if size > 0 else []


def zero_chunks(stream: ChunkStream, chunks: ChunkCache, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts [from, to) of [start, end) of a stream that are known to be zeros without reading them: a long run of
    zeros is stored as chunks that are all the same one."""
    index = stream.index
    last = index.find(end - 1)
    for number in range(index.find(start), last + 1):
        begin, behind = index.start(number), index.end(number)
        if index.digest(number) == chunks.zeros(behind - begin, encrypted=stream.encrypted):
            yield max(begin, start), min(behind, end)


def seek_in(stream: ChunkStream, chunks: ChunkCache, start: int, length: int, offset: int, whence: int) -> int:
    """SEEK_DATA and SEEK_HOLE in the file that is [start, start + length) of a stream."""
    if not 0 <= offset < length:
        raise OSError(errno.ENXIO, "behind the end")
    position, end = start + offset, start + length
    for begin, behind in zero_chunks(stream, chunks, position, end):
        if whence == os.SEEK_HOLE:
            return begin - start
        if begin > position:
            break
        position = behind
    if whence == os.SEEK_HOLE:
        return length
    if position == end:
        raise OSError(errno.ENXIO, "nothing but a hole from there on")
    return position - start
