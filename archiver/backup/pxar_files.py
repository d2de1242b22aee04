"""A pxar file, or a pair of metadata and payload, that was made elsewhere: put into the store as it is.

It is read through first, every entry, table and reference, and nothing of it is stored when it is damaged. Then its
bytes become the streams of a snapshot: one, with a catalog as a PBS wants it, or two.
"""

from __future__ import annotations

import os
import stat as st
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, NamedTuple

from archiver.backup.slabs import SlabPool
from archiver.backup.specification import ArchiveSpec
from archiver.backup.streams import Machinery, Stream, StreamResult
from archiver.backup.tally import FileCounters
from archiver.core.disk import explain
from archiver.core.events import Listener, Progress
from archiver.errors import ArchiverError, Damaged, UsageError
from formats import catalog
from formats.catalog import CatalogWriter
from formats.chunker import Chunker, PayloadChunker
from formats.errors import FormatError
from formats.pxar.constants import FIRST_PAYLOAD, HEADER_SIZE
from formats.pxar.decoder import LEAVE, Decoder
from formats.pxar.items import Entry

_LARGEST_CHUNK = 4  # times the average
_LARGEST_CHUNK_OF_A_CATALOG = 2 << 20  # bytes
_BODY = 8 << 20
_SLABS = 4
_READ_AT_ONCE = 1 << 20
_TOLD_EVERY = 512  # entries
_BARE = {
    "symlink": catalog.SYMLINK,
    "hardlink": catalog.HARDLINK,
    "fifo": catalog.FIFO,
    "socket": catalog.SOCKET,
    "char": catalog.CHAR_DEVICE,
    "block": catalog.BLOCK_DEVICE,
}


class Saved(NamedTuple):
    """``padding``: bytes of the payload that no entry refers to. ``listing``: of an archive that has a catalog."""

    results: list[StreamResult]
    padding: int
    listing: StreamResult | None


class _Input:
    """A file as the decoder reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, length: int, /) -> bytes:
        return self._file.read(length)

    def skip(self, length: int, /) -> None:
        self._file.seek(length, os.SEEK_CUR)


def save_pxar_file(
    spec: ArchiveSpec,
    machinery: Machinery,
    average: int,
    catalog_stream: Callable[[SlabPool], Stream],
    counters: FileCounters,
    listener: Listener,
) -> Saved:
    """``catalog_stream`` makes the stream of the catalog that an archive of one stream gets. ``average`` is the size of
    a chunk in bytes.

    Raises Damaged before any contents are stored, UsageError when the payload is missing or there is one too many,
    ArchiverError when the file changes while it is read.
    """
    with ExitStack() as opened:
        archive = opened.enter_context(_reading(spec.path))
        payload = opened.enter_context(_reading(spec.payload)) if spec.payload is not None else None
        reader = _Reader(spec, archive, payload, counters, listener)
        headroom = max(_LARGEST_CHUNK * average, _LARGEST_CHUNK_OF_A_CATALOG)
        slabs = SlabPool(machinery.pipeline, headroom=headroom, body=_BODY, count=_SLABS)
        if payload is None:
            listing = catalog_stream(slabs)
            writer = CatalogWriter(listing.write)
            reader.check(writer)
            writer.finish()
            whole = Stream(machinery, f"{spec.name}.pxar.didx", Chunker(average), slabs)
            _copy(archive, whole, array("Q"))
            return Saved([whole.finish()], 0, listing.finish())
        reader.check(None)
        contents = Stream(machinery, f"{spec.name}.ppxar.didx", PayloadChunker(average), slabs)
        _copy(payload, contents, reader.offsets)
        entries = Stream(machinery, f"{spec.name}.mpxar.didx", Chunker(average), slabs)
        _copy(archive, entries, array("Q"))
        results = [contents.finish(), entries.finish()]
        used = FIRST_PAYLOAD + HEADER_SIZE + reader.referenced
        return Saved(results, max(results[0].size - used, 0), None)


@contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    """The file, which must be the same at the end."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            before = os.fstat(file.fileno())
            if not st.S_ISREG(before.st_mode):
                raise UsageError(f"{path} is not a regular file")
            yield file
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise ArchiverError(f"{path} has changed while it was read", hint="try again when nobody writes to it")
    except OSError as error:
        raise explain(error, "read", path) from error


