"""The runs of an archive inside a transaction: its number, and what is removed.

A run leans on its ancestors: where a directory is as it was, it has only its place there. So whoever removes a run
removes its descendants too. Writers are alone: they hold a lock on the database's directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from archiver.core.locks import DirectoryLock
from archiver.store.catalog.catalog import JUMPS, NEWEST_KEY, RUN_KEY, ArchiveRow, Catalog, RunHead
from archiver.store.database import records
from archiver.store.database.database import Database

PARTS = (records.PACK, records.PLACE, records.NAMES)

_PATIENCE = 60.0  # seconds


@contextmanager
def alone(database: Database) -> Iterator[bool]:
    """Whether what is done inside is done while no other process or thread writes runs."""
    try:
        lock = DirectoryLock(database.directory, wait_seconds=_PATIENCE)
    except OSError:
        yield False
        return
    with lock:
        yield True


def archive_row(catalog: Catalog, txn: Any) -> ArchiveRow:
    """The archive's row, a new one if need be."""
    database = catalog.database
    value = txn.get(catalog.key, db=database.table(records.ARCHIVE))
    if value is not None:
        return catalog.decode_row(value)
    meta = database.table(records.META)
    used = txn.get(b"archives", db=meta)
    row = ArchiveRow(0 if used is None else records.U32.unpack(used)[0], 0, 0, 0, txn.id())
    txn.put(b"archives", records.U32.pack(row.number + 1), db=meta)
    put_archive_row(catalog, txn, row)
    return row


def put_archive_row(catalog: Catalog, txn: Any, row: ArchiveRow) -> None:
    txn.put(catalog.key, catalog.encode_row(row), db=catalog.database.table(records.ARCHIVE))


def heads(catalog: Catalog, txn: Any, number: int) -> dict[int, RunHead]:
    """All runs of the archive by time, in order."""
    cursor = txn.cursor(db=catalog.database.table(records.RUN))
    found = {}
    for key in keys(cursor, records.U32_KEY.pack(number)):
        found[RUN_KEY.unpack(key)[1]] = catalog.decode_head(key, cursor.value())
    return found


def keys(cursor: Any, prefix: bytes) -> Iterator[bytes]:
    """The keys that begin with ``prefix``; the cursor is at each in turn."""
    found = cursor.set_range(prefix)
    while found and cursor.key().startswith(prefix):
        yield cursor.key()
        found = cursor.next()


def remove(catalog: Catalog, txn: Any, time: int) -> None:
    """Remove the run of that time and all that lean on it, what an interrupted one left there included."""
    row = archive_row(catalog, txn)
    doomed = {time}
    known = heads(catalog, txn, row.number)
    for when, head in known.items():
        if head.parent in doomed:
            doomed.add(when)
    for when in doomed:
        delete_run(catalog, txn, row, when)


def delete_run(catalog: Catalog, txn: Any, row: ArchiveRow, time: int) -> None:
    """Remove one run, on which no other leans."""
    for table in (records.RUN, *PARTS):
        delete_all(catalog, txn, table, RUN_KEY.pack(row.number, time))
    if row.newest == time:
        put_archive_row(catalog, txn, forget_newest(catalog, txn, row))


def put_state(catalog: Catalog, txn: Any, key: bytes, state: int) -> None:
    """Note what became of the snapshot of the run with this key."""
    table = catalog.database.table(records.RUN)
    value = txn.get(key, db=table)
    if value is not None:
        txn.put(key, catalog.with_state(key, value, state), db=table)


def delete_all(catalog: Catalog, txn: Any, table: bytes, prefix: bytes) -> None:
    """Delete the records of a table whose keys begin with ``prefix``."""
    cursor = txn.cursor(db=catalog.database.table(table))
    found = cursor.set_range(prefix)
    while found and cursor.key().startswith(prefix):
        found = cursor.delete()


def forget_newest(catalog: Catalog, txn: Any, row: ArchiveRow) -> ArchiveRow:
    """Remove the places of the newest run; its row without them."""
    for part in (*range(row.parts), *range(JUMPS, JUMPS + row.jumps)):
        txn.delete(NEWEST_KEY.pack(row.number, part), db=catalog.database.table(records.NEWEST))
    return row._replace(newest=0, parts=0, jumps=0)
