"""Opening the index files of a snapshot, checked against its manifest."""

from __future__ import annotations

import mmap
import os
import stat

from archiver.core.disk import explain, read_at
from archiver.errors import Damaged
from archiver.store.layout import Layout, SnapshotRef
from formats.errors import FormatError
from formats.index import DynamicIndex, FixedIndex, decode_index
from formats.manifest import FileInfo

Index = DynamicIndex | FixedIndex

_MAP_FROM = 8 << 20  # bytes; smaller files are read, so that nothing depends on a map of a file that may vanish


def is_index(filename: str) -> bool:
    return filename.endswith((".didx", ".fidx"))


def load_index(path: str) -> Index:
    """The index in the file at ``path``; FormatError or OSError when it is none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a regular file")
        if status.st_size >= _MAP_FROM:
            return decode_index(memoryview(mmap.mmap(fd, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)))
        return decode_index(read_at(fd, status.st_size))
    finally:
        os.close(fd)


def open_index(layout: Layout, ref: SnapshotRef, info: FileInfo) -> Index:
    """An index file of a snapshot. Raises Damaged unless kind, size and checksum are those of the manifest."""
    return open_index_file(os.path.join(layout.snapshot(ref), info.filename), str(ref), info)


def open_index_file(path: str, of: str, info: FileInfo) -> Index:
    """The same for the file at ``path``; ``of`` says in messages what it belongs to."""
    try:
        index = load_index(path)
    except FileNotFoundError as error:
        raise Damaged(f"{info.filename} of {of} is missing") from error
    except OSError as error:
        raise explain(error, "read", path) from error
    except FormatError as error:
        raise Damaged(f"{info.filename} of {of} is damaged: {error}") from error
    if isinstance(index, FixedIndex) != info.filename.endswith(".fidx"):
        raise Damaged(f"{info.filename} of {of} is an index of the other kind")
    if index.size != info.size or index.csum() != info.csum:
        raise Damaged(f"{info.filename} of {of} is not the file that its manifest describes")
    return index
