"""Catalog logs: per medium what is in which of its files, ``<media uuid>.log`` in PBS's form (spec tape.md 8).

They are the durable facts; LMDB is an index over them. A log is only ever told what is safely on the medium, so it may
know less than the medium holds, never more. A torn end, left by a crash in the middle of an append, is dropped when the
log is opened for writing, and ``<media uuid>.unsure`` remembers that the medium may hold more than the log says.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO

from archiver.core.disk import explained, read_at
from archiver.errors import Damaged, NotFound
from archiver.tape.state.place import TapePlace
from formats.errors import FormatError
from formats.tape.catalog import Entry, MediaCatalog, decode_catalog, encode_entry, encode_labels
from formats.tape.content import decode_uuid, encode_uuid
from formats.wire import Buffer

_LOG = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.log")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A log as it was: whether it is still that, or has only grown, is seen without reading it."""

    inode: int
    size: int
    mtime_ns: int


class CatalogLogs:
    """The logs of a place."""

    def __init__(self, place: TapePlace) -> None:
        self._place = place

    def name(self, medium: bytes) -> str:
        return f"{encode_uuid(medium)}.log"

    def path(self, medium: bytes) -> str:
        return self._place.file(self.name(medium))

    def stamp(self, medium: bytes) -> Stamp | None:
        """None where there is no log."""
        try:
            status = os.stat(self.path(medium), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)

    def is_of(self, medium: bytes, media_set: bytes | None, seq_nr: int) -> bool:
        """Whether there is a log, and it is that of the medium at this place in a set; only its start is read."""
        try:
            fd = os.open(self.path(medium), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            start = decode_catalog(read_at(fd, len(encode_labels(medium, medium, 0))))
        except (OSError, FormatError):
            return False
        finally:
            os.close(fd)
        return (start.media, start.media_set, start.seq_nr) == (medium, media_set, seq_nr)

    def media(self) -> list[bytes]:
        """The media that have a log."""
        try:
            names = os.listdir(self._place.path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        matches = (_LOG.fullmatch(name) for name in names)
        return sorted(decode_uuid(match[1], "medium") for match in matches if match is not None)

    def load(self, medium: bytes) -> MediaCatalog | None:
        """A torn end is left away (``torn`` says why); None where there is no log. Its digests are views into the
        mapped file. Raises Damaged."""
        return self._mapped(medium)[0]

    def _mapped(self, medium: bytes) -> tuple[MediaCatalog | None, memoryview]:
        path = self.path(medium)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None, memoryview(b"")
        except OSError as error:
            raise Damaged(f"the catalog {path} cannot be read: {(error.strerror or str(error)).lower()}") from error
        try:
            with explained("read", path):
                fcntl.flock(fd, fcntl.LOCK_SH)  # nobody cuts it while it is mapped and decoded
                data = _mapped_file(fd)
            return self._decode(medium, data), data
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # the map keeps the file open
            os.close(fd)

    def _decode(self, medium: bytes, data: memoryview) -> MediaCatalog:
        hint = f"read it from the medium again: archiver tape catalog --force (with {encode_uuid(medium)} in the drive)"
        try:
            catalog = decode_catalog(data)
        except FormatError as error:
            raise Damaged(f"the catalog {self.path(medium)} cannot be used: {error}", hint=hint) from error
        if catalog.media != medium:
            raise Damaged(
                f"the catalog {self.path(medium)} is that of the medium {encode_uuid(catalog.media)}", hint=hint
            )
        return catalog

    # -- changes -----------------------------------------------------------------------------------------------------

    def create(self, medium: bytes, media_set: bytes | None, seq_nr: int) -> None:
        """An empty catalog of the medium, in place of one that is there."""
        self._place.write(self.name(medium), encode_labels(medium, media_set, seq_nr))
        self.set_unsure(medium, None)

    def rebuild(
        self, medium: bytes, media_set: bytes, seq_nr: int, entries: Iterable[Entry], unsure: str | None = None
    ) -> None:
        """A catalog that was made of what is on the medium. ``unsure``: as of ``replace``."""
        with tempfile.TemporaryFile(prefix="archiver-") as file:
            file.write(encode_labels(medium, media_set, seq_nr))
            for entry in entries:
                file.write(encode_entry(entry))
            self.replace(medium, mapped(file), unsure)

    def replace(self, medium: bytes, data: Buffer, unsure: str | None = None) -> None:
        """A whole catalog that was read from a medium, or built from what is on it. ``unsure``: why the medium may hold
        more, None when it knows all of it. Raises Damaged where it is none."""
        catalog = self._decode(medium, memoryview(data))
        if catalog.torn is not None:
            raise Damaged(f"the new catalog of {encode_uuid(medium)} is cut: {catalog.torn}")
        if unsure is not None:
            self.set_unsure(medium, unsure)
        self._place.write(self.name(medium), data)
        if unsure is None:
            self.set_unsure(medium, None)

    def read(self, medium: bytes) -> memoryview:
        """The log for a catalog archive, to its last complete record, mapped. Raises NotFound, Damaged."""
        catalog, data = self._mapped(medium)
        if catalog is None:
            raise _no_log(medium)
        return data[: catalog.end]

    def remove(self, medium: bytes) -> None:
        self._place.remove(self.name(medium))
        self.set_unsure(medium, None)

    def open(self, medium: bytes, media_set: bytes, seq_nr: int) -> LogWriter:
        """To append to the log of a medium of that set. A torn end is dropped, and remembered. Raises NotFound,
        Damaged, also where the log is that of another set."""
        catalog = self.load(medium)
        if catalog is None:
            raise _no_log(medium)
        if (catalog.media_set, catalog.seq_nr) != (media_set, seq_nr):
            raise Damaged(
                f"the catalog of the medium {encode_uuid(medium)} is that of another media set",
                hint="read it from the medium again: archiver tape catalog --force",
            )
        if catalog.torn is not None:
            self.set_unsure(medium, catalog.torn)
        return LogWriter(self._place, self.path(medium), catalog.last_file, catalog.end)

    # -- what the medium may hold besides ------------------------------------------------------------------------------

    def unsure(self, medium: bytes) -> str | None:
        """Why the medium may hold more than its log says; None when nothing speaks for that."""
        found = self._place.read(f"{encode_uuid(medium)}.unsure")
        return None if found is None else found.decode("utf-8", "replace")[:200] or "unknown"

    def set_unsure(self, medium: bytes, reason: str | None) -> None:
        name = f"{encode_uuid(medium)}.unsure"
        if reason is not None:
            self._place.write(name, reason.encode())
        elif os.path.lexists(self._place.file(name)):
            self._place.remove(name)


def mapped(file: IO[bytes]) -> memoryview:
    """What was written into a file: a catalog may be larger than what should be in memory."""
    file.flush()
    return _mapped_file(file.fileno())


def _mapped_file(fd: int) -> memoryview:
    size = os.fstat(fd).st_size
    return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else b"")


def _no_log(medium: bytes) -> NotFound:
    return NotFound(
        f"there is no catalog of the medium {encode_uuid(medium)}",
        hint="read it from the medium: archiver tape catalog",
    )


@dataclass(slots=True)
class LogWriter:
    """Collects records in memory; ``commit`` appends them. ``last_file``: of what was added or committed; ``size``: of
    the log, committed."""

    _place: TapePlace
    _path: str
    last_file: int
    size: int
    _pending: list[bytes] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Bytes that were added since the last commit."""
        return sum(map(len, self._pending))

    def add(self, entry: Entry) -> None:
        """An archive that is completely on the medium."""
        if entry.file <= max(self.last_file, 1):
            raise ValueError(f"file {entry.file} is not behind file {self.last_file}")
        self.last_file = entry.file
        self._pending.append(encode_entry(entry))

    def commit(self) -> None:
        """Append what was added, durably: what it speaks of is on the medium and flushed. Raises ArchiverError; then
        nothing was appended, or a torn end."""
        if not self._pending:
            return
        with explained("write", self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._place.disk.append(self._path, self._pending, self.size)
            finally:
                os.close(fd)
        self.size += self.pending
        self._pending.clear()
