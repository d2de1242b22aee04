"""Labels: file 0 and file 1 of a medium, one block each (spec tape.md 2.5). Their keys are sorted.

media label       ctime, label_text, pool (when the medium is kept for one), uuid
media-set label   ctime, encryption_key_fingerprint and key-config (when the set is encrypted), pool, seq_nr, uuid;
                  a uuid of zeros is an empty medium that is kept for a pool (media of before 2022)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from formats.crypt import format_fingerprint, parse_fingerprint
from formats.errors import FormatError
from formats.keyfile import KeyFile
from formats.naming import check_media_name
from formats.tape.content import MEDIA_LABEL, MEDIA_SET_LABEL, Content, encode_uuid

MEDIA_LABEL_FILE, MEDIA_SET_LABEL_FILE = 0, 1
NO_SET = bytes(16)
MAX_SEQ_NR = (1 << 16) - 1  # no set has as many media; what else says so is no label


@dataclass(frozen=True, slots=True)
class MediaLabel:
    """Who a medium is: ``uuid`` (16 bytes) and ``label_text``. ``time``: when it was labelled, Unix seconds."""

    label_text: str
    uuid: bytes
    time: int
    pool: str | None = None

    def content(self, uuid: bytes, time: int) -> Content:
        """As it is written at ``time`` into a file with this uuid."""
        fields: dict[str, Any] = {"ctime": self.time, "label_text": self.label_text}
        if self.pool is not None:
            fields["pool"] = self.pool
        return Content(MEDIA_LABEL, uuid, time, fields | {"uuid": encode_uuid(self.uuid)})

    @staticmethod
    def decode(content: Content) -> MediaLabel:
        """Raises FormatError."""
        _expect(content, MEDIA_LABEL, "media label")
        text = content.text("label_text")
        check_media_name("label text", text)
        return MediaLabel(text, content.uuid_of("uuid"), content.number("ctime"), _pool(content, required=False))


@dataclass(frozen=True, slots=True)
class MediaSetLabel:
    """Where a medium belongs: the set ``uuid`` (16 bytes), its position ``seq_nr`` from 0, the pool. ``time``: when it
    joined the set. Of an encrypted set ``fingerprint`` (32 bytes) of the key, and ``key``, which its passphrase opens.
    """

    pool: str
    uuid: bytes
    seq_nr: int
    time: int
    fingerprint: bytes | None = None
    key: KeyFile | None = None

    def content(self, uuid: bytes, time: int) -> Content:
        """As it is written at ``time`` into a file with this uuid."""
        fields: dict[str, Any] = {"ctime": self.time}
        if self.fingerprint is not None:
            fields["encryption_key_fingerprint"] = format_fingerprint(self.fingerprint)
            if self.key is not None:
                fields["key-config"] = _sorted(json.loads(self.key.encode()))
        fields |= {"pool": self.pool, "seq_nr": self.seq_nr, "uuid": encode_uuid(self.uuid)}
        return Content(MEDIA_SET_LABEL, uuid, time, fields)

    @staticmethod
    def decode(content: Content) -> MediaSetLabel:
        """Raises FormatError."""
        _expect(content, MEDIA_SET_LABEL, "media-set label")
        fingerprint = key = None
        if content.fields.get("encryption_key_fingerprint") is not None:
            fingerprint = parse_fingerprint(content.text("encryption_key_fingerprint"))
        if content.fields.get("key-config") is not None:
            key = KeyFile.decode(json.dumps(content.fields["key-config"]).encode())
        pool = _pool(content, required=True)
        assert pool is not None
        when, number = content.number("ctime"), content.number("seq_nr", MAX_SEQ_NR)
        return MediaSetLabel(pool, content.uuid_of("uuid"), number, when, fingerprint, key)


def _expect(content: Content, magic: bytes, what: str) -> None:
    if content.magic != magic:
        raise FormatError("content of a file", expected=f"a {what}", got=f"a {content.kind}")


def _pool(content: Content, *, required: bool) -> str | None:
    if content.fields.get("pool") is None and not required:
        return None
    pool = content.text("pool")
    check_media_name("pool", pool)
    return pool


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value
