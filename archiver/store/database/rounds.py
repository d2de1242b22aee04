"""Which chunks a verification by budgets has come to: all those of a round before any of them comes up again.

A round begins with the chunk numbers that were given out by then; what is stored later waits for the next one. So each
chunk comes up at least once in two rounds, however many new ones keep coming. One round for each thing that is verified
so (``scope``: the whole store, a namespace, a group).

Table ``meta``, key ``round`` and the first 16 bytes of the SHA-256 of the scope: begin of the round u32 (Unix seconds),
number of chunks u32, a bit for each, most significant first.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.store.database import bulk, records
from archiver.store.database.bulk import Numbers
from archiver.store.database.database import Database
from archiver.store.database.unused import counts

_HEAD = struct.Struct("<II")
_AT_ONCE = 1 << 16


@dataclass(slots=True)
class Round:
    """``looked_at``: by chunk number. ``began`` in Unix seconds."""

    began: int
    looked_at: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Known:
    """What is recorded of chunks, as arrays: ``number`` (NO_NUMBER: not known), ``verified`` (Unix seconds, 0: never),
    ``stored`` (bytes, 0: damaged or missing)."""

    number: Numbers
    verified: Numbers
    stored: Numbers


def _key(scope: str) -> bytes:
    return b"round" + hashlib.sha256(scope.encode()).digest()[:16]


def load_round(database: Database, scope: str) -> Round | None:
    """The round that was begun; None when there is none."""
    value = database.get(records.META, _key(scope))
    return None if value is None else database.checked(lambda: _decode(value))


def _decode(value: bytes) -> Round:
    began, count = _HEAD.unpack_from(value)
    bits = np.frombuffer(value, np.uint8, offset=_HEAD.size)
    if len(bits) != -(-count // 8):
        raise ValueError("a round of verifications has another length than it says")
    return Round(began, np.unpackbits(bits, count=count).view(np.bool_))


def new_round(database: Database, now: int) -> Round:
    """One of all chunks that are known now."""
    known = counts(database)
    return Round(now, np.zeros(0 if known is None else known.chunks, np.bool_))


def save_round(database: Database, scope: str, current: Round) -> None:
    value = _HEAD.pack(current.began, len(current.looked_at)) + np.packbits(current.looked_at).tobytes()

    def work(txn: Any) -> None:
        txn.put(_key(scope), value, db=database.table(records.META))

    database.change(work)


def known_of(database: Database, digests: NDArray[np.uint8]) -> Known:
    """What is recorded of the chunks with these digests, an (n, 32) array, best sorted."""
    found = Known(*(np.zeros(len(digests), np.uint32) for _ in range(3)))
    found.number[:] = records.NO_NUMBER
    nobody, nothing = records.DIGEST_VALUE.pack(records.NO_NUMBER, 0), bytes(records.CHUNK_VALUE.size)

    def look(txn: Any, part: slice) -> None:
        keys = np.ascontiguousarray(digests[part]).view(bulk.DIGEST_KEYS).ravel()
        entries = bulk.fetch(txn, database.table(records.DIGEST), keys, bulk.DIGEST_VALUES, nobody)
        numbers = entries["number"].astype(bulk.U32_KEYS)
        rows = bulk.fetch(txn, database.table(records.CHUNK), numbers, bulk.CHUNK_VALUES, nothing)
        found.number[part], found.stored[part] = entries["number"], entries["stored"]
        found.verified[part] = rows["verified"]

    for start in range(0, len(digests), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        database.ask(lambda txn, part=part: look(txn, part))  # type: ignore[misc]
    return found
