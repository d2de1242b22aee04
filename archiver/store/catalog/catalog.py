"""The catalog of one archive name of one group: a run of records for each snapshot.

Tables (keys big-endian; values of encrypted archives sealed, see seal.py):

===========  ========================================  ================================================================
table        key                                       value
===========  ========================================  ================================================================
``archive``  first 16 bytes of SHA-256 of group path,  ArchiveRow; check
             NUL, archive name
``run``      archive u32, snapshot time u64            RunHead; check; RunHeader as JSON
``pack``     archive u32, time u64, number u32         records: zstd of { length u32, record }; changed ones apart:
                                                       { length u32, place of the base, what is new }
``place``    archive u32, time u64, part u32           columns: directory key (sorted), time, pack, offset in it
``newest``   archive u32, part u32                     columns: directory key (sorted), time, pack, offset, base; behind
                                                       JUMPS: number of the directory, number of a file, bytes
``names``    archive u32, time u64, part u32           zstd of { path NUL { name NUL } NUL }: what is new in this run
===========  ========================================  ================================================================

Check: the first 16 bytes of BLAKE3 of the archive's key, the record's key and the value. Everything else carries a
checksum of zstd's or is sealed.

A run holds the records of the directories that are not as in its parent, an earlier run; a directory that it does not
have is as in the parent, one with the place GONE is no more. Every few runs there is one that has the places of all its
directories, wherever they are, so that a look-up goes through few runs. Only where contents lie (``base``, the place of
a record's first file in the payload stream) changes without a change of the directory; it is kept for the newest run
alone. So a quiet night writes ``newest`` and little else.

Records are put together in packs of 128 KiB in the order of the walk: a pack is compressed four to five times smaller
than its records one by one, and reading them in that order decompresses each pack once. A changed record is mostly its
old self, so it is compressed against that one: a directory of 100 files of which one has changed takes some 200 bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import zstandard
from blake3 import blake3

from archiver.store.catalog.columns import FewRows, unpack_columns
from archiver.store.catalog.record import Layout, Record
from archiver.store.catalog.seal import Seal
from archiver.store.database import records
from archiver.store.database.database import Database
from archiver.store.layout import GroupRef

if TYPE_CHECKING:
    from archiver.store.catalog.columns import U64s

T = TypeVar("T", "list[U64s]", FewRows)

RUN_KEY = struct.Struct(">IQ")
PART_KEY = struct.Struct(">IQI")
NEWEST_KEY = struct.Struct(">II")
LENGTH = struct.Struct("<I")
_TIME = struct.Struct("<Q")
CHANGE = struct.Struct("<IQII")  # length of what follows, place of the base
LIVE, FORGOTTEN, CLEARED = range(3)  # the snapshot is there; it is not; and what only it has was removed too
DROPPED = 1 << 31  # in a record's length: nobody has it any more, zeros are in its place
CHANGED = 1 << 31  # in a pack's number: a pack of changed records
GONE = 1 << 32  # instead of a pack's number

JUMPS = 1 << 31  # in the number of a part of the newest places: jumps

_ARCHIVE_ROW = struct.Struct("<IQIIQ")
_RUN_HEAD = struct.Struct("<8sQBB")
_CHECK = 16
_SEALED_FROM = _RUN_HEAD.size + _CHECK
_PLACE_COLUMNS = 4
_NEWEST_COLUMNS = 5
_JUMP_COLUMNS = 3
_LARGEST_PACK = 1 << 30
_ZLIB_REACHES = 16 << 10  # half of its window: the same place of the record before is within reach
_ZLIB_LEVEL = 3
_KEPT = 24 << 20  # bytes of packs: in the order of the walk, each of many runs is at some place in its packs
_KEPT_PARTS = 200
_FEW = 1 << 14  # directories whose places are found without numpy; they take 5 MB
_WINDOW_LOG = 23  # base and record of a leaf


class Place(NamedTuple):
    """Where a record is: time of the run, number of the pack (with CHANGED), offset in it."""

    time: int
    pack: int
    offset: int


class ArchiveRow(NamedTuple):
    """``newest``: the time of the latest run, 0 when its places are not known; in how many parts they and the jumps
    are; ``born`` tells the archive from one of the same number in an earlier database."""

    number: int
    newest: int
    parts: int
    jumps: int
    born: int


class RunHead(NamedTuple):
    """What can be told of a run without its key: what it is sealed with (zeros: it is not), the time of its parent (0:
    none), how many runs back there is one that has all places, what became of its snapshot."""

    identity: bytes
    parent: int
    chain: int
    state: int


class RunHeader(NamedTuple):
    """``csum``: of the index file that holds the entries, as in the manifest. ``fields``: what the rows depend on
    besides the files. ``root``: key of the root. ``chain``: as in RunHead. ``firsts``: the first key of each part of
    places."""

    parent: int | None
    chain: int
    csum: str
    fields: str
    root: int
    directories: int
    names_parts: int
    firsts: tuple[int, ...]

    def encode(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def decode(cls, data: bytes) -> RunHeader:
        document = json.loads(data)
        document["firsts"] = tuple(document["firsts"])
        return cls(**document)


class Places:
    """Where the records of all directories of a run are, n places sorted by key. ``mark`` changes with the run."""

    def __init__(self, time: int, mark: bytes, columns: list[U64s]) -> None:
        import numpy as np

        self.time = time
        self.mark = mark
        self.keys, self.columns = columns[0], columns
        # A number of an array is an object of numpy's, one of a memoryview is an int and made five times faster.
        self._keys, *self._columns = (np.ascontiguousarray(column).data for column in columns)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, number: int) -> int:
        key: int = self._keys[number]
        return key

    def find(self, key: int) -> int:
        """Number of the directory with this key, -1 when there is none."""
        number = bisect_left(self._keys, key)
        return number if number < len(self._keys) and self._keys[number] == key else -1

    def place(self, number: int) -> Place:
        times, packs, offsets = self._columns
        return Place(times[number], packs[number], offsets[number])

    def get(self, key: int) -> Place | None:
        number = self.find(key)
        return self.place(number) if number >= 0 else None


class Newest(Places):
    """Those of the newest run, and the layout of each directory. ``jumps``: see the table ``newest``."""

    def __init__(self, time: int, mark: bytes, columns: list[U64s], jumps: list[U64s]) -> None:
        import numpy as np

        super().__init__(time, mark, columns[:-1])
        self._bases = np.ascontiguousarray(columns[-1]).data
        self._jumped = np.ascontiguousarray(jumps[0]).data
        self._jumps = jumps[1:]

    def layout(self, number: int) -> Layout:
        """Where the contents of a directory's files lie."""
        base: int = self._bases[number]
        first = bisect_left(self._jumped, number)
        if first == len(self._jumped) or self._jumped[first] != number:
            return Layout(base)
        found = slice(first, bisect_right(self._jumped, number))
        files, sizes = (column[found].tolist() for column in self._jumps)
        return Layout(base, tuple(zip(files, sizes, strict=True)))


