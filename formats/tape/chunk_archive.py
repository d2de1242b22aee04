"""Chunk archives: chunks as they are stored, one behind the other (spec tape.md 2.6).

Header JSON ``{"store": NAME}``, then until the end of the stream:

    offset  size  field
    0       8     magic
    8       32    digest
    40      8     le64 length of the blob
    48      n     the blob

The last entry may be cut short where the medium was full: it is no part of the archive then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from formats.blob import ENCRYPTED_HEADER, MAX_BLOB_SIZE
from formats.errors import FormatError, LimitExceeded
from formats.tape.blocks import BlockReader
from formats.tape.content import CHUNK_ARCHIVE, Content

CLOSE_FROM = 4 << 30  # bytes of blocks: an archive that has more gets no further chunk (a custom of writers)
ENTRY_SIZE = 48

_MAGIC = bytes.fromhex("48576df2de428fdc")
_ENTRY = struct.Struct("<8s32sQ")
_LARGEST = MAX_BLOB_SIZE + ENCRYPTED_HEADER


class StoredChunk(NamedTuple):
    """``blob`` as it lies in a store: not even its CRC was looked at."""

    digest: bytes
    blob: bytes


def chunk_archive(store: str, uuid: bytes, time: int) -> Content:
    """The header of an archive with chunks of that store."""
    return Content(CHUNK_ARCHIVE, uuid, time, {"store": store})


def encode_entry(digest: bytes, length: int) -> bytes:
    """What precedes a blob of ``length`` bytes."""
    return _ENTRY.pack(_MAGIC, digest, length)


def read_chunks(stream: BlockReader) -> Iterator[StoredChunk]:
    """Behind the header, to the end of the stream. Raises FormatError."""
    number = 0
    while head := stream.read(ENTRY_SIZE):
        if len(head) != ENTRY_SIZE:
            if stream.has_end_marker:
                raise FormatError(f"chunk archive entry {number} ends early", expected=ENTRY_SIZE, got=len(head))
            return
        magic, digest, length = _ENTRY.unpack(head)
        if magic != _MAGIC:
            raise FormatError(f"magic of chunk archive entry {number}", expected=_MAGIC.hex(), got=magic.hex())
        if length > _LARGEST:
            raise LimitExceeded(f"length of chunk archive entry {number}", expected=f"at most {_LARGEST}", got=length)
        blob = stream.read(length)
        if len(blob) != length:
            return
        yield StoredChunk(digest, blob)
        number += 1


def read_digests(stream: BlockReader) -> Iterator[tuple[bytes, int]]:
    """The same without the blobs: (digest, length of the blob)."""
    while head := stream.read(ENTRY_SIZE):
        if len(head) != ENTRY_SIZE:
            return
        magic, digest, length = _ENTRY.unpack(head)
        if magic != _MAGIC:
            raise FormatError("magic of a chunk archive entry", expected=_MAGIC.hex(), got=magic.hex())
        if stream.skip(length) != length:
            return
        yield digest, length
