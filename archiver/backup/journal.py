"""What an interrupted run leaves to the next one: which files it had stored, and in which chunks.

In the directory of the session, for each archive NAME:

* ``NAME.journal``: blocks of { length u32, BLAKE3 of the rest 16 bytes, entries (sealed when encrypting) }; an entry
  tells of a regular file that was read to its end: file system 8, row 32 (core/row.py), offset in the payload stream;
* ``snapshot/NAME.ppxar.didx``: the index of that stream, as far as it got;

and ``resume.json``: the group, crypt mode and key it was for. Nothing of this is believed: a block that is not whole
ends a journal, a file must be as it was, and every chunk is seen again before it is used.
"""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from archiver.core.row import ROW
from archiver.source.metadata import Features
from archiver.store.catalog.seal import Seal
from archiver.store.layout import GroupRef
from archiver.store.sessions import Session
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.index import DynamicIndex
from formats.pxar.constants import HEADER_SIZE

_ENTRY = struct.Struct("<8s32sq")
_ENTRIES = np.dtype([("system", "V8"), ("row", "V32"), ("offset", "<i8")])
_HEAD = struct.Struct("<I16s")
_ENTRIES_AT_ONCE = 512
_BYTES_AT_ONCE = 16 << 20  # of contents between two blocks
_LABEL = b"journal"
_LARGEST_BLOCK = 1 << 20
_INDEX_ENTRY = 40  # bytes
_INDEX_HEADER = 4096


def about(group: GroupRef, crypt_mode: str, crypt: CryptConfig | None) -> bytes:
    """What a run must have in common with the interrupted one."""
    key = "" if crypt is None else crypt.fingerprint.hex()
    return json.dumps({"group": group.path, "crypt": crypt_mode, "key": key}).encode()


class Journal:
    """Of one archive of a running backup."""

    def __init__(self, session: Session, name: str, seal: Seal, about: bytes) -> None:
        self._session = session
        self._seal = seal
        self._about = about
        self._path = os.path.join(session.path, f"{name}.journal")
        self._fd = -1
        self._entries: list[bytes] = []
        self._bytes = 0

    def add(self, row: bytes, features: Features, offset: int) -> None:
        """A file that ``row`` proves is stored, with its PAYLOAD header at ``offset``."""
        self._entries.append(_ENTRY.pack(features.identity, row, offset))
        self._bytes += ROW.unpack(row)[1]
        if len(self._entries) >= _ENTRIES_AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._session.resumable(self._about)
        block = self._seal.close(b"".join(self._entries), _LABEL)
        os.write(self._fd, _HEAD.pack(len(block), blake3(block).digest(length=16)) + block)
        self._entries.clear()
        self._bytes = 0

    def close(self) -> None:
        """What was not written yet is written when the run was interrupted; nothing needs to be durable."""
        with suppress(OSError):
            if self._entries:
                self._flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Interrupted:
    """What an interrupted run left of an archive: ``index`` of its payload stream, and the files in that; the journal
    may be ahead of it."""

    def __init__(self, index: DynamicIndex, entries: NDArray[np.void]) -> None:
        self.index = index
        rows = np.frombuffer(entries["row"].tobytes(), "<i8").reshape(-1, 4)
        offsets = entries["offset"]
        is_there = (offsets > 0) & (offsets + HEADER_SIZE + rows[:, 1] <= index.end(len(index) - 1))
        entries, inodes = entries[is_there], rows[is_there, 0]
        order = np.argsort(inodes, kind="stable")
        self._entries = entries[order]
        self._inodes = inodes[order]

    def find(self, row: bytes, features: Features) -> int | None:
        """The payload offset of a file that is as it was stored."""
        inode = ROW.unpack(row)[0]
        at = int(self._inodes.searchsorted(inode, "right"))
        while at > 0 and self._inodes[at - 1] == inode:
            at -= 1
            system, stored, offset = _ENTRY.unpack(self._entries[at].tobytes())
            if (system, stored) == (features.identity, row):
                found: int = offset
                return found
        return None


def read_interrupted(session: str, name: str, seal: Seal) -> Interrupted | None:
    """What the interrupted session in the directory ``session`` left of the archive ``name``; None when it is nothing
    that can be used."""
    try:
        entries = _read_entries(os.path.join(session, f"{name}.journal"), seal)
        index = _read_index(os.path.join(session, "snapshot", f"{name}.ppxar.didx"))
    except (OSError, ValueError, FormatError):
        return None
    return Interrupted(index, entries) if len(entries) and len(index) else None


def _read_entries(path: str, seal: Seal) -> NDArray[np.void]:
    blocks = []
    with open(path, "rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, check = _HEAD.unpack(head)
            block = file.read(length) if length <= _LARGEST_BLOCK else b""
            if len(block) != length or blake3(block).digest(length=16) != check:
                break
            blocks.append(seal.open(block, _LABEL))
    return np.frombuffer(b"".join(blocks), _ENTRIES)


def _read_index(path: str) -> DynamicIndex:
    """The entries of an index that was not finished."""
    with open(path, "rb") as file:
        data = file.read()
    whole = _INDEX_HEADER + (len(data) - _INDEX_HEADER) // _INDEX_ENTRY * _INDEX_ENTRY
    return DynamicIndex.decode(data[:whole])
