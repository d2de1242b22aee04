"""Snapshot archives: the files of a snapshot as a pxar archive of version 1 (spec tape.md 2.7).

Header JSON ``{"snapshot": PATH, "store": NAME}``, then the archive: a root with mode 040664 and nothing but that, and
the files, ``index.json.blob`` first, the others in the order of the manifest, at the end ``client.log.blob``.
"""

from __future__ import annotations

import stat as st
from collections.abc import Callable, Iterator
from typing import NamedTuple

from formats.errors import FormatError, LimitExceeded
from formats.pxar.decoder import LEAVE, Decoder
from formats.pxar.encoder import Encoder
from formats.pxar.metadata import Metadata, Stat
from formats.tape.blocks import BlockReader
from formats.tape.content import SNAPSHOT_ARCHIVE, SNAPSHOT_ARCHIVE_WITH_NAMESPACE, Content
from formats.wire import Buffer

MAX_FILE = 1 << 40  # bytes of one file of a snapshot

_ROOT = Metadata(Stat(st.S_IFDIR | 0o664, 0, 0, 0, 0, 0))
_PIECE = 1 << 20


class SnapshotFile(NamedTuple):
    """A file of a snapshot: its name, ``stat``, and its contents piece by piece, which must all be taken."""

    name: str
    stat: Stat
    size: int
    contents: Iterator[bytes]


def snapshot_archive(store: str, path: str, uuid: bytes, time: int) -> Content:
    """The header; ``path`` is that of the snapshot in its store (``ns/a/host/x/TIME``)."""
    magic = SNAPSHOT_ARCHIVE_WITH_NAMESPACE if path.startswith("ns/") else SNAPSHOT_ARCHIVE
    return Content(magic, uuid, time, {"snapshot": path, "store": store})


class SnapshotArchiveWriter:
    """Writes the archive behind the header through ``write``."""

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._write = write
        self._encoder = Encoder(write)
        self._encoder.start_root(_ROOT)

    def start_file(self, name: str, stat: Stat, size: int) -> None:
        """``size`` bytes follow by ``write``. EncodeError for a name that the format cannot hold."""
        self._encoder.start_file(name.encode(), Metadata(stat), size)

    def write(self, data: Buffer) -> None:
        self._write(data)
        self._encoder.advance(len(data))

    def finish(self) -> None:
        """Behind the last file. ValueError when contents of a file are missing."""
        self._encoder.end_directory()
        self._encoder.finish()


class _Input:
    """What the decoder reads from."""

    def __init__(self, stream: BlockReader) -> None:
        self._stream = stream

    def read(self, length: int, /) -> bytes:
        return self._stream.read(length)

    def skip(self, length: int, /) -> None:
        self._stream.skip(length)


def read_files(stream: BlockReader) -> Iterator[SnapshotFile]:
    """Behind the header, to the end of the archive. Raises FormatError."""
    decoder = Decoder(_Input(stream))
    if decoder.version != 1:
        raise FormatError("pxar version of a snapshot archive", expected=1, got=decoder.version)
    for event in decoder:
        if event is LEAVE or not event.depth:
            continue
        if event.kind != "file" or event.metadata is None:
            raise FormatError("an entry of a snapshot archive", expected="a file", got=event.kind)
        if event.size > MAX_FILE:
            raise LimitExceeded("a file of a snapshot archive", expected=f"at most {MAX_FILE} bytes", got=event.size)
        try:
            name = event.name.decode("ascii")
        except UnicodeDecodeError as error:
            raise FormatError("name of a file in a snapshot archive", got=repr(event.name)[:80]) from error
        yield SnapshotFile(name, event.metadata.stat, event.size, _contents(decoder, event.size))


def _contents(decoder: Decoder, size: int) -> Iterator[bytes]:
    while size:
        piece = decoder.read_content(min(size, _PIECE))
        size -= len(piece)
        yield piece
