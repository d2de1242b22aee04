"""What every file on a medium starts with, in its first bytes of payload (spec tape.md 2.3, 2.4).

    offset  size  field
    0       8     magic
    8       8     magic of the content
    16      16    uuid, random for each file; catalogs refer to it
    32      8     i64le time, Unix seconds
    40      4     le32 length of the JSON that follows
    44      1     part number, 0
    45      3     zero

The JSON is pretty-printed with two spaces, without a newline at its end.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from formats.errors import FormatError

Kind = Literal["media label", "media-set label", "chunk archive", "snapshot archive", "catalog archive"]

MAX_JSON = 64 << 10
MAX_STORE_NAME = 255  # bytes, as catalogs hold it

_MAGIC = bytes.fromhex("63ee149fcdf29b0c")
_HEADER = struct.Struct("<8s8s16sqIB3x")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

MEDIA_LABEL = bytes.fromhex("2a05bf3cb030aa39")
MEDIA_SET_LABEL = bytes.fromhex("086063f92f9753d8")
CHUNK_ARCHIVE = bytes.fromhex("6d31636dd70283bf")
SNAPSHOT_ARCHIVE = bytes.fromhex("da1615d011e29a62")
SNAPSHOT_ARCHIVE_WITH_NAMESPACE = bytes.fromhex("6210369bba10331d")
CATALOG_ARCHIVE = bytes.fromhex("b7cfc7259e991e73")
CATALOG_ARCHIVE_WITH_NAMESPACES = bytes.fromhex("b3ec71f0adec0260")

KINDS: dict[bytes, Kind] = {
    MEDIA_LABEL: "media label",
    MEDIA_SET_LABEL: "media-set label",
    CHUNK_ARCHIVE: "chunk archive",
    SNAPSHOT_ARCHIVE: "snapshot archive",
    SNAPSHOT_ARCHIVE_WITH_NAMESPACE: "snapshot archive",
    CATALOG_ARCHIVE: "catalog archive",
    CATALOG_ARCHIVE_WITH_NAMESPACES: "catalog archive",
}
_NEVER_RELEASED = {
    bytes.fromhex("3eada75f314c066e"): "chunk archive",
    bytes.fromhex("09b6021f7de87285"): "snapshot archive",
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a file is. ``magic`` is one of ``KINDS``; ``uuid`` 16 bytes; ``time`` Unix seconds."""

    magic: bytes
    uuid: bytes
    time: int
    fields: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        return KINDS[self.magic]

    def encode(self) -> bytes:
        """Header and JSON; its keys stay in their order. ValueError when it is too long."""
        text = json.dumps(self.fields, indent=2, ensure_ascii=False).encode()
        if len(text) > MAX_JSON or len(self.uuid) != 16:
            raise ValueError("a content header that readers refuse")
        return _HEADER.pack(_MAGIC, self.magic, self.uuid, self.time, len(text), 0) + text

    def text(self, key: str) -> str:
        """A string of the JSON, one that UTF-8 can hold. Raises FormatError."""
        value = self.fields.get(key)
        if not isinstance(value, str) or _SURROGATE.search(value):
            raise FormatError(f"{key} of a {self.kind}", expected="a string", got=repr(value)[:80])
        return value

    @property
    def store(self) -> str:
        """The store that an archive was written from. Raises FormatError."""
        name = self.text("store")
        if not 1 <= len(name.encode()) <= MAX_STORE_NAME:
            raise FormatError(f"store of a {self.kind}", expected=f"1 to {MAX_STORE_NAME} bytes", got=repr(name)[:80])
        return name

    def number(self, key: str, largest: int = (1 << 63) - 1) -> int:
        """A number of the JSON, 0 to ``largest``. Raises FormatError."""
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise FormatError(f"{key} of a {self.kind}", expected="a number", got=repr(value)[:80])
        return value

    def uuid_of(self, key: str) -> bytes:
        """A uuid of the JSON, 16 bytes. Raises FormatError."""
        return decode_uuid(self.text(key), f"{key} of a {self.kind}")


def read_content(read: Callable[[int], bytes]) -> Content:
    """The header at the start of a stream, of which ``read`` gives so many bytes, fewer at its end."""
    data = read(_HEADER.size)
    if len(data) != _HEADER.size:
        raise FormatError("content header ends early", expected=f"{_HEADER.size} bytes", got=len(data))
    magic, content, uuid, time, length, _ = _HEADER.unpack(data)
    if magic != _MAGIC:
        raise FormatError("magic of a content header", offset=0, expected=_MAGIC.hex(), got=magic.hex())
    if content in _NEVER_RELEASED:
        raise FormatError(f"a {_NEVER_RELEASED[content]} of version 1.0, which was never released", offset=8)
    if content not in KINDS:
        raise FormatError("unknown content", offset=8, got=content.hex())
    if not 1 <= length <= MAX_JSON:
        raise FormatError("length of a content's JSON", offset=40, expected=f"1 to {MAX_JSON}", got=length)
    text = read(length)
    if len(text) != length:
        raise FormatError("a content's JSON ends early", offset=_HEADER.size, expected=length, got=len(text))
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"JSON of a {KINDS[content]}: {error}", offset=_HEADER.size) from error
    if not isinstance(fields, dict):
        raise FormatError(f"JSON of a {KINDS[content]}", offset=_HEADER.size, expected="an object")
    return Content(content, uuid, time, fields)


def encode_uuid(uuid: bytes) -> str:
    """The text form, 36 characters."""
    text = uuid.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def decode_uuid(text: str, what: str) -> bytes:
    """Hyphenated, or 32 hexadecimal digits. Raises FormatError."""
    plain = text.replace("-", "") if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-" else text
    try:
        uuid = bytes.fromhex(plain)
    except ValueError:
        uuid = b""
    if len(uuid) != 16 or len(plain) != 32:
        raise FormatError(what, expected="a uuid", got=repr(text)[:80])
    return uuid
