"""What an interrupted run leaves to the next one: which files it had stored, and in which chunks.

In the directory of the session, for each archive NAME:

* ``NAME.journal``: blocks of { length u32, BLAKE3 of the uuid of the payload stream and the rest 16 bytes, entries
  (sealed when encrypting) }; an entry tells of a regular file that was read to its end: file system 8, row 32
  (core/row.py), offset in the payload stream;
* ``snapshot/NAME.ppxar.didx``: the index of that stream, as far as it got;
* ``NAME.proof``, of a run with a key: { count u32, BLAKE3 of the uuid, the count as u64, the checksum of the index's
  first ``count`` entries 16 bytes } for each time that entries were added to it;

and ``resume.json``: the group, crypt mode and key it was for. Nothing of this is believed: a block that is not whole
ends a journal, a file must be as it was, and every chunk is seen again before it is used. A journal that cannot be
written just ends: files that it does not tell of are read again.

With a key all these BLAKE3 are keyed with one that is derived from it. Else whoever has the store could exchange chunks
in an index that no manifest has a checksum of yet, and the next run would save them as the contents of other files.
"""

from __future__ import annotations

import hmac
import json
import os
import struct
from collections.abc import Iterator
from hashlib import sha256

import numpy as np
from blake3 import blake3

from archiver.core.disk import write_all
from archiver.core.row import ROW
from archiver.core.spill import SpillTable
from archiver.errors import Damaged
from archiver.source.metadata import Features
from archiver.store.catalog.seal import Seal
from archiver.store.chunks import MAX_CHUNK
from archiver.store.layout import GroupRef
from archiver.store.sessions import Session
from archiver.store.snapshots import open_regular, read_small
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.index import DynamicIndex
from formats.pxar.constants import HEADER_SIZE

_ENTRY = struct.Struct("<8s32sq")
_OFFSET = struct.Struct("<q")
_HEAD = struct.Struct("<I16s")
_PROOF = struct.Struct("<I16s")
_COUNT = struct.Struct("<Q")
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_ENTRIES_AT_ONCE = 512
_BYTES_AT_ONCE = 16 << 20  # of contents between two blocks
_LABEL = b"journal"
_KEY_LABEL = b"archiver journal"
_LARGEST_BLOCK = 1 << 20
_LARGEST_INDEX = 32 << 20  # bytes: 3 TB of contents in chunks of 4 MiB
_INDEX_ENTRY = 40  # bytes
_INDEX_HEADER = 4096


def about(group: GroupRef, crypt_mode: str, crypt: CryptConfig | None) -> bytes:
    """What a run must have in common with the interrupted one."""
    key = "" if crypt is None else crypt.fingerprint.hex()
    return json.dumps({"group": group.path, "crypt": crypt_mode, "key": key}).encode()


