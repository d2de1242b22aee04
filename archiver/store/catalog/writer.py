"""Making a run of a catalog: records are gathered in a file of the session, and reach the database when the snapshot is
published."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import zstandard

from archiver.core.disk import explained
from archiver.store.catalog.catalog import (
    ARCHIVE_VALUE,
    CHANGE,
    CHANGED,
    LENGTH,
    NEWEST_KEY,
    PART_KEY,
    RUN_KEY,
    Catalog,
    Newest,
    Place,
    RunHeader,
    change,
)
from archiver.store.catalog.columns import pack_columns
from archiver.store.catalog.record import Record
from archiver.store.database import records

_PACK = 128 << 10  # bytes of records
_NAMES_PART = 256 << 10  # bytes
_PLACES_PART = 4096  # rows
_NEWEST_PART = 16384
_WORTH = 12  # a change must be so many times smaller than its record
_SPOOLED = b"session"  # what a value is sealed for while it is in the file
_BATCH = 4 << 20  # bytes put into the database at a time

_Rows = Iterator[tuple[bytes, bytes, bytes]]  # table, key, value


class _Packs:
    """Values of one kind, appended to the session's file as they get full."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._parts: list[bytes] = []
        self.size = 0
        self.spans: list[tuple[int, int]] = []

    def add(self, *parts: bytes) -> tuple[int, int]:
        """(number of the pack, offset in it)."""
        place = len(self.spans), self.size
        self._parts.extend(parts)
        self.size += sum(map(len, parts))
        return place

    def flush(self, compress: Callable[[bytes], bytes]) -> None:
        if not self._parts:
            return
        value = compress(b"".join(self._parts))
        start = os.lseek(self._fd, 0, os.SEEK_END)
        view = memoryview(value)
        while view:
            view = view[os.write(self._fd, view) :]
        self.spans.append((start, len(value)))
        self._parts.clear()
        self.size = 0

    def values(self) -> Iterator[bytes]:
        for start, length in self.spans:
            yield os.pread(self._fd, length, start)


