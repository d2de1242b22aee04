"""Magics, header and limits of a DataBlob (spec blob-index-crypto.md 2.1-2.3).

| offset | size | field                                                       |
|--------|------|-------------------------------------------------------------|
| 0      | 8    | magic: one of four, says whether encrypted and compressed   |
| 8      | 4    | CRC-32 (zlib's) of everything behind the header, le32       |
| 12     | 16   | IV, encrypted kinds only                                    |
| 28     | 16   | GCM tag, encrypted kinds only                               |
| 12/44  | n    | payload, to the end of the file                             |

The payload is compressed first, then encrypted. The CRC does not cover IV and tag; the tag does.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple, NoReturn

from formats.crypt import IV_SIZE, TAG_SIZE
from formats.errors import FormatError, IntegrityError
from formats.wire import U32, Buffer

PLAIN_MAGIC = bytes.fromhex("42ab3807be8370a1")
PLAIN_ZSTD_MAGIC = bytes.fromhex("31b958426fb6a37f")
ENCRYPTED_MAGIC = bytes.fromhex("7b6785be222d4cf0")
ENCRYPTED_ZSTD_MAGIC = bytes.fromhex("e6591bbf0bbfd80b")
RETIRED_MAGICS = (bytes.fromhex("1f87eee291ce0502"), bytes.fromhex("7ea60fbe911fa960"))

PLAIN_HEADER = 12
ENCRYPTED_HEADER = PLAIN_HEADER + IV_SIZE + TAG_SIZE
MAX_BLOB_SIZE = 128 << 20  # of the plain text

# magic -> (encrypted, compressed)
_KINDS = {
    PLAIN_MAGIC: (False, False),
    PLAIN_ZSTD_MAGIC: (False, True),
    ENCRYPTED_MAGIC: (True, False),
    ENCRYPTED_ZSTD_MAGIC: (True, True),
}
_MAGICS = {kind: magic for magic, kind in _KINDS.items()}


class BlobInfo(NamedTuple):
    """What a blob's header says. ``iv`` and ``tag`` (16 bytes each) are None in a plain blob."""

    encrypted: bool
    compressed: bool
    crc: int
    header_size: int
    iv: bytes | None
    tag: bytes | None


def inspect(data: Buffer) -> BlobInfo:
    """The header of a blob, from at least its first 44 bytes (or all, if it has less). Nothing is verified by it.

    Raises FormatError: too short, unknown magic, a retired kind.
    """
    head = bytes(data[:ENCRYPTED_HEADER])
    kind = _KINDS.get(head[:8])
    if kind is None:
        _refuse(head)
    encrypted, compressed = kind
    header_size = ENCRYPTED_HEADER if encrypted else PLAIN_HEADER
    if len(head) < header_size:
        raise FormatError("blob ends inside its header", expected=f"at least {header_size} bytes", got=f"{len(head)}")
    crc = U32.unpack_from(head, 8)[0]
    if not encrypted:
        return BlobInfo(False, compressed, crc, header_size, None, None)
    return BlobInfo(True, compressed, crc, header_size, head[12:28], head[28:44])


def _refuse(head: bytes) -> NoReturn:
    if len(head) < PLAIN_HEADER:
        raise FormatError("blob ends inside its header", expected=f"at least {PLAIN_HEADER} bytes", got=f"{len(head)}")
    if head[:8] in RETIRED_MAGICS:
        raise FormatError("blob of the retired authenticated kind (made before PBS 0.8.2)", offset=0)
    raise FormatError("blob magic", offset=0, expected="one of the four blob magics", got=head[:8].hex())


def check_kind(info: BlobInfo, encrypted: bool | None) -> None:
    """Raise FormatError unless the blob is encrypted exactly if it has to be (None: either will do)."""
    if encrypted is not None and info.encrypted != encrypted:
        names = ("a plain blob", "an encrypted blob")
        raise FormatError("blob kind", offset=0, expected=names[encrypted], got=names[info.encrypted])


def check_crc(info: BlobInfo, crc: int) -> None:
    """Raise IntegrityError unless ``crc`` (of the payload) is what the header says."""
    if crc != info.crc:
        raise IntegrityError("blob CRC", offset=8, expected=f"{info.crc:08x}", got=f"{crc:08x}")


def build_header(compressed: bool, crc: int, iv: bytes | None = None, tag: bytes | None = None) -> bytes:
    """The 12 bytes of a plain blob's header, or with ``iv`` and ``tag`` the 44 of an encrypted one's."""
    if iv is None or tag is None:
        return _MAGICS[False, compressed] + U32.pack(crc)
    return _MAGICS[True, compressed] + U32.pack(crc) + iv + tag


def payload_crc(payload: Buffer, crc: int = 0) -> int:
    """The CRC-32 of a payload, or of the next piece of one."""
    return zlib.crc32(payload, crc)
