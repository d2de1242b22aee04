"""Which live file an image was read from, so that one that has not changed need not be read again.

Table ``meta``, key ``image`` and the first 16 bytes of the SHA-256 of group, name and key; value, sealed when the image
is encrypted or signed: time of the snapshot i64, csum of its index 32, file system 8, row of the file 32 (core/row.py).
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, NamedTuple

from archiver.store.catalog.seal import Seal
from archiver.store.database import records
from archiver.store.database.database import Database
from archiver.store.layout import GroupRef

_VALUE = struct.Struct("<q32s8s32s")


class ImageRow(NamedTuple):
    """``time`` of the snapshot, ``csum`` of its index as in the manifest; ``file_system`` and ``row`` of the file."""

    time: int
    csum: bytes
    file_system: bytes
    row: bytes


def _key(group: GroupRef, name: str, seal: Seal) -> bytes:
    return b"image" + hashlib.sha256(f"{group.path}/{name}".encode() + seal.identity).digest()[:16]


def load_image(database: Database, group: GroupRef, name: str, seal: Seal) -> ImageRow | None:
    """What is known of the image ``name`` (``x.img``) of a group; None when that is nothing."""
    key = _key(group, name, seal)
    value = database.get(records.META, key)
    if value is None:
        return None
    try:
        return ImageRow(*_VALUE.unpack(seal.open(value, key)))
    except (ValueError, struct.error):
        return None  # made with another key, or not what was written: the image is read


def save_image(database: Database, group: GroupRef, name: str, seal: Seal, row: ImageRow | None) -> None:
    """None: nothing is known from now on."""
    key = _key(group, name, seal)

    def work(txn: Any) -> None:
        if row is None:
            txn.delete(key, db=database.table(records.META))
        else:
            txn.put(key, seal.close(_VALUE.pack(*row), key), db=database.table(records.META))

    database.change(work)
