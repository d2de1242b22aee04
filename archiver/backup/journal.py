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
from collections.abc import Iterator
from contextlib import suppress

from blake3 import blake3

from archiver.core.row import ROW
from archiver.core.spill import SpillTable
from archiver.source.metadata import Features
from archiver.store.catalog.seal import Seal
from archiver.store.layout import GroupRef
from archiver.store.sessions import Session
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.index import DynamicIndex
from formats.pxar.constants import HEADER_SIZE

_ENTRY = struct.Struct("<8s32sq")
_OFFSET = struct.Struct("<q")
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
    """What an interrupted run left of an archive: ``index`` of its payload stream, and the files in that."""

    def __init__(self, index: DynamicIndex, files: SpillTable) -> None:
        self.index = index
        self._files = files  # file system and row -> offset

    def find(self, row: bytes, features: Features) -> int | None:
        """The payload offset of a file that is as it was stored."""
        offset = self._files.get(features.identity + row)
        return None if offset is None else _OFFSET.unpack(offset)[0]

    def close(self) -> None:
        self._files.close()


def read_interrupted(session: str, name: str, seal: Seal, spill_directory: str) -> Interrupted | None:
    """What the interrupted session in the directory ``session`` left of the archive ``name``; None when it is nothing
    that can be used."""
    files = SpillTable(spill_directory)
    try:
        index = _read_index(os.path.join(session, "snapshot", f"{name}.ppxar.didx"))
        for system, row, offset in _read_entries(os.path.join(session, f"{name}.journal"), seal):
            if 0 < offset <= index.size - HEADER_SIZE - ROW.unpack(row)[1]:  # the journal may be ahead of the index
                files.put(system + row, _OFFSET.pack(offset))
    except (OSError, ValueError, FormatError):
        files.close()
        return None
    return Interrupted(index, files)


def _read_entries(path: str, seal: Seal) -> Iterator[tuple[bytes, bytes, int]]:
    """File system, row and payload offset of each file; up to the first block that is not whole."""
    with open(path, "rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, check = _HEAD.unpack(head)
            block = file.read(length) if length <= _LARGEST_BLOCK else b""
            if len(block) != length or blake3(block).digest(length=16) != check:
                break
            entries = seal.open(block, _LABEL)
            yield from _ENTRY.iter_unpack(entries[: len(entries) // _ENTRY.size * _ENTRY.size])


def _read_index(path: str) -> DynamicIndex:
    """The entries of an index that was not finished."""
    with open(path, "rb") as file:
        data = file.read()
    whole = _INDEX_HEADER + (len(data) - _INDEX_HEADER) // _INDEX_ENTRY * _INDEX_ENTRY
    return DynamicIndex.decode(data[:whole])
