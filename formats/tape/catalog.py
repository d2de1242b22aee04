"""Media catalogs: what is in which file of a medium (spec tape.md 8, 2.8).

A log of records behind the magic, each a type byte and a C struct whose padding may hold anything:

    type  size      layout
    L     32        le64 file number (0, 1), uuid (of the medium, of the set), le64 position in the set (0 for file 0)
    A     32 + n    le64 file number, uuid of the content header, u8 n, 7 padding, store name
    C     32        digest of a chunk, in the archive that was begun
    E     24        le64 file number, uuid: the archive is complete
    S     32+n+1+m  le64 file number, uuid, u8 n, 1 padding, le16 m, 4 padding, store name, ``:``, path of the snapshot

A catalog archive on a medium has the log of a medium as its stream; header JSON
``{"uuid": MEDIUM, "media_set_uuid": SET, "seq_nr": N}``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.errors import FormatError
from formats.tape.content import (
    CATALOG_ARCHIVE,
    CATALOG_ARCHIVE_WITH_NAMESPACES,
    Content,
    encode_uuid,
)
from formats.wire import Buffer

MAGIC = bytes.fromhex("4c8ee8c120a88971")

_NEVER_RELEASED = bytes.fromhex("dd1da4013b451328")
_LABEL = struct.Struct("<cQ16sQ")
_START = struct.Struct("<cQ16sB7x")
_CHUNK = struct.Struct("<c32s")
_END = struct.Struct("<cQ16s")
_SNAPSHOT = struct.Struct("<cQ16sBxH4x")
_FIRST_ARCHIVE = 2
MAX_FILE_NUMBER = (1 << 31) - 1
_NO_DIGESTS = np.empty((0, 32), np.uint8)

Digests = NDArray[np.uint8]  # (n, 32)


class ChunkFile(NamedTuple):
    """A chunk archive: its file number, the uuid of its content header, the store, and the chunks in it."""

    file: int
    uuid: bytes
    store: str
    digests: Digests


class SnapshotEntry(NamedTuple):
    """A snapshot archive; ``path`` of the snapshot in its store."""

    file: int
    uuid: bytes
    store: str
    path: str


Entry = ChunkFile | SnapshotEntry


@dataclass(slots=True)
class MediaCatalog:
    """``media`` and ``media_set`` are uuids, the latter None on a medium of no set; ``seq_nr`` its position in there.

    ``end``: how many bytes were good, to the last complete archive, snapshot or label; ``torn``: why no more, None
    when all were.
    """

    media: bytes
    media_set: bytes | None = None
    seq_nr: int = 0
    archives: list[ChunkFile] = field(default_factory=list)
    snapshots: list[SnapshotEntry] = field(default_factory=list)
    last_file: int = 0
    end: int = 0
    torn: str | None = None


def encode_labels(media: bytes, media_set: bytes | None, seq_nr: int) -> bytes:
    """The start of a log, its magic included."""
    start = MAGIC + _LABEL.pack(b"L", 0, media, 0)
    return start if media_set is None else start + _LABEL.pack(b"L", 1, media_set, seq_nr)


def encode_chunk_file(entry: ChunkFile) -> bytes:
    """The records of a complete chunk archive."""
    store = entry.store.encode()
    chunks = np.empty((len(entry.digests), _CHUNK.size), np.uint8)
    chunks[:, 0] = ord("C")
    chunks[:, 1:] = entry.digests
    start = _START.pack(b"A", entry.file, entry.uuid, len(store)) + store
    return b"".join((start, chunks.tobytes(), _END.pack(b"E", entry.file, entry.uuid)))


def encode_snapshot(entry: SnapshotEntry) -> bytes:
    store, path = entry.store.encode(), entry.path.encode()
    return b"".join((_SNAPSHOT.pack(b"S", entry.file, entry.uuid, len(store), len(path)), store, b":", path))


def encode_entry(entry: Entry) -> bytes:
    return encode_chunk_file(entry) if isinstance(entry, ChunkFile) else encode_snapshot(entry)


def catalog_archive(
    media: bytes, media_set: bytes, seq_nr: int, uuid: bytes, time: int, *, namespaces: bool
) -> Content:
    """The header of a catalog archive about the medium ``media``. ``namespaces``: it may name snapshots of some."""
    fields = {"uuid": encode_uuid(media), "media_set_uuid": encode_uuid(media_set), "seq_nr": seq_nr}
    return Content(CATALOG_ARCHIVE_WITH_NAMESPACES if namespaces else CATALOG_ARCHIVE, uuid, time, fields)


def decode_catalog(data: Buffer) -> MediaCatalog:
    """Read a log. A torn end is told (``torn``), and what is before it kept. FormatError when not even the labels can
    be read, or records contradict each other."""
    return _Log(memoryview(data).cast("B")).read()


class _Torn(Exception):
    """The log ends inside a record, or goes on with something that is none."""


class _Log:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = len(MAGIC)

    def read(self) -> MediaCatalog:
        magic = bytes(self._data[: len(MAGIC)])
        if magic == _NEVER_RELEASED:
            raise FormatError("a media catalog of version 1.0, which was never released", offset=0)
        if magic != MAGIC:
            raise FormatError("magic of a media catalog", offset=0, expected=MAGIC.hex(), got=magic.hex())
        try:
            media = self._label(0)[0]
        except _Torn as error:
            raise FormatError(f"a media catalog without its label: {error}", offset=self._position) from error
        catalog = MediaCatalog(media, end=self._position)
        try:
            while self._position < len(self._data):
                self._record(catalog)
                catalog.end = self._position
        except _Torn as error:
            catalog.torn = str(error)
        return catalog

    def _take(self, layout: struct.Struct) -> tuple[int | bytes, ...]:
        if self._position + layout.size > len(self._data):
            raise _Torn(f"a record at offset {self._position} is cut")
        found = layout.unpack_from(self._data, self._position)
        self._position += layout.size
        return found[1:]

    def _label(self, expected: int) -> tuple[bytes, int]:
        """(uuid, position in the set) of the label of that file."""
        at = self._position
        if at >= len(self._data) or self._data[at] != ord("L"):
            raise _Torn(f"there is no label record at offset {at}")
        number, uuid, position = self._take(_LABEL)
        if number != expected:
            raise FormatError("file number of a label record", offset=at + 1, expected=expected, got=number)
        assert isinstance(uuid, bytes) and isinstance(position, int)
        return uuid, position

    def _record(self, catalog: MediaCatalog) -> None:
        at = self._position
        match chr(self._data[at]):
            case "L":
                if catalog.media_set is not None or catalog.last_file:
                    raise FormatError("a label record behind others", offset=at)
                catalog.media_set, catalog.seq_nr = self._label(1)
                catalog.last_file = 1
            case "A":
                archive = self._chunk_file(catalog.last_file)
                catalog.archives.append(archive)
                catalog.last_file = archive.file
            case "S":
                snapshot = self._snapshot(catalog.last_file)
                catalog.snapshots.append(snapshot)
                catalog.last_file = snapshot.file
            case _:
                raise _Torn(f"no record begins at offset {at}")

    def _chunk_file(self, last: int) -> ChunkFile:
        at = self._position
        number, uuid, length = self._take(_START)
        assert isinstance(number, int) and isinstance(uuid, bytes) and isinstance(length, int)
        _check_number(number, last, at)
        store = self._text(length, "store name")
        digests = self._chunks()
        if self._position >= len(self._data) or self._data[self._position] != ord("E"):
            raise _Torn(f"the archive that begins at offset {at} has no end")
        end = self._position
        if self._take(_END) != (number, uuid):
            raise FormatError("the end of another archive", offset=end)
        return ChunkFile(number, uuid, store, digests)

    def _chunks(self) -> Digests:
        """The run of chunk records that begins here."""
        data, size = self._data, _CHUNK.size
        most = (len(data) - self._position) // size
        if not most:
            return _NO_DIGESTS
        rows = np.frombuffer(data, np.uint8, most * size, self._position).reshape(most, size)
        others = np.flatnonzero(rows[:, 0] != ord("C"))
        count = int(others[0]) if len(others) else most
        self._position += count * size
        return rows[:count, 1:]

    def _snapshot(self, last: int) -> SnapshotEntry:
        at = self._position
        number, uuid, store_length, path_length = self._take(_SNAPSHOT)
        assert isinstance(number, int) and isinstance(uuid, bytes)
        assert isinstance(store_length, int) and isinstance(path_length, int)
        _check_number(number, last, at)
        store = self._text(store_length, "store name")
        if self._text(1, "separator") != ":":
            raise FormatError("separator of a snapshot record", offset=self._position - 1, expected=":")
        return SnapshotEntry(number, uuid, store, self._text(path_length, "snapshot"))

    def _text(self, length: int, what: str) -> str:
        at = self._position
        if at + length > len(self._data):
            raise _Torn(f"a record is cut at offset {len(self._data)}")
        self._position += length
        try:
            return bytes(self._data[at : at + length]).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{what} in a media catalog", offset=at, expected="UTF-8") from error


def _check_number(number: int, last: int, at: int) -> None:
    first = max(_FIRST_ARCHIVE, last + 1)
    if number < first:
        raise FormatError("file number of an archive", offset=at + 1, expected=f"at least {first}", got=number)
    if number > MAX_FILE_NUMBER:
        raise FormatError("file number of an archive", offset=at + 1, expected=f"at most {MAX_FILE_NUMBER}", got=number)
