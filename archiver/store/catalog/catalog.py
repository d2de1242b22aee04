"""The catalog of one archive name of one group: a run of records for each snapshot.

Tables (keys big-endian; values of encrypted archives sealed, see seal.py):

===========  ========================================  ================================================================
table        key                                       value
===========  ========================================  ================================================================
``archive``  first 16 bytes of SHA-256 of group path,  number of the archive u32, time of its newest run u64, parts of
             NUL, archive name                         its places u32
``run``      archive u32, snapshot time u64            RunHeader as JSON, behind 8 bytes that tell the key
``pack``     archive u32, time u64, number u32         records: zstd of { length u32, record }; changed ones apart:
                                                       { length u32, place of the base, zstd based on that }
``place``    archive u32, time u64, part u32           columns: directory key (sorted), pack, offset in it
``newest``   archive u32, part u32                     columns: directory key (sorted), time, pack, offset, base
``names``    archive u32, time u64, part u32           zstd of { path NUL { name NUL } NUL }: what is new in this run
===========  ========================================  ================================================================

A run holds the records of the directories that are not as in its parent, the run before it; a directory that it does
not have is as in the parent. Only where contents lie (``base``, the place of a record's first file in the payload
stream) changes without a change of the directory; it is kept for the newest run alone. So a quiet night writes
``newest`` and nothing else.

Records are put together in packs of 128 KiB in the order of the walk: a pack is compressed four to five times smaller
than its records one by one, and reading them in that order decompresses each pack once. A changed record is mostly its
old self, so it is compressed against that one: a directory of 100 files of which one has changed takes some 200 bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import zstandard

from archiver.store.catalog.columns import U64s, unpack_columns
from archiver.store.catalog.record import Record
from archiver.store.catalog.seal import Seal
from archiver.store.database import records
from archiver.store.database.database import Database
from archiver.store.layout import GroupRef

ARCHIVE_VALUE = struct.Struct("<IQI")
RUN_KEY = struct.Struct(">IQ")
PART_KEY = struct.Struct(">IQI")
NEWEST_KEY = struct.Struct(">II")
LENGTH = struct.Struct("<I")
CHANGE = struct.Struct("<IQII")  # length of what follows, place of the base
KEY_MARK = 8  # bytes before a run's header
CHANGED = 1 << 31  # in a pack's number: a pack of changed records

_LARGEST_PACK = 1 << 30
_KEPT_PACKS = 12


class Place(NamedTuple):
    """Where a record is: time of the run, number of the pack (with CHANGED), offset in it."""

    time: int
    pack: int
    offset: int


@dataclass(frozen=True, slots=True)
class RunHeader:
    """``csum``: of the index file that holds the entries, as in the manifest. ``fields``: what the rows depend on
    besides the files. ``root``: key of the root. ``firsts``: the first key of each part of places."""

    parent: int | None
    csum: str
    fields: str
    root: int
    directories: int
    names_parts: int
    firsts: tuple[int, ...]

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> RunHeader:
        document = json.loads(data)
        document["firsts"] = tuple(document["firsts"])
        return cls(**document)


class Newest:
    """All directories of the newest run, sorted by key: n places and bases."""

    def __init__(self, time: int, columns: list[U64s]) -> None:
        self.time = time
        self.keys, self.times, self.packs, self.offsets, self.bases = columns
        self._keys = np.ascontiguousarray(self.keys).data

    def find(self, key: int) -> int:
        """Number of the directory with this key, -1 when there is none."""
        number = bisect_left(self._keys, key)
        return number if number < len(self._keys) and self._keys[number] == key else -1

    def place(self, number: int) -> Place:
        return Place(int(self.times[number]), int(self.packs[number]), int(self.offsets[number]))

    def base(self, number: int) -> int:
        return int(self.bases[number])


class Catalog:
    """What is recorded of the archive ``name`` (``x.pxar``) of ``group``. Not for several threads.

    Nothing here fails because of the database: what cannot be read is not there.
    """

    def __init__(self, database: Database, group: GroupRef, name: str, seal: Seal) -> None:
        self.database = database
        self.seal = seal
        self.key = hashlib.sha256(f"{group.path}\0{name}".encode()).digest()[:16]
        self._packs: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._places: OrderedDict[tuple[int, int], list[U64s]] = OrderedDict()
        self._headers: dict[int, RunHeader] = {}
        self._number: int | None = None
        self._decompressor = zstandard.ZstdDecompressor()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def number(self) -> int | None:
        """The archive's number; None when nothing is recorded of it."""
        if self._number is None:
            row = self._row()
            self._number = None if row is None else row[0]
        return self._number

    def _row(self) -> tuple[int, int, int] | None:
        value = self.database.get(records.ARCHIVE, self.key)
        return None if value is None else ARCHIVE_VALUE.unpack(value)

    def run(self, time: int) -> RunHeader | None:
        """The run of the snapshot of that time; None when there is none, or only one of another key."""
        number = self.number()
        if number is None:
            return None
        header = self._headers.get(time)
        if header is None:
            key = RUN_KEY.pack(number, time)
            value = self.database.get(records.RUN, key)
            if value is None or value[:KEY_MARK] != self.seal.identity:
                return None
            header = self.database.checked(lambda: RunHeader.decode(self.seal.open(value[KEY_MARK:], key)))
            if header is not None:
                self._headers[time] = header
        return header

    def times(self) -> list[int]:
        """Times of all runs, sorted."""
        number = self.number()
        if number is None:
            return []
        keys = self.database.keys(records.RUN, records.U32_KEY.pack(number))
        return [RUN_KEY.unpack(key)[1] for key in keys]

    def newest(self) -> Newest | None:
        """Places and bases of the newest run."""
        row = self._row()
        if row is None:
            return None
        number, time, parts = row
        if self.run(time) is None:
            return None
        found = []
        for part in range(parts):
            columns = self._columns(records.NEWEST, NEWEST_KEY.pack(number, part), 5)
            if columns is None:
                return None
            found.append(columns)
        return Newest(time, [np.concatenate(part) for part in zip(*found, strict=True)]) if found else None

    def _columns(self, table: bytes, key: bytes, count: int) -> list[U64s] | None:
        value = self.database.get(table, key)
        if value is None:
            return None
        columns = self.database.checked(lambda: unpack_columns(self.seal.open(value, key)))
        return columns if columns is not None and len(columns) == count else None

    # -- records -------------------------------------------------------------------------------------------------------

    def find(self, time: int, key: int) -> Place | None:
        """The place of the record of directory ``key`` as of the run ``time``."""
        when: int | None = time
        while when is not None:
            header = self.run(when)
            if header is None:
                return None
            place = self._own_place(when, header, key)
            if place is not None:
                return place
            when = header.parent
        return None

    def _own_place(self, time: int, header: RunHeader, key: int) -> Place | None:
        part = bisect_left(header.firsts, key + 1) - 1
        if part < 0:
            return None
        columns = self._places.get((time, part))
        if columns is None:
            number = self.number()
            found = None if number is None else self._columns(records.PLACE, PART_KEY.pack(number, time, part), 3)
            if found is None:
                return None
            columns = self._places[time, part] = found
            if len(self._places) > 4 * _KEPT_PACKS:
                self._places.popitem(last=False)
        at = int(columns[0].searchsorted(np.uint64(key)))
        if at == len(columns[0]) or int(columns[0][at]) != key:
            return None
        return Place(time, int(columns[1][at]), int(columns[2][at]))

    def load(self, place: Place) -> Record | None:
        """The record at a place; None when it cannot be read."""
        raw = self.raw(place)
        return None if raw is None else self.database.checked(lambda: Record(raw))

    def raw(self, place: Place) -> bytes | None:
        """The bytes of a record."""
        pack = self._pack(place.time, place.pack)
        if pack is None:
            return None
        if not place.pack & CHANGED:
            (length,) = LENGTH.unpack_from(pack, place.offset)
            start = place.offset + LENGTH.size
            return pack[start : start + length]
        length, *base = CHANGE.unpack_from(pack, place.offset)
        start = place.offset + CHANGE.size
        before = self.raw(Place(*base))
        if before is None:
            return None
        return self.database.checked(lambda: apply_change(before, pack[start : start + length]))

    def base_of(self, place: Place) -> Place:
        """The place of the whole record that a record is a change of; its own for a whole one."""
        if not place.pack & CHANGED:
            return place
        pack = self._pack(place.time, place.pack)
        return place if pack is None else Place(*CHANGE.unpack_from(pack, place.offset)[1:])

    def _pack(self, time: int, pack: int) -> bytes | None:
        kept = self._packs.get((time, pack))
        if kept is not None:
            self._packs.move_to_end((time, pack))
            return kept
        number = self.number()
        if number is None:
            return None
        key = PART_KEY.pack(number, time, pack)
        value = self.database.get(records.PACK, key)
        if value is None:
            return None
        found = self.database.checked(partial(self._opened, value, key))
        if found is not None:
            self._packs[time, pack] = found
            if len(self._packs) > _KEPT_PACKS:
                self._packs.popitem(last=False)
        return found

    def _opened(self, value: bytes, key: bytes) -> bytes:
        try:
            return self._decompressor.decompress(self.seal.open(value, key), max_output_size=_LARGEST_PACK)
        except zstandard.ZstdError as error:
            raise ValueError(f"a catalog record is damaged: {error}") from error

    # -- names ---------------------------------------------------------------------------------------------------------

    def names(self, time: int) -> Iterator[bytes]:
        """What is new in a run, part by part: { path NUL { name NUL } NUL }."""
        header, number = self.run(time), self.number()
        if header is None or number is None:
            return
        for part in range(header.names_parts):
            key = PART_KEY.pack(number, time, part)
            value = self.database.get(records.NAMES, key)
            if value is not None:
                found = self.database.checked(partial(self._opened, value, key))
                if found is not None:
                    yield found


def change(base: bytes, record: bytes) -> bytes:
    """``record`` compressed with ``base`` known."""
    known = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(level=1, write_checksum=True, dict_data=known).compress(record)


def apply_change(base: bytes, compressed: bytes) -> bytes:
    """Raises ValueError."""
    known = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        return zstandard.ZstdDecompressor(dict_data=known).decompress(compressed, max_output_size=_LARGEST_PACK)
    except zstandard.ZstdError as error:
        raise ValueError(f"a catalog record is damaged: {error}") from error
