"""The files of a backup to media, each written in one go, and what each does at the early warning that the medium ends
(LEOM; spec tape.md 2.6-2.9).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

from archiver.core.disk import explain
from archiver.errors import ArchiverError, Damaged
from archiver.store import layout as names
from archiver.store.indexes import is_index
from archiver.store.layout import SnapshotRef
from archiver.store.snapshots import open_regular
from archiver.store.store import Store
from archiver.tape.drive.interface import Drive, FileWriter, MediumFull
from formats.manifest import FileInfo, Manifest
from formats.pxar.metadata import Stat
from formats.tape.blocks import BLOCK_SIZE, PAYLOAD_SIZE, BlockWriter
from formats.tape.chunk_archive import CLOSE_FROM, ENTRY_SIZE, encode_entry
from formats.tape.content import Content
from formats.tape.snapshot_archive import SnapshotArchiveWriter

_SLICE = 256 << 10  # bytes of a blob between two looks at the end of the medium
_PIECE = 1 << 20


class Changed(Damaged):
    """A file of the snapshot is not what it was when it was looked at."""

    code = "changed"


class Feed(Protocol):
    """Chunks that are to be written, in this order."""

    def head(self) -> tuple[bytes, bytes] | None:
        """Digest and blob of the next one; None when there is no more."""
        ...

    def drop(self) -> None:
        """It is on the medium."""
        ...


@dataclass(slots=True)
class ChunksWritten:
    """``digests``: of the chunks that are wholly in the archive; ``near_end``: the medium takes no more chunks;
    ``is_cut``: it was full before the archive was closed, which is of no use; ``error``: why the next chunk could not
    be had."""

    digests: list[bytes] = field(default_factory=list)
    bytes: int = 0
    near_end: bool = False
    is_cut: bool = False
    error: ArchiverError | None = None


def write_chunks(drive: Drive, head: Content, feed: Feed, *, close_from: int = CLOSE_FROM) -> ChunksWritten:
    """A chunk archive at the position: as many chunks as there are, as fit into an archive, or onto the medium. Raises
    what the first chunk raises; nothing was written then."""
    done = ChunksWritten()
    feed.head()
    try:
        with drive.create_file() as file:
            writer = BlockWriter(file.write)
            _fill(writer, head, feed, done, close_from, drive.largest_file)
            done.near_end |= writer.finish()
            file.finish()
            done.bytes = writer.bytes_written
    except MediumFull:
        return ChunksWritten(near_end=True, is_cut=True)
    return done


def _fill(
    writer: BlockWriter, head: Content, feed: Feed, done: ChunksWritten, close_from: int, largest: int | None
) -> None:
    start = head.encode()
    writer.write(start)
    length = len(start)
    while True:
        try:
            chunk = feed.head()
        except ArchiverError as error:
            done.error = error
            return
        if chunk is None:
            return
        digest, data = chunk
        length += ENTRY_SIZE + len(data)
        if largest is not None and done.digests and (length // PAYLOAD_SIZE + 1) * BLOCK_SIZE > largest:
            return
        writer.write(encode_entry(digest, len(data)))
        if _write_blob(writer, data):
            done.digests.append(digest)
            feed.drop()
        if writer.near_end:
            done.near_end = True
            return
        if writer.bytes_written > close_from:
            return


def _write_blob(writer: BlockWriter, data: bytes) -> bool:
    """Whether all of it was written: at the end of the medium it is left cut, and belongs on the next one."""
    view = memoryview(data)
    for start in range(0, len(view), _SLICE):
        if writer.write(view[start : start + _SLICE]):
            return start + _SLICE >= len(view)
    return True


def snapshot_files(manifest: Manifest, directory: str) -> list[FileInfo | str]:
    """What a medium holds of a snapshot, in the order in which it does: names of those that the manifest does not
    describe."""
    log = [names.CLIENT_LOG] if os.path.lexists(os.path.join(directory, names.CLIENT_LOG)) else []
    return [names.MANIFEST, *manifest.files, *log]


def write_snapshot(drive: Drive, head: Content, store: Store, ref: SnapshotRef, manifest: Manifest) -> bool:
    """A snapshot archive at the position; False when it did not fit onto the medium. Raises Changed, Damaged: what was
    written then is marked as of no use."""
    with _closed(drive) as (file, writer):
        writer.write(head.encode())
        archive = SnapshotArchiveWriter(lambda data: _until_end(writer, data))
        directory = store.layout.snapshot(ref)
        for each in snapshot_files(manifest, directory):
            _add(archive, directory, each, ref)
        archive.finish()
        writer.finish()
        file.finish()
        return True
    return False


class _NearEnd(Exception):
    """The medium ends before the file does."""


def _until_end(writer: BlockWriter, data: bytes | bytearray | memoryview) -> None:
    if writer.write(data):
        raise _NearEnd


@contextmanager
def _closed(drive: Drive) -> Iterator[tuple[FileWriter, BlockWriter]]:
    """A file that ends with the mark INCOMPLETE when the block ends otherwise than well; errors but those that say
    that the medium is full are raised."""
    try:
        with drive.create_file() as file:
            writer = BlockWriter(file.write)
            try:
                yield file, writer
            except MediumFull:
                raise
            except Exception as error:
                writer.finish(incomplete=True)
                file.finish()
                if not isinstance(error, _NearEnd):
                    raise
    except MediumFull:
        pass


def _add(archive: SnapshotArchiveWriter, directory: str, each: FileInfo | str, ref: SnapshotRef) -> None:
    name = each if isinstance(each, str) else each.filename
    path = os.path.join(directory, name)
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            seconds, nanos = divmod(status.st_mtime_ns, 10**9)
            stat = Stat(status.st_mode, 0, status.st_uid, status.st_gid, seconds, nanos)
            archive.start_file(name, stat, status.st_size)
            left, total = status.st_size, sha256()
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    raise Changed(f"{name} of {ref} got shorter while it was read")
                archive.write(piece)
                total.update(piece)
                left -= len(piece)
            if file.read(1):
                raise Changed(f"{name} of {ref} got longer while it was read")
    except FileNotFoundError as error:
        raise Damaged(f"{name} of {ref} is missing") from error
    except OSError as error:
        raise explain(error, "read", path) from error
    if isinstance(each, FileInfo) and not is_index(name) and total.digest() != each.csum:
        raise Damaged(f"{name} of {ref} is not the file that its manifest describes")


def write_catalog(drive: Drive, head: Content, log: memoryview) -> bool:
    """A catalog archive at the position, also into the reserve behind the early warning; False when it did not fit."""
    with _closed(drive) as (file, writer):
        writer.write(head.encode())
        for start in range(0, len(log), _PIECE):
            writer.write(log[start : start + _PIECE])
        writer.finish()
        file.finish()
        return True
    return False