class Journal:
    """Of one archive of a running backup."""

    def __init__(
        self, session: Session, name: str, stream: bytes, seal: Seal, about: bytes, crypt: CryptConfig | None
    ) -> None:
        """``stream``: the uuid of the payload stream; ``crypt``: the key of a run that encrypts or signs."""
        self._session = session
        self._seal = seal
        self._about = about
        self._check = _Check(crypt, stream)
        self._path = os.path.join(session.path, f"{name}.journal")
        self._fd = -1
        self._proof_path = os.path.join(session.path, f"{name}.proof")
        self._proof_fd = -1
        self._entries: list[bytes] = []
        self._bytes = 0
        self._has_failed = False

    def add(self, row: bytes, features: Features, size: int, offset: int) -> None:
        """A file of ``size`` bytes that ``row`` proves is stored, with its PAYLOAD header at ``offset``."""
        if self._has_failed:
            return
        self._entries.append(_ENTRY.pack(features.identity, row, offset))
        self._bytes += size
        if len(self._entries) >= _ENTRIES_AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        block = self._seal.close(b"".join(self._entries), _LABEL)
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, _APPEND, 0o600)
                self._session.resumable(self._about)
            write_all(self._fd, [_HEAD.pack(len(block), self._check(block)), block])
        except OSError:
            self._has_failed = True
        self._entries.clear()
        self._bytes = 0

    def index_written(self, count: int, csum: bytes) -> None:
        """The index of the payload stream has its first ``count`` entries in its file; ``csum``: their checksum. Called
        by one thread at a time."""
        if not self._check.is_keyed or self._has_failed:
            return
        try:
            if self._proof_fd < 0:
                self._proof_fd = os.open(self._proof_path, _APPEND, 0o600)
            write_all(self._proof_fd, [_PROOF.pack(count, self._check(_COUNT.pack(count) + csum))])
        except OSError:
            self._has_failed = True

    def close(self) -> None:
        """What was not written yet is written when the run was interrupted; nothing needs to be durable."""
        if self._entries:
            self._flush()
        for fd in (self._fd, self._proof_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._proof_fd = -1


class _Check:
    """What tells that bytes belong to the stream with this uuid, and with a key, that its owner has written them."""

    def __init__(self, crypt: CryptConfig | None, stream: bytes) -> None:
        self.is_keyed = crypt is not None
        self._start = blake3(stream) if crypt is None else blake3(stream, key=crypt.auth_tag(_KEY_LABEL))

    def __call__(self, data: bytes) -> bytes:
        return self._start.copy().update(data).digest(length=16)


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


def read_interrupted(
    session: str, name: str, seal: Seal, spill_directory: str, crypt: CryptConfig | None
) -> Interrupted | None:
    """What the interrupted session in the directory ``session`` left of the archive ``name``; None when it is nothing
    that can be used."""
    files = SpillTable(spill_directory)
    try:
        index = _read_index(os.path.join(session, "snapshot", f"{name}.ppxar.didx"))
        check = _Check(crypt, index.uuid)
        if check.is_keyed:
            index = _proven(index, os.path.join(session, f"{name}.proof"), check)
        for system, row, offset in _read_entries(os.path.join(session, f"{name}.journal"), check, seal):
            if 0 < offset <= index.size - HEADER_SIZE - ROW.unpack(row)[1]:  # the journal may be ahead of the index
                files.put(system + row, _OFFSET.pack(offset))
    except (OSError, ValueError, FormatError, Damaged):
        files.close()
        return None
    return Interrupted(index, files)


def _read_entries(path: str, check: _Check, seal: Seal) -> Iterator[tuple[bytes, bytes, int]]:
    """File system, row and payload offset of each file; up to the first block that is not whole."""
    with open_regular(path) as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, wanted = _HEAD.unpack(head)
            block = file.read(length) if length <= _LARGEST_BLOCK else b""
            if len(block) != length or not hmac.compare_digest(check(block), wanted):
                break
            entries = seal.open(block, _LABEL)
            yield from _ENTRY.iter_unpack(entries[: len(entries) // _ENTRY.size * _ENTRY.size])


def _read_index(path: str) -> DynamicIndex:
    """The entries of an index that was not finished, up to one that cannot be."""
    data = read_small(path, _LARGEST_INDEX)
    count = (len(data) - _INDEX_HEADER) // _INDEX_ENTRY
    index = DynamicIndex.decode(data[: _INDEX_HEADER + count * _INDEX_ENTRY])
    impossible = np.flatnonzero(index.sizes() > MAX_CHUNK)
    if not impossible.size:
        return index
    return DynamicIndex.decode(data[: _INDEX_HEADER + int(impossible[0]) * _INDEX_ENTRY])


def _proven(index: DynamicIndex, path: str, check: _Check) -> DynamicIndex:
    """The first entries of an index that the key vouches for. Raises FormatError when there are none."""
    proven, total = 0, sha256()
    proofs = read_small(path, _LARGEST_INDEX)
    for count, wanted in _PROOF.iter_unpack(proofs[: len(proofs) // _PROOF.size * _PROOF.size]):
        if not proven < count <= len(index):
            break
        total.update(index.entries[proven * _INDEX_ENTRY : count * _INDEX_ENTRY].data)
        if not hmac.compare_digest(check(_COUNT.pack(count) + total.digest()), wanted):
            break
        proven = count
    if not proven:
        raise FormatError("index of an interrupted run: nothing in it is proven")
    return index.first(proven)
