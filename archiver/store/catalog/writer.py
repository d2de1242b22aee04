"""Making a run of a catalog: records are gathered in a file of the session, and reach the database when the snapshot is
published."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.core.disk import explained, nameless_file, read_at
from archiver.store.catalog import runs
from archiver.store.catalog.catalog import (
    CHANGE,
    CHANGED,
    GONE,
    JUMPS,
    LENGTH,
    NEWEST_KEY,
    PART_KEY,
    RUN_KEY,
    ArchiveRow,
    Catalog,
    Place,
    Places,
    RunHeader,
    change,
)
from archiver.store.catalog.columns import compress, pack_columns
from archiver.store.catalog.record import Layout, Record
from archiver.store.database import records

if TYPE_CHECKING:
    from archiver.store.catalog.columns import U64s

_PACK = 128 << 10  # bytes of records
_NAMES_PART = 256 << 10  # bytes
_PLACES_PART = 1024  # rows
_COMPLETE_EVERY = 8  # runs there is one with all places
_NEWEST_PART = 16384
_WORTH = 12  # a change must be so many times smaller than its record
_SPOOLED = b"session"  # what a value is sealed for while it is in the file
_BATCH = 4 << 20  # bytes put into the database at a time

_AS_BEFORE = Place((1 << 64) - 1, 0, 0)  # of a directory told by its number in the run before

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
            yield read_at(self._fd, length, start)


class RunWriter:
    """One run. ``before`` is an earlier run of the same catalog, best the one before, and becomes its parent; None: it
    has none.

    Every directory of the archive is told once, by ``keep`` or ``put``. What is gathered in the file is sealed.
    """

    def __init__(self, catalog: Catalog, before: Places | None, directory: str) -> None:
        self._catalog = catalog
        self.before = before
        self._directory = directory
        with explained("write into", directory):
            self._fd = nameless_file(directory)
        self._times = array("Q")
        self._keys, self._packs = array("Q"), array("Q")
        self._offsets, self._bases = array("Q"), array("Q")
        self._jumps = array("Q")  # three numbers each: of the directory in the order of telling, of the file, bytes
        self._whole = _Packs(self._fd)
        self._changed = _Packs(self._fd)
        self._names = _Packs(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # closed even when that fails
            os.close(fd)

    # -- telling -------------------------------------------------------------------------------------------------------

    def keep(self, number: int, layout: Layout) -> None:
        """The directory ``number`` of the run before is as it was; its contents may lie elsewhere."""
        self._add(number, _AS_BEFORE, layout)

    def put(self, key: int, raw: bytes, layout: Layout) -> bool:
        """The record of a directory. False when it is the same as in the run before."""
        number = self.before.find(key) if self.before is not None else -1
        if self.before is None or number < 0:
            self._add_whole(key, raw, layout)
            return True
        old = self.before.place(number)
        record = self._catalog.raw(old)
        if record == raw:
            self._add(key, old, layout)
            return False
        origin = self._catalog.base_of(old)
        known = record if origin == old else self._catalog.raw(origin)
        if known is not None:
            compressed = change(known, raw)
            if len(compressed) * _WORTH <= len(raw):
                self._add_change(key, origin, compressed, layout)
                return True
        self._add_whole(key, raw, layout)
        return True

    def names(self, path: bytes, names: Sequence[bytes]) -> None:
        """Names that the directory ``path`` of the archive did not have in the run before."""
        self._names.add(b"\0".join((path, *names, b"\0")))
        if self._names.size >= _NAMES_PART:
            with explained("write into", self._directory):
                self._names.flush(self._pressed)

    def _add(self, key: int, place: Place, layout: Layout) -> None:
        self._keys.append(key)
        self._times.append(place.time)
        self._packs.append(place.pack)
        self._offsets.append(place.offset)
        for file, size in layout.jumps:
            self._jumps.extend((len(self._bases), file, size))
        self._bases.append(layout.base)

    def _add_whole(self, key: int, raw: bytes, layout: Layout) -> None:
        pack, offset = self._whole.add(LENGTH.pack(len(raw)), raw)
        self._add(key, Place(0, pack, offset), layout)
        if self._whole.size >= _PACK:
            with explained("write into", self._directory):
                self._whole.flush(self._pressed)

    def _add_change(self, key: int, origin: Place, compressed: bytes, layout: Layout) -> None:
        pack, offset = self._changed.add(CHANGE.pack(len(compressed), *origin), compressed)
        self._add(key, Place(0, pack | CHANGED, offset), layout)
        if self._changed.size >= _PACK:
            with explained("write into", self._directory):
                self._changed.flush(self._pressed)

    def _pressed(self, pack: bytes) -> bytes:
        return self._catalog.seal.close(compress(pack), _SPOOLED)

    # -- recording -----------------------------------------------------------------------------------------------------

    def record(self, time: int, *, csum: bytes, fields: str, root: int) -> bool:
        """Put the run of the snapshot published at ``time`` into the database, in the place of one that was there.

        A run becomes known by its last record, so one that was interrupted is as if it had never been. False when the
        database cannot be written, or what the run leans on was removed meanwhile.
        """
        with explained("write into", self._directory):
            for packs in (self._whole, self._changed, self._names):
                packs.flush(self._pressed)
        database = self._catalog.database
        chain = self._chain()
        told = self._told()
        columns = self._columns(told, time)
        places, firsts = self._places(columns, time, complete=chain == 0)
        newest = dict(enumerate(pack_columns(part) for part in _cut(columns, _NEWEST_PART)))
        newest |= {
            part | JUMPS: pack_columns(cut) for part, cut in enumerate(_cut(self._jump_columns(told[0]), _NEWEST_PART))
        }
        header = RunHeader(
            parent=None if self.before is None else self.before.time,
            chain=chain,
            csum=csum.hex(),
            fields=fields,
            root=root,
            directories=len(self._keys),
            names_parts=len(self._names.spans),
            firsts=tuple(firsts),
        )
        with runs.alone(database) as is_alone:
            row = database.change(partial(self._prepare, time)) if is_alone else None
            if row is None:
                return False
            rows = self._rows(row.number, time, places)
            while batch := list(_batch(rows)):
                database.change(partial(self._put_all, batch))
            self._catalog.forget_kept(time)
            return database.change(partial(self._publish, time, row, header, newest)) is True

    def _prepare(self, time: int, txn: Any) -> ArchiveRow | None:
        """Make room for the run. None when what it leans on was removed."""
        row = runs.archive_row(self._catalog, txn)
        if self.before is not None:
            value = txn.get(RUN_KEY.pack(row.number, self.before.time), db=self._catalog.database.table(records.RUN))
            if value is None or self._catalog.mark(value) != self.before.mark:
                return None
        runs.remove(self._catalog, txn, time)
        return runs.archive_row(self._catalog, txn)

    def _publish(self, time: int, row: ArchiveRow, header: RunHeader, newest: dict[int, bytes], txn: Any) -> bool:
        catalog = self._catalog
        if runs.archive_row(catalog, txn) != row:
            return False  # another process has begun a new database
        key = RUN_KEY.pack(row.number, time)
        self._put_all([(records.RUN, key, catalog.encode_run(key, header))], txn)
        if max(runs.heads(catalog, txn, row.number)) == time:
            row = runs.forget_newest(catalog, txn, row)
            for part, value in newest.items():
                place = NEWEST_KEY.pack(row.number, part)
                self._put_all([(records.NEWEST, place, catalog.sealed(value, place, time))], txn)
            runs.put_archive_row(
                catalog,
                txn,
                row._replace(
                    newest=time, parts=sum(part < JUMPS for part in newest), jumps=sum(part >= JUMPS for part in newest)
                ),
            )
        return True

    def _put_all(self, rows: Sequence[tuple[bytes, bytes, bytes]], txn: Any) -> None:
        for table, key, value in rows:
            txn.put(key, value, db=self._catalog.database.table(table))

    def _chain(self) -> int:
        """How many runs back there is one with all places; 0: this one."""
        before = None if self.before is None else self._catalog.run(self.before.time)
        return 0 if before is None else (before.chain + 1) % _COMPLETE_EVERY

    def _told(self) -> list[U64s]:
        """Key, time (0: of this run), pack, offset, base of every directory in the order of telling."""
        told = (self._keys, self._times, self._packs, self._offsets, self._bases)
        columns = [np.array(column, np.uint64) for column in told]
        if self.before is not None:
            kept = columns[1] == _AS_BEFORE.time
            numbers = columns[0][kept].astype(np.intp)
            for column, before in zip(columns, self.before.columns, strict=False):  # all but ``base``
                column[kept] = before[numbers]
        return columns

    @staticmethod
    def _columns(told: list[U64s], time: int) -> list[U64s]:
        """The same, sorted by key, with times."""
        order = np.argsort(told[0], kind="stable")
        columns = [column[order] for column in told]
        columns[1][columns[1] == 0] = time
        return columns

    def _jump_columns(self, keys: U64s) -> list[U64s]:
        """Number of the directory in the order of the keys, number of the file in it, bytes; sorted."""
        jumps = np.frombuffer(self._jumps, np.uint64).reshape(-1, 3)
        order = np.argsort(keys, kind="stable")
        place = np.empty(len(order), np.uint64)
        place[order] = np.arange(len(order), dtype=np.uint64)
        directories = place[jumps[:, 0].astype(np.intp)]
        sorted_jumps = np.lexsort((jumps[:, 1], directories))
        return [directories[sorted_jumps], jumps[sorted_jumps, 1], jumps[sorted_jumps, 2]]

    def _places(self, columns: list[U64s], time: int, *, complete: bool) -> tuple[list[bytes], list[int]]:
        """(parts of the places that the run is to have, first key of each)."""
        columns = columns[:-1]
        if not complete:
            assert self.before is not None
            keys, times, packs, offsets = columns
            changed = times == time
            places = keys.searchsorted(self.before.keys)  # both sorted; np.isin would import numpy.ma, 60 ms
            gone = self.before.keys[keys.take(places, mode="clip") != self.before.keys]
            columns = [
                np.concatenate((keys[changed], gone)),
                np.concatenate((times[changed], np.full(len(gone), time, np.uint64))),
                np.concatenate((packs[changed], np.full(len(gone), GONE, np.uint64))),
                np.concatenate((offsets[changed], np.zeros(len(gone), np.uint64))),
            ]
            order = np.argsort(columns[0])
            columns = [column[order] for column in columns]
        parts = list(_cut(columns, _PLACES_PART))
        return [pack_columns(part) for part in parts], [int(part[0][0]) for part in parts]

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
                yield table, key, self._catalog.sealed(plain, key)


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


def _cut(columns: list[U64s], rows: int) -> Iterator[list[U64s]]:
    for start in range(0, len(columns[0]), rows):
        yield [column[start : start + rows] for column in columns]