class Catalog:
    """What is recorded of the archive ``name`` (``x.pxar``) of ``group``. Not for several threads.

    Nothing here fails because of the database: what cannot be read is not there.
    """

    def __init__(self, database: Database, group: GroupRef, name: str, seal: Seal) -> None:
        self.database = database
        self.seal = seal
        self.key = hashlib.sha256(f"{group.path}\0{name}".encode()).digest()[:16]
        self._packs: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._kept = 0  # bytes of them
        self._places: OrderedDict[tuple[int, int], FewRows] = OrderedDict()
        self._headers: dict[int, RunHeader] = {}
        self._number: int | None = None
        self._decompressor = zstandard.ZstdDecompressor()

    def sealed(self, value: bytes, key: bytes, time: int = 0) -> bytes:
        """``value`` sealed for the database key ``key`` of this catalog, and for the run ``time`` where the key does
        not say of which one it is. So it cannot be put into another place, nor back when another has taken its own."""
        return self.seal.close(value, self.key + key + _TIME.pack(time))

    def unsealed(self, value: bytes, key: bytes, time: int = 0) -> bytes:
        """Raises ValueError when it was not sealed so."""
        return self.seal.open(value, self.key + key + _TIME.pack(time))

    # -- runs ----------------------------------------------------------------------------------------------------------

    def number(self) -> int | None:
        """The archive's number; None when nothing is recorded of it."""
        if self._number is None:
            row = self.row()
            self._number = None if row is None else row.number
        return self._number

    def row(self) -> ArchiveRow | None:
        """None when nothing is recorded of the archive."""
        value = self.database.get(records.ARCHIVE, self.key)
        return None if value is None else self.database.checked(lambda: self.decode_row(value))

    def encode_row(self, row: ArchiveRow) -> bytes:
        """The value of the ``archive`` table."""
        value = _ARCHIVE_ROW.pack(*row)
        return value + self._check(self.key, value)

    def decode_row(self, value: bytes) -> ArchiveRow:
        """Raises ValueError, struct.error."""
        row, check = value[: _ARCHIVE_ROW.size], value[_ARCHIVE_ROW.size :]
        if check != self._check(self.key, row):
            raise ValueError("the record of an archive is damaged")
        return ArchiveRow(*_ARCHIVE_ROW.unpack(row))

    def _check(self, key: bytes, value: bytes) -> bytes:
        return blake3(self.key + key + value).digest(length=_CHECK)

    def encode_run(self, key: bytes, header: RunHeader) -> bytes:
        """The value of the ``run`` table."""
        head = RunHead(self.seal.identity, header.parent or 0, header.chain, LIVE)
        return self._join_run(key, head, self.sealed(header.encode(), key))

    def _join_run(self, key: bytes, head: RunHead, sealed: bytes) -> bytes:
        packed = _RUN_HEAD.pack(*head)
        return packed + self._check(key, packed + sealed) + sealed

    def with_state(self, key: bytes, value: bytes, state: int) -> bytes:
        """The value of the ``run`` table with another state. Raises ValueError, struct.error."""
        head = self.decode_head(key, value)
        return self._join_run(key, head._replace(state=state), value[_SEALED_FROM:])

    @staticmethod
    def mark(value: bytes) -> bytes:
        """What is different in the value of the ``run`` table when the run or its state is another one."""
        return value[_RUN_HEAD.size : _SEALED_FROM]

    def decode_head(self, key: bytes, value: bytes) -> RunHead:
        """Raises ValueError, struct.error."""
        head, check, sealed = value[: _RUN_HEAD.size], value[_RUN_HEAD.size :][:_CHECK], value[_SEALED_FROM:]
        if check != self._check(key, head + sealed):
            raise ValueError("the record of a run is damaged")
        return RunHead(*_RUN_HEAD.unpack(head))

    def _decode_run(self, key: bytes, value: bytes) -> RunHeader | None:
        if self.decode_head(key, value).identity != self.seal.identity:
            return None
        return RunHeader.decode(self.unsealed(value[_SEALED_FROM:], key))

    def forget_kept(self, time: int) -> None:
        """What is kept in memory of a run is no longer true."""
        self._number = None
        self._headers.pop(time, None)
        for kept in (self._packs, self._places):
            for place in [place for place in kept if place[0] == time]:
                del kept[place]
        self._kept = sum(map(len, self._packs.values()))

    def run(self, time: int) -> RunHeader | None:
        """The run of the snapshot of that time; None when there is none, or only one of another key."""
        number = self.number()
        if number is None:
            return None
        header = self._headers.get(time)
        if header is None:
            key = RUN_KEY.pack(number, time)
            value = self.database.get(records.RUN, key)
            if value is None:
                return None
            header = self.database.checked(partial(self._decode_run, key, value))
            if header is not None:
                self._headers[time] = header
        return header

    def head(self, time: int) -> RunHead | None:
        """What can be told of a run without its key, as it is now."""
        value = self._run_value(time)
        if value is None:
            return None
        return self.database.checked(lambda: self.decode_head(RUN_KEY.pack(self.number() or 0, time), value))

    def heads(self) -> dict[int, RunHead]:
        """Of all runs by time, in order, those of other keys too."""
        found = {time: self.head(time) for time in self.times()}
        return {time: head for time, head in found.items() if head is not None}

    def _run_value(self, time: int) -> bytes | None:
        number = self.number()
        return None if number is None else self.database.get(records.RUN, RUN_KEY.pack(number, time))

    def times(self) -> list[int]:
        """Times of all runs, sorted."""
        number = self.number()
        if number is None:
            return []
        keys = self.database.keys(records.RUN, records.U32_KEY.pack(number))
        return [RUN_KEY.unpack(key)[1] for key in keys]

    def newest(self) -> Newest | None:
        """Places and bases of the newest run; None also when they are not known, although the run is."""
        row = self.row()
        if row is None or self.run(row.newest) is None:
            return None
        value = self._run_value(row.newest)
        places = self._joined(row, range(row.parts), _NEWEST_COLUMNS)
        jumps = self._joined(row, range(JUMPS, JUMPS + row.jumps), _JUMP_COLUMNS)
        if places is None or jumps is None or value is None or not row.parts:
            return None
        return Newest(row.newest, self.mark(value), places, jumps)

    def _joined(self, row: ArchiveRow, parts: range, count: int) -> list[U64s] | None:
        """``count`` columns of the newest run that are in these parts."""
        import numpy as np

        keys = (NEWEST_KEY.pack(row.number, part) for part in parts)
        found = [self._columns(records.NEWEST, key, count, row.newest) for key in keys]
        if None in found:
            return None
        columns = [part for part in found if part is not None] or [[np.zeros(0, np.uint64)] * count]
        return [np.concatenate(column) for column in zip(*columns, strict=True)]

    def places(self, time: int) -> Places | None:
        """The places of any run."""
        import numpy as np

        value = self._run_value(time)
        if value is None:
            return None
        found = []
        when: int | None = time
        while when is not None:
            header, own = self.run(when), self.own_places(when)
            if header is None or own is None:
                return None
            found.append(own)
            when = header.parent if header.chain else None
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        order = np.argsort(columns[0], kind="stable")  # of equal keys the one of the latest run comes first
        keys = columns[0][order]
        first = np.ones(len(keys), np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        first &= columns[2][order] != GONE
        return Places(time, self.mark(value), [column[order[first]] for column in columns])

    def finder(self, time: int) -> Callable[[int], Place | None] | None:
        """What tells the place of a directory in a run, for who asks about most of them; None: it is not known."""
        header = self.run(time)
        if header is None:
            return None
        if header.directories > _FEW:
            places = self.places(time)
            return None if places is None else places.get
        found: dict[int, Place] = {}
        when: int | None = time
        while when is not None:
            header = self.run(when)
            parts = [] if header is None else [self._part(when, part) for part in range(len(header.firsts))]
            if header is None or None in parts:
                return None
            for part in filter(None, parts):
                keys, times, packs, offsets = map(part.column, range(_PLACE_COLUMNS))
                for key, place in zip(keys, map(Place, times, packs, offsets), strict=True):
                    found.setdefault(key, place)
            when = header.parent if header.chain else None
        return {key: place for key, place in found.items() if place.pack != GONE}.get

    def own_places(self, time: int) -> list[U64s] | None:
        """The places that a run itself has: key (sorted), time, pack, offset."""
        import numpy as np

        header, number = self.run(time), self.number()
        if header is None or number is None:
            return None
        keys = (PART_KEY.pack(number, time, part) for part in range(len(header.firsts)))
        parts = [self._columns(records.PLACE, key, _PLACE_COLUMNS) for key in keys]
        if None in parts:
            return None
        empty = [np.zeros(0, np.uint64)] * _PLACE_COLUMNS
        return [np.concatenate(column) for column in zip(empty, *(part for part in parts if part), strict=True)]

    def _columns(self, table: bytes, key: bytes, count: int, time: int = 0) -> list[U64s] | None:
        return self._unpacked(unpack_columns, table, key, count, time)

    def _unpacked(self, unpack: Callable[[bytes], T], table: bytes, key: bytes, count: int, time: int) -> T | None:
        value = self.database.get(table, key)
        if value is None:
            return None
        columns = self.database.checked(lambda: unpack(self.unsealed(value, key, time)))
        return columns if columns is not None and len(columns) == count else None

    # -- records -------------------------------------------------------------------------------------------------------

    def find(self, time: int, key: int) -> Place | None:
        """The place of the record of directory ``key`` as of the run ``time``."""
        return self.find_all([time], key)[time]

    def find_all(self, times: Collection[int], key: int) -> dict[int, Place | None]:
        """The same as of several runs; what they have in common is looked at once."""
        found: dict[int, Place | None] = {}
        for time in times:
            passed = []
            when: int | None = time
            place = None
            while when is not None and when not in found:
                passed.append(when)
                try:
                    header, place = self._own_place(when, key)
                except LookupError:
                    break
                when = header.parent if header.chain and place is None else None
            if when is not None:
                place = found.get(when)
            if place is not None and place.pack == GONE:
                place = None
            found.update(dict.fromkeys(passed, place))
        return {time: found[time] for time in times}

    def _own_place(self, time: int, key: int) -> tuple[RunHeader, Place | None]:
        """A run, and where itself has the record of a directory. Raises LookupError when that cannot be known."""
        header = self.run(time)
        if header is None:
            raise LookupError
        part = bisect_right(header.firsts, key) - 1
        if part < 0:
            return header, None
        columns = self._part(time, part)
        if columns is None:
            raise LookupError
        keys = columns.column(0)
        at = bisect_left(keys, key)
        if at == len(keys) or keys[at] != key:
            return header, None
        return header, Place(columns.column(1)[at], columns.column(2)[at], columns.column(3)[at])

    def _part(self, time: int, part: int) -> FewRows | None:
        """A part of the places of a run."""
        columns = self._places.get((time, part))
        if columns is not None:
            self._places.move_to_end((time, part))
            return columns
        number = self.number()
        if number is None:
            return None
        columns = self._unpacked(FewRows, records.PLACE, PART_KEY.pack(number, time, part), _PLACE_COLUMNS, 0)
        if columns is not None:
            self._places[time, part] = columns
            if len(self._places) > _KEPT_PARTS:
                self._places.popitem(last=False)
        return columns

    def load(self, place: Place) -> Record | None:
        """The record at a place; None when it cannot be read."""
        raw = self.raw(place)
        return None if raw is None else self.database.checked(lambda: Record(raw))

    def raw(self, place: Place) -> bytes | None:
        """The bytes of a record."""
        pack = self.pack(place.time, place.pack)
        if pack is None:
            return None
        if not place.pack & CHANGED:
            (length,) = LENGTH.unpack_from(pack, place.offset)
            if length & DROPPED:
                return None
            start = place.offset + LENGTH.size
            return pack[start : start + length]
        length, *base = CHANGE.unpack_from(pack, place.offset)
        if length & DROPPED:
            return None
        start = place.offset + CHANGE.size
        before = self.raw(Place(*base))
        if before is None:
            return None
        return self.database.checked(lambda: apply_change(before, pack[start : start + length]))

    def base_of(self, place: Place) -> Place:
        """The place of the whole record that a record is a change of; its own for a whole one."""
        if not place.pack & CHANGED:
            return place
        pack = self.pack(place.time, place.pack)
        return place if pack is None else Place(*CHANGE.unpack_from(pack, place.offset)[1:])

    def pack(self, time: int, pack: int) -> bytes | None:
        """The records in a pack, one behind the other."""
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
            self._kept += len(found)
            while self._kept > _KEPT and len(self._packs) > 1:
                self._kept -= len(self._packs.popitem(last=False)[1])
        return found

    def _opened(self, value: bytes, key: bytes) -> bytes:
        try:
            return self._decompressor.decompress(self.unsealed(value, key), max_output_size=_LARGEST_PACK)
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
    """``record`` compressed with ``base`` known: by zlib, which is ready in 1 us where zstd takes 9, if that reaches so
    far back."""
    if len(base) <= _ZLIB_REACHES:
        compressor = zlib.compressobj(_ZLIB_LEVEL, zdict=base)
        return compressor.compress(record) + compressor.flush()
    known = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    # Level 1 does not find its way through a large base: a leaf of 2,000 names takes 57 kB with it, 2 kB with this.
    sizes = zstandard.ZstdCompressionParameters.from_level(
        3, source_size=len(record), dict_size=len(base), window_log=_WINDOW_LOG, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=sizes, dict_data=known).compress(record)


def apply_change(base: bytes, compressed: bytes) -> bytes:
    """Raises ValueError."""
    try:
        if len(base) <= _ZLIB_REACHES:
            decompressor = zlib.decompressobj(zdict=base)
            record = decompressor.decompress(compressed, _LARGEST_PACK)
            if not decompressor.eof:
                raise ValueError("a catalog record is cut short")
            return record
        known = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(dict_data=known).decompress(compressed, max_output_size=_LARGEST_PACK)
    except (zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"a catalog record is damaged: {error}") from error