class RunWriter:
    """One run. ``before`` is the newest run of the same catalog, which becomes its parent; None: it has no parent.

    Every directory of the archive is told once, by ``keep`` or ``put``. What is gathered in the file is sealed.
    """

    def __init__(self, catalog: Catalog, before: Newest | None, directory: str) -> None:
        self._catalog = catalog
        self._before = before
        self._directory = directory
        with explained("write into", directory):
            self._file = tempfile.TemporaryFile(dir=directory)
        self._times = array("Q")
        self._keys, self._packs = array("Q"), array("Q")
        self._offsets, self._bases = array("Q"), array("Q")
        self._whole = _Packs(self._file.fileno())
        self._changed = _Packs(self._file.fileno())
        self._names = _Packs(self._file.fileno())
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)

    def close(self) -> None:
        self._file.close()

    # -- telling -------------------------------------------------------------------------------------------------------

    def keep(self, number: int, base: int) -> None:
        """The directory ``number`` of the run before is as it was; its contents now begin at ``base``."""
        assert self._before is not None
        before = self._before
        self._add(int(before.keys[number]), before.place(number), base)

    def put(self, key: int, raw: bytes, base: int) -> bool:
        """The record of a directory. False when it is the same as in the run before."""
        number = self._before.find(key) if self._before is not None else -1
        if self._before is None or number < 0:
            self._add_whole(key, raw, base)
            return True
        old = self._before.place(number)
        record = self._catalog.raw(old)
        if record == raw:
            self._add(key, old, base)
            return False
        origin = self._catalog.base_of(old)
        known = record if origin == old else self._catalog.raw(origin)
        if known is not None:
            compressed = change(known, raw)
            if len(compressed) * _WORTH <= len(raw):
                self._add_change(key, origin, compressed, base)
                return True
        self._add_whole(key, raw, base)
        return True

    def names(self, path: bytes, names: Sequence[bytes]) -> None:
        """Names that the directory ``path`` of the archive did not have in the run before."""
        self._names.add(b"\0".join((path, *names, b"\0")))
        if self._names.size >= _NAMES_PART:
            with explained("write into", self._directory):
                self._names.flush(self._pressed)

    def _add(self, key: int, place: Place, base: int) -> None:
        self._keys.append(key)
        self._times.append(place.time)
        self._packs.append(place.pack)
        self._offsets.append(place.offset)
        self._bases.append(base)

    def _add_whole(self, key: int, raw: bytes, base: int) -> None:
        pack, offset = self._whole.add(LENGTH.pack(len(raw)), raw)
        self._add(key, Place(0, pack, offset), base)
        if self._whole.size >= _PACK:
            with explained("write into", self._directory):
                self._whole.flush(self._pressed)

    def _add_change(self, key: int, origin: Place, compressed: bytes, base: int) -> None:
        pack, offset = self._changed.add(CHANGE.pack(len(compressed), *origin), compressed)
        self._add(key, Place(0, pack | CHANGED, offset), base)
        if self._changed.size >= _PACK:
            with explained("write into", self._directory):
                self._changed.flush(self._pressed)

    def _pressed(self, pack: bytes) -> bytes:
        return self._catalog.seal.close(self._compressor.compress(pack), _SPOOLED)

    # -- recording -----------------------------------------------------------------------------------------------------

    def record(self, time: int, *, csum: bytes, fields: str, root: int) -> None:
        """Put the run of the snapshot published at ``time`` into the database, as the newest one.

        A run becomes known by its last record, so one that was interrupted is as if it had never been.
        """
        with explained("write into", self._directory):
            for packs in (self._whole, self._changed, self._names):
                packs.flush(self._pressed)
        catalog = self._catalog
        number = catalog.database.change(lambda txn: _number(catalog, txn, time))
        if number is None:
            return
        places, newest, firsts = self._columns(time)
        header = RunHeader(
            parent=None if self._before is None else self._before.time,
            csum=csum.hex(),
            fields=fields,
            root=root,
            directories=len(self._keys),
            names_parts=len(self._names.spans),
            firsts=tuple(firsts),
        )
        rows = self._rows(number, time, places)
        while batch := list(_batch(rows)):
            catalog.database.change(partial(_put_all, catalog, batch))
        key = RUN_KEY.pack(number, time)
        head = catalog.seal.identity + catalog.seal.close(header.encode(), key)

        def publish(txn: Any) -> None:
            """The run, and that it is the newest one unless another process has recorded a later one."""
            _put_all(catalog, [(records.RUN, key, head)], txn)
            value = txn.get(catalog.key, db=catalog.database.table(records.ARCHIVE))
            _, last, parts = ARCHIVE_VALUE.unpack(value)
            if last >= time:
                return
            for part in range(len(newest), parts):
                txn.delete(NEWEST_KEY.pack(number, part), db=catalog.database.table(records.NEWEST))
            for part, columns in enumerate(newest):
                place = NEWEST_KEY.pack(number, part)
                _put_all(catalog, [(records.NEWEST, place, catalog.seal.close(columns, place))], txn)
            row = ARCHIVE_VALUE.pack(number, time, len(newest))
            _put_all(catalog, [(records.ARCHIVE, catalog.key, row)], txn)

        catalog.database.change(publish)

    def _columns(self, time: int) -> tuple[list[bytes], list[bytes], list[int]]:
        """(parts of the run's own places, parts of all places, first key of each of the former)."""
        columns = [
            np.frombuffer(column, np.uint64)
            for column in (self._keys, self._times, self._packs, self._offsets, self._bases)
        ]
        order = np.argsort(columns[0], kind="stable")
        keys, times, packs, offsets, bases = (column[order] for column in columns)
        own = np.flatnonzero(times == 0)
        times[own] = time
        places, firsts = [], []
        for start in range(0, len(own), _PLACES_PART):
            part = own[start : start + _PLACES_PART]
            places.append(pack_columns([keys[part], packs[part], offsets[part]]))
            firsts.append(int(keys[part[0]]))
        newest = []
        for start in range(0, len(keys), _NEWEST_PART):
            cut = slice(start, start + _NEWEST_PART)
            newest.append(pack_columns([keys[cut], times[cut], packs[cut], offsets[cut], bases[cut]]))
        return places, newest, firsts

    def _rows(self, number: int, time: int, places: Sequence[bytes]) -> _Rows:
        for table, first, values in (
            (records.PACK, 0, self._whole.values()),
            (records.PACK, CHANGED, self._changed.values()),
            (records.PLACE, 0, iter(places)),
            (records.NAMES, 0, self._names.values()),
        ):
            for part, value in enumerate(values, first):
                key = PART_KEY.pack(number, time, part)
                plain = value if table == records.PLACE else self._catalog.seal.open(value, _SPOOLED)
                yield table, key, self._catalog.seal.close(plain, key)


def new_names(before: Record | None, names: Sequence[bytes]) -> list[bytes]:
    """Those of ``names`` that the record before did not have."""
    if before is None:
        return list(names)
    known = before.place
    return [name for name in names if name not in known]


def _batch(rows: _Rows) -> Iterator[tuple[bytes, bytes, bytes]]:
    size = 0
    for row in rows:
        yield row
        size += len(row[2])
        if size >= _BATCH:
            return


def _put_all(catalog: Catalog, rows: Sequence[tuple[bytes, bytes, bytes]], txn: Any) -> None:
    for table, key, value in rows:
        txn.put(key, value, db=catalog.database.table(table))


def _number(catalog: Catalog, txn: Any, time: int) -> int:
    """The archive's number, new if need be; what an interrupted run of that time left is removed."""
    database = catalog.database
    value = txn.get(catalog.key, db=database.table(records.ARCHIVE))
    if value is not None:
        number: int = ARCHIVE_VALUE.unpack(value)[0]
    else:
        meta = database.table(records.META)
        used = txn.get(b"archives", db=meta)
        number = 0 if used is None else records.U32.unpack(used)[0]
        txn.put(b"archives", records.U32.pack(number + 1), db=meta)
        txn.put(catalog.key, ARCHIVE_VALUE.pack(number, 0, 0), db=database.table(records.ARCHIVE))
    start = RUN_KEY.pack(number, time)
    for table in (records.RUN, records.PACK, records.PLACE, records.NAMES):
        cursor = txn.cursor(db=database.table(table))
        found = cursor.set_range(start)
        while found and cursor.key().startswith(start):
            found = cursor.delete()
    return number
