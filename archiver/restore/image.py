"""Images and blobs: one file each."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

from archiver.browse.snapshot import Snapshot
from archiver.core.disk import explain, write_all
from archiver.errors import Damaged
from archiver.restore.sparse import write_sparse
from formats.manifest import FileInfo


class _Hash(Protocol):
    def digest(self) -> bytes: ...


_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_AT_ONCE = 4 << 20


def write_image(snapshot: Snapshot, file: FileInfo, path: str, verify: bool) -> int:
    """Write a disk image to the new file ``path``, sparse where it holds zeros; returns its size in bytes."""
    stream = snapshot.stream(file)
    total = sha256()

    def write(fd: int) -> None:
        offset = 0
        for piece in stream.pieces(0, stream.size):
            total.update(piece)
            write_sparse(fd, memoryview(piece), offset)
            offset += len(piece)
        os.ftruncate(fd, stream.size)

    _write_new(path, write, total, verify)
    return stream.size


def write_blob(snapshot: Snapshot, file: FileInfo, path: str, verify: bool) -> int:
    """Write the contents of a blob to the new file ``path``; returns their size in bytes."""
    data = snapshot.blob(file)
    total = sha256(data)
    _write_new(path, lambda fd: write_all(fd, [data]), total, verify)
    return len(data)


def _write_new(path: str, write: Callable[[int], object], total: _Hash, verify: bool) -> None:
    """Make ``path`` with ``write``; a file that cannot be completed is not left behind."""
    try:
        fd = os.open(path, _NEW_FILE, 0o600)
    except OSError as error:
        raise explain(error, "make", path) from error
    try:
        write(fd)
        os.fsync(fd)
        if verify and _read_again(fd) != total.digest():
            raise Damaged(f"{path} does not read back as it was written", hint="its disk may be failing")
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise explain(error, "write", path) from error
        raise
    finally:
        os.close(fd)


def _read_again(fd: int) -> bytes:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    total = sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    while data := os.read(fd, _READ_AT_ONCE):
        total.update(data)
    return total.digest()
