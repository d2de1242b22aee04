"""Lost chunks made again from the live files: the snapshot's intact names and sizes say which bytes of which files a
chunk held, and where; the digest says whether these are still the same.

    payload stream   PAYLOAD_START_MARKER { PAYLOAD header, contents }* PAYLOAD_TAIL_MARKER      (spec pxar.md 9)
    one stream       only chunks that lie wholly in the contents of one file
    image            the bytes of the image

What no entry refers to (padding) is not known, and neither are names and attributes when their own chunk is lost.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from blake3 import blake3

from archiver.browse.snapshot import ArchiveFiles, Tree
from archiver.browse.stream import ChunkStream
from archiver.core.linux import open_noatime
from archiver.errors import ArchiverError, UsageError
from archiver.heal.candidates import Candidates, FoundChunk, fits
from archiver.heal.damage import Key, LostChunk
from archiver.heal.find import Subject
from archiver.source.content import read_into
from archiver.store.chunks import MAX_CHUNK, ChunkDamaged
from archiver.store.layout import SnapshotRef
from archiver.store.snapshots import read_small
from archiver.store.store import Store
from formats import blob
from formats.blob import BlobEncoder
from formats.crypt import IV_SIZE, CryptConfig, chunk_digest
from formats.errors import FormatError
from formats.manifest import FileInfo
from formats.pxar import constants as c
from formats.pxar.decoder import LEAVE, Decoder

_ARCHIVE = re.compile(r"[A-Za-z0-9_-]+\.(pxar|img|conf)")
_BESIDE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LivePlace:
    """Where the source of an archive is now. ``archive`` None: of every archive that it may be the source of."""

    path: str
    archive: str | None

    @classmethod
    def parse(cls, text: str) -> LivePlace:
        """``PATH`` or, as for a backup, ``NAME.pxar:DIRECTORY``, ``NAME.img:FILE``, ``NAME.conf:FILE``.

        Raises UsageError when nothing is there."""
        archive, colon, path = text.partition(":")
        if not colon or not _ARCHIVE.fullmatch(archive):
            path, archive = text, ""
        if not path or not os.path.exists(path):
            raise UsageError(f"the source {path!r} does not exist", hint="write PATH or NAME.pxar:PATH")
        return cls(os.path.abspath(path), archive or None)

    def is_of(self, archive: ArchiveFiles) -> bool:
        if (archive.kind == "tree") != os.path.isdir(self.path):
            return False
        return self.archive in (None, archive.name)


@dataclass(slots=True)
class _Piece:
    """A chunk that is put together, from ``start`` to ``end`` of its stream; ``filled`` bytes of it are known."""

    lost: LostChunk
    start: int
    end: int
    data: bytearray | None = None
    filled: int = 0


class LiveSource(Candidates):
    """``subjects``: snapshots that may tell what a chunk held, the newest is asked first."""

    def __init__(self, store: Store, crypt: CryptConfig | None, place: LivePlace, subjects: Sequence[Subject]) -> None:
        self.name = f"the live {'files in' if os.path.isdir(place.path) else 'file'} {place.path}"
        self._store, self._crypt, self._place = store, crypt, place
        self._subjects = subjects
        self._encoders = {False: BlobEncoder(), True: BlobEncoder(crypt)}

    def file(self, ref: SnapshotRef, info: FileInfo) -> BinaryIO | None:
        """A plain blob: encoded anew it is the same, unless another version of zstd made it."""
        archive = ArchiveFiles(info.filename.removesuffix(".blob"), "blob", (info,))
        if not info.filename.endswith(".blob") or not self._place.is_of(archive):
            return None
        with suppress(OSError, ArchiverError, FormatError):
            data = blob.encode(read_small(os.path.realpath(self._place.path), blob.MAX_BLOB_SIZE))
            if fits(data, info):
                return BytesIO(data)
        return None

    def chunks(self, lost: Sequence[LostChunk]) -> Iterator[FoundChunk]:
        wanted = {chunk.key: chunk for chunk in lost if chunk.with_key or not chunk.encrypted}
        for subject in sorted(self._subjects, key=lambda subject: -subject.ref.time):
            if not wanted:
                return
            with suppress(ArchiverError):
                for archive in subject.snapshot.archives():
                    if archive.kind != "blob" and self._place.is_of(archive):
                        yield from self._of_archive(subject, archive, wanted)

    def _of_archive(
        self, subject: Subject, archive: ArchiveFiles, wanted: dict[Key, LostChunk]
    ) -> Iterator[FoundChunk]:
        """What can be made again is taken out of ``wanted``."""
        bad = {key: chunk.reason for key, chunk in wanted.items()}
        for file, index, found in subject.bad_chunks(bad):
            if file.filename != archive.files[-1].filename:
                continue
            pieces = []
            for chunk in found:
                start, end = index.start(chunk.position), index.end(chunk.position)
                if end - start <= MAX_CHUNK:
                    lost = wanted[chunk.digest, end - start, file.crypt_mode == "encrypt"]
                    pieces.append(_Piece(lost, start, end))
            if archive.kind == "image":
                complete = self._of_image(pieces)
            else:
                complete = self._of_tree(subject.snapshot.tree(archive), index.size, pieces)
            for piece in complete:
                if piece.lost.key in wanted and self._is_right(piece):
                    yield self._encoded(piece)
                    del wanted[piece.lost.key]
                piece.data = None

    def _is_right(self, piece: _Piece) -> bool:
        if piece.data is None or piece.filled != piece.end - piece.start:
            return False
        digest = chunk_digest(piece.data, self._crypt if piece.lost.encrypted else None)
        return digest == piece.lost.digest

    def _encoded(self, piece: _Piece) -> FoundChunk:
        assert piece.data is not None
        encrypted = piece.lost.encrypted
        header, body = self._encoders[encrypted].encode(piece.data, self._store.random(IV_SIZE) if encrypted else None)
        return FoundChunk(piece.lost, header, body, blake3(header).update(body).digest(), True)

    # -- images ------------------------------------------------------------------------------------------------------

    def _of_image(self, pieces: Sequence[_Piece]) -> Iterator[_Piece]:
        for piece in pieces:
            with suppress(OSError):
                directory, name = os.path.split(os.path.realpath(os.fsencode(self._place.path)))
                above = os.open(directory, _BESIDE)
                try:
                    _fill(piece, 0, piece.end, above, name, None)
                finally:
                    os.close(above)
            yield piece

    # -- trees -------------------------------------------------------------------------------------------------------

    def _of_tree(self, tree: Tree, size: int, pieces: Sequence[_Piece]) -> Iterator[_Piece]:
        """The pieces, each when all that is in it has come by. Entries refer to contents in the order of the stream, so
        only one is put together at a time."""
        at = 0
        for start, end, names, contents in self._contents(tree, size):
            while at < len(pieces) and pieces[at].end <= start:
                yield pieces[at]
                at += 1
            while at < len(pieces) and pieces[at].start < end:
                piece = pieces[at]
                header_end = end - contents
                if names is None or start < header_end:
                    kind, told = (c.PAYLOAD, c.HEADER_SIZE + contents) if names is not None else _marker(start)
                    _put(piece, start, c.HEADER.pack(kind, told))
                if names is not None:
                    self._copy(piece, header_end, end, names)
                if piece.end > end:
                    break
                yield piece
                at += 1
            if at == len(pieces):
                return
        yield from pieces[at:]

    def _contents(self, tree: Tree, size: int) -> Iterator[tuple[int, int, list[bytes] | None, int]]:
        """(start, end, path, length of the contents) of everything in the content stream that is known, in its order;
        the path is None for the marks at both ends."""
        names: list[bytes] = []
        before = c.HEADER_SIZE if tree.split else 0
        if tree.split:
            yield 0, c.HEADER_SIZE, None, 0
        with suppress(FormatError, ArchiverError):
            for event in Decoder(_UpToDamage(tree.archive)):
                if event is LEAVE:
                    continue
                del names[max(event.depth - 1, 0) :]
                names.append(event.name)
                if event.kind == "file":
                    yield event.content_offset - before, event.content_offset + event.size, names, event.size
            if tree.split:
                yield size - c.HEADER_SIZE, size, None, 0

    def _copy(self, piece: _Piece, start: int, end: int, names: Sequence[bytes]) -> None:
        with suppress(OSError):
            above = os.open(os.path.join(os.fsencode(self._place.path), *names[:-1]), _BESIDE)
            try:
                _fill(piece, start, end, above, names[-1], end - start)
            finally:
                os.close(above)


def _marker(start: int) -> tuple[int, int]:
    return (c.PAYLOAD_TAIL_MARKER if start else c.PAYLOAD_START_MARKER), c.HEADER_SIZE


def _room(piece: _Piece) -> bytearray:
    if piece.data is None:
        piece.data = bytearray(piece.end - piece.start)
    return piece.data


def _put(piece: _Piece, at: int, data: bytes) -> None:
    """``data`` lies at ``at`` of the stream: what of it is in the piece is known now."""
    start, end = max(at, piece.start), min(at + len(data), piece.end)
    if start < end:
        _room(piece)[start - piece.start : end - piece.start] = data[start - at : end - at]
        piece.filled += end - start


def _fill(piece: _Piece, at: int, end: int, above: int, name: bytes, size: int | None) -> None:
    """The same for the contents of a regular file of ``size`` bytes; None: an image, whatever it is. Raises OSError."""
    first, last = max(at, piece.start), min(end, piece.end)
    if first >= last:
        return
    fd = open_noatime(name, os.O_NONBLOCK, above)
    try:
        status = os.fstat(fd)
        if size is not None and (not stat.S_ISREG(status.st_mode) or status.st_size != size):
            return
        view = memoryview(_room(piece))[first - piece.start : last - piece.start]
        piece.filled += read_into(fd, view, first - at)
    finally:
        os.close(fd)


class _UpToDamage:
    """The archive stream for a decoder that reads ahead: it gets what comes before a damaged chunk."""

    def __init__(self, stream: ChunkStream) -> None:
        self._stream = stream
        self._offset = 0

    def read(self, length: int) -> bytes:
        pieces = bytearray()
        try:
            for piece in self._stream.pieces(self._offset, length):
                pieces += piece
        except ChunkDamaged:
            if not pieces:
                raise
        self._offset += len(pieces)
        return bytes(pieces)

    def skip(self, length: int) -> None:
        self._offset += length
