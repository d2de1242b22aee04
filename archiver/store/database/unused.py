"""Which chunks of the database nothing refers to, as arrays by chunk number: a byte a chunk, no object of any.

What is found here decides what is deleted, so a table is believed only where another one says the same: an unused
number must be that of its digest in both tables, and every number in use must have a digest. Each function returns
None when the database could not be read, or contradicts itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archiver.store.database import bulk, records
from archiver.store.database.bulk import Numbers
from archiver.store.database.database import Database
from archiver.store.digests import Prefixes, prefixes_of

Marks = NDArray[np.bool_]  # by chunk number: something refers to the chunk

_FORGOTTEN_AT_ONCE = 4096  # rows a transaction: their pages are in memory until it ends


class Unused(NamedTuple):
    """``numbers``: unused chunks in the order of their digests, ``stored`` their bytes; ``kept_*``: those in use that
    have a file. ``prefixes``: of every digest in use, sorted (empty unless asked for)."""

    numbers: Numbers
    stored: int
    kept_chunks: int
    kept_bytes: int
    prefixes: Prefixes


class Counts(NamedTuple):
    """How many chunk and snapshot numbers were given out at one moment."""

    chunks: int
    snapshots: int


def counts(database: Database) -> Counts | None:
    def look(txn: Any) -> Counts:
        found = (txn.get(name, db=database.table(records.META)) for name in (b"chunks", b"snapshots"))
        return Counts(*(records.U32.unpack(value)[0] if value is not None else 0 for value in found))

    return database.ask(look)


def numbers_of(database: Database, digests: NDArray[np.uint8]) -> Numbers | None:
    """The chunk number of each row of an (n, 32) array, best sorted; NO_NUMBER where it has none."""

    def look(txn: Any) -> Numbers:
        keys = np.ascontiguousarray(digests).view(bulk.DIGEST_KEYS).ravel()
        missing = records.DIGEST_VALUE.pack(records.NO_NUMBER, 0)
        found: Numbers = bulk.fetch(txn, database.table(records.DIGEST), keys, bulk.DIGEST_VALUES, missing)["number"]
        return found

    return database.ask(look)


def unused(database: Database, marks: Marks, *, with_prefixes: bool) -> Unused | None:
    """Chunks with a number that is not marked; those with a later number than there are marks are in use."""

    def look(txn: Any) -> Unused | None:
        table = database.table(records.DIGEST)
        found: list[Numbers] = []
        prefixes = np.empty(txn.stat(table)["entries"] if with_prefixes else 0, np.uint64)
        stored = kept_chunks = kept_bytes = marked = filled = 0
        parts: Iterable[tuple[bulk.Records | None, bulk.Records]] = (
            bulk.scan(txn, table, bulk.DIGEST_KEYS, bulk.DIGEST_VALUES)
            if with_prefixes
            else zip(repeat(None), bulk.values(txn, table, bulk.DIGEST_VALUES), strict=False)
        )
        for keys, entries in parts:
            numbers, sizes = entries["number"], entries["stored"]
            in_use = numbers >= len(marks)
            marked -= int(in_use.sum())
            in_use[~in_use] = marks[numbers[~in_use]]
            marked += int(in_use.sum())
            kept_chunks += int((sizes[in_use] > 0).sum())
            kept_bytes += int(sizes[in_use].sum(dtype=np.int64))
            stored += int(sizes[~in_use].sum(dtype=np.int64))
            found.append(numbers[~in_use])
            if keys is not None:
                those = prefixes_of(keys[in_use].view(np.uint8).reshape(-1, 32))
                prefixes[filled : filled + len(those)] = those
                filled += len(those)
        if marked != int(marks.sum()):
            raise ValueError("snapshots refer to chunk numbers without a digest")
        numbers = np.concatenate(found) if found else np.zeros(0, np.uint32)
        return Unused(numbers, stored, kept_chunks, kept_bytes, prefixes[:filled])

    return database.ask(look)


def digests_of(database: Database, numbers: Numbers) -> list[bytes] | None:
    """The digest of each chunk number; the empty string for one that has gone meanwhile."""

    def look(txn: Any) -> list[bytes]:
        missing = bytes(records.CHUNK_VALUE.size)
        keys = numbers.astype(bulk.U32_KEYS)
        rows = bulk.fetch(txn, database.table(records.CHUNK), keys, bulk.CHUNK_VALUES, missing)
        nobody = records.DIGEST_VALUE.pack(records.NO_NUMBER, 0)
        digests = np.ascontiguousarray(rows["digest"])
        back = bulk.fetch(txn, database.table(records.DIGEST), digests, bulk.DIGEST_VALUES, nobody)["number"]
        gone = back == records.NO_NUMBER
        if (back[~gone] != numbers[~gone]).any():
            raise ValueError("a chunk's number is another one's")
        plain: list[bytes] = digests.view("V32").tolist()
        return [b"" if is_gone else digest for digest, is_gone in zip(plain, gone.tolist(), strict=True)]

    return database.ask(look)


def forget_chunks(database: Database, numbers: Numbers, before: Counts) -> None:
    """Drop the rows of chunks whose files are gone; not of those that a snapshot recorded since ``before`` refers to:
    their files are there again."""

    def work(txn: Any, part: Numbers) -> None:
        chunks, digests = database.table(records.CHUNK), database.table(records.DIGEST)
        value = txn.get(b"snapshots", db=database.table(records.META))
        for number in range(before.snapshots, records.U32.unpack(value)[0] if value is not None else 0):
            for references in database.indexes(txn, number):
                part = part[~np.isin(part, references)]
        rows = []
        for number in part.tolist():
            row = txn.get(records.U32_KEY.pack(number), db=chunks)
            if row is not None:
                rows.append((records.CHUNK_VALUE.unpack(row)[0], number))
        for digest, number in sorted(rows):
            entry = txn.get(digest, db=digests)
            if entry is not None and records.DIGEST_VALUE.unpack(entry)[0] == number:
                txn.delete(digest, db=digests)
            txn.delete(records.U32_KEY.pack(number), db=chunks)

    for start in range(0, len(numbers), _FORGOTTEN_AT_ONCE):
        part = numbers[start : start + _FORGOTTEN_AT_ONCE]
        database.change(lambda txn, part=part: work(txn, part))  # type: ignore[misc]
        if not database.usable:
            return