class _Reader:
    """``offsets`` where contents start in the payload; ``referenced``: bytes of the payload that entries refer to."""

    def __init__(
        self, spec: ArchiveSpec, archive: BinaryIO, payload: BinaryIO | None, counters: FileCounters, listener: Listener
    ) -> None:
        self._spec = spec
        self._archive = archive
        self._payload = payload
        self._counters = counters
        self._listener = listener
        self.offsets = array("Q")
        self.referenced = 0

    def check(self, listing: CatalogWriter | None) -> None:
        spec = self._spec
        try:
            decoder = Decoder(_Input(self._archive))
            if decoder.version == 2 and self._payload is None:
                raise UsageError(f"{spec.path} has its contents in another file", hint="name it with --payload")
            if decoder.version == 1 and self._payload is not None:
                raise UsageError(f"{spec.path} has its contents in itself", hint="leave out --payload")
            self._archive.seek(0)
            if self._payload is None:
                self._read(Decoder(_Input(self._archive)), listing)
            else:
                self._read(Decoder(_Input(self._archive), _Input(self._payload)), None)
        except FormatError as error:
            raise Damaged(f"{spec.path} is damaged or no pxar archive: {error}") from error

    def _read(self, decoder: Decoder, listing: CatalogWriter | None) -> None:
        if listing is not None:
            listing.start_archive(f"{self._spec.name}.pxar.didx")
        entries = depth = 0
        for event in decoder:
            if event is LEAVE:
                depth -= 1
                if listing is not None:
                    (listing.end_directory if depth else listing.end_archive)()
                continue
            entry: Entry = event
            entries += 1
            if entries % _TOLD_EVERY == 0:
                self._listener(Progress("import", entries, decoder.position))
            if entry.kind == "file":
                self._add_file(decoder, entry)
            if listing is not None:
                _list(listing, entry, depth)
            depth += entry.kind == "dir"

    def _add_file(self, decoder: Decoder, entry: Entry) -> None:
        counters = self._counters
        counters.total += 1
        counters.reencoded += 1
        counters.bytes_read += entry.size
        if entry.payload_offset is not None:
            decoder.read_content(0)  # checks its header in the payload
            if entry.size:
                self._check_end(entry.content_offset + entry.size)
            self.offsets.append(entry.payload_offset)
            self.referenced += HEADER_SIZE + entry.size

    def _check_end(self, end: int) -> None:
        assert self._payload is not None
        size = os.fstat(self._payload.fileno()).st_size
        if end > size:
            raise FormatError("contents end behind the payload", expected=f"at least {end} bytes", got=size)


def _list(listing: CatalogWriter, entry: Entry, depth: int) -> None:
    if entry.kind == "dir":
        if depth:
            listing.start_directory(entry.name)
    elif entry.kind == "file":
        assert entry.metadata is not None
        listing.add_file(entry.name, entry.size, entry.metadata.stat.mtime_secs)
    else:
        listing.add(_BARE[entry.kind], entry.name)


def _copy(file: BinaryIO, stream: Stream, offsets: array[int]) -> None:
    """The whole file; ``offsets`` are good places to cut."""
    file.seek(0)
    position = told = 0
    while True:
        room = stream.reserve()[:_READ_AT_ONCE]
        count = os.preadv(file.fileno(), [room], position)
        if not count:
            return
        position += count
        first = told
        while told < len(offsets) and offsets[told] < position:
            told += 1
        if told > first:
            stream.suggest(*offsets[first:told])
        stream.commit(count)
