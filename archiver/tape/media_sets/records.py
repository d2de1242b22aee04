"""The tables of the media-set catalogs (spec tape.md 8.1).

===========  ===========================================  ==================================================
table        key                                          value
===========  ===========================================  ==================================================
``meta``     ``schema`` ``place`` ``sets`` ``stores``     u32 · path of the state · next number of a set, of a
                                                          store u32
``set``      uuid of a media set, 16 bytes                its number u32
``member``   number of the set, position in it            uuid of the medium 16, then of its log as it was read:
                                                          inode u64, size u64, mtime i64 ns, good bytes u64, last
                                                          file u32, the 32 bytes before the end of the good ones
``store``    name of a store                              its number u32
``chunk``    number of the set, of the store, digest 32   position of the medium, file on it
``snap``     number of the set, of the store, first 16    position of the medium, file on it
             bytes of SHA-256 of the snapshot's path
``list``     number of the set, position, file            number of the store u32, path of the snapshot
===========  ===========================================  ==================================================

Numbers in keys, and those of the medium and file, are u32 big-endian, the others little-endian. A set that must be
read again gets a new number; nothing of the old one is found any more, and it is removed. Rows of chunks and snapshots
are only ever written before the row of the member that vouches for them.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import numpy as np

from archiver.store.database.records import DAMAGED as DAMAGED
from archiver.tape.state.catalog_log import Stamp

SCHEMA = 1

META = b"meta"
SET = b"set"
MEMBER = b"member"
STORE = b"store"
CHUNK = b"chunk"
SNAPSHOT = b"snap"
LIST = b"list"
TABLES = (META, SET, MEMBER, STORE, CHUNK, SNAPSHOT, LIST)

U32 = struct.Struct("<I")
NUMBER = struct.Struct(">I")
MEMBER_KEY = struct.Struct(">II")
STORE_KEY = struct.Struct(">II")
LIST_KEY = struct.Struct(">III")
PLACE = struct.Struct(">II")

CHUNK_KEYS = np.dtype("V40")
PLACES = np.dtype([("position", ">u4"), ("file", ">u4")])
NOWHERE = (1 << 32) - 1
TAIL = 32

_MEMBER = struct.Struct(f"<16sQQqQI{TAIL}s")


class MemberRow(NamedTuple):
    """A medium of a set whose log was read to ``end``; ``tail``: what stands before that. ``last_file`` 0: it is just
    being read."""

    medium: bytes
    stamp: Stamp
    end: int
    last_file: int
    tail: bytes

    def encode(self) -> bytes:
        stamp = self.stamp
        return _MEMBER.pack(self.medium, stamp.inode, stamp.size, stamp.mtime_ns, self.end, self.last_file, self.tail)

    @staticmethod
    def decode(value: bytes) -> MemberRow:
        """Raises one of DAMAGED."""
        medium, inode, size, mtime_ns, end, last_file, tail = _MEMBER.unpack(value)
        return MemberRow(medium, Stamp(inode, size, mtime_ns), end, last_file, tail)


def snapshot_key(media_set: int, store: int, path: str) -> bytes:
    return STORE_KEY.pack(media_set, store) + hashlib.sha256(path.encode()).digest()[:16]
