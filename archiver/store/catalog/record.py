"""A directory of an archive as one record: what its entries looked like on disk, and their bytes in the archive.

======  ======================  =============================================================================
offset  content                 of a record with n entries, little-endian
======  ======================  =============================================================================
0       head, 72 bytes          u8 flags, 3 bytes 0, u32 n, u32 lengths of own, names, items, table; u64 inode of
                                the directory, i64 mtime, ctime in ns; 16 bytes selection; 8 bytes 0
        own                     ENTRY and attribute items of the directory; empty in a leaf
        rows                    n x 4 i64: inode, size, mtime, ctime in ns (see below)
        lengths                 n x u32: length of each entry's items in ``items``
        kinds                   n x 1 byte: d l f h b c p s as in catalogs (spec pxar.md 14)
        names                   joined by ``/``
        items                   FILENAME and everything behind it of each entry, directories apart
        table                   the GOODBYE item, or nothing
======  ======================  =============================================================================

``items``: the offset of every payload reference is 0, the distance in a HARDLINK item too. Where contents lie (a
Layout) is kept apart: it changes every night, what they are does not.

``rows`` say how the live entry was found. Of a directory: (inode, -1, key of its record, 0), its own times are in its
own record. Inode 0: only its metadata can tell whether a file is as it was (an archive, a file system of which we know
no better). A change time of 0 and NO_TIME as mtime: nothing can, it was too young when it was looked at, or not read
without problems. ``selection`` stands for the rules by which the names were chosen; zeros: always list again, some were
left out or a file decides.

A directory of very many names is split: its record has no entries but leaves, each of which holds a part of the names:
their keys (u64) are in ``items``, the first name of each in ``names``. A leaf begins at a name whose hash says so,
whatever the names around it are.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3
from siphashc import siphash

from formats.pxar.constants import HEADER_SIZE, REF_SIZE
from formats.pxar.goodbye import HASH_KEY
from formats.wire import Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLIT = 1  # flag: the entries are in leaves
HAS_DIRECTORIES = 2  # flag
UNSORTED = 4  # flag of a split directory: some name does not come where its bytes would have it

NO_SELECTION = bytes(16)
NO_TIME = -(1 << 63)  # no file has it
SPLIT_FROM = 2048  # names
REFERENCE_FROM_END = 16  # of a file's items: u64 offset, u64 size

_HEAD = struct.Struct("<B3xIIIIIQqq16s8x")
_LEAF_EVERY = 1024  # names, on average
_DERIVED = 1 << 63  # set in keys that are hashes; inode numbers do not have it
_U64 = struct.Struct("<Q")
_REFERENCE = struct.Struct("<qq")  # offset and size
_NO_OFFSET = bytes(8)
_FILE, _DIRECTORY = ord("f"), ord("d")
_NUMPY_FROM = 32  # entries


def path_key(path: bytes) -> int:
    """Key of a directory that is known by nothing but its path in the archive."""
    return _hashed(b"path", path)


def inode_key(file_system: bytes, inode: int, at_home: bool) -> int:
    """Key of a live directory; ``at_home``: it is on the file system of the archive's root."""
    if at_home and inode < _DERIVED:
        return inode
    return _hashed(b"inode", file_system + b"\0" + _U64.pack(inode))


def leaf_key(directory: int, first: bytes) -> int:
    """Key of the leaf of a split directory that begins with the name ``first`` (empty: the first leaf)."""
    return _hashed(b"leaf", _U64.pack(directory) + first)


def _hashed(kind: bytes, data: bytes) -> int:
    value: int = _U64.unpack(blake3(kind + b"\0" + data).digest(length=8))[0]
    return value | _DERIVED


def begins_leaf(name: bytes) -> bool:
    """Whether a leaf of a split directory begins with this name; the first one does whatever it is."""
    return bool(siphash(HASH_KEY, name) % _LEAF_EVERY == 0)


def leaves(directory: int, names: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
    """(key, start, stop) of each leaf of a split directory with the sorted ``names``."""
    start, key = 0, leaf_key(directory, b"")
    for place, name in enumerate(names):
        if place and begins_leaf(name):
            yield key, start, place
            start, key = place, leaf_key(directory, name)
    yield key, start, len(names)


class Layout(NamedTuple):
    """Where the contents of a record's files lie in the payload stream: from ``base`` on (0: nobody knows, or there are
    none), one behind the other, but for ``jumps``: (number of a file, bytes between it and the one before)."""

    base: int = 0
    jumps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> Layout:
        """Of files at these offsets, with contents of these sizes; NOWHERE unless each is behind the one before."""
        if not len(offsets):
            return NOWHERE
        import numpy as np

        between = offsets[1:] - offsets[:-1] - sizes[:-1] - HEADER_SIZE
        if offsets[0] <= 0 or (between < 0).any():
            return NOWHERE
        places = np.flatnonzero(between)
        return cls(int(offsets[0]), tuple(zip((places + 1).tolist(), between[places].tolist(), strict=True)))

    def offsets(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The offset of each file, with contents of these sizes."""
        return in_a_row(sizes) + self.base + self.shifts(0, len(sizes))

    def shifts(self, first: int, stop: int) -> NDArray[np.int64]:
        """How far the files [first, stop) lie from where they were without jumps."""
        import numpy as np

        found = np.zeros(stop, np.int64)
        for file, size in self.jumps:
            if file < stop:
                found[file] = size
        return np.cumsum(found, out=found)[first:]


NOWHERE = Layout()


def in_a_row(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets of contents of these sizes that follow each other, headers included, from 0 on."""
    import numpy as np

    offsets = np.zeros(len(sizes), np.int64)
    np.cumsum(sizes[:-1] + HEADER_SIZE, out=offsets[1:])
    return offsets


class Record:
    """A decoded record; ``raw`` is kept, and its parts are views of it. Raises struct.error or ValueError for bytes
    that are none."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        flags, count, own, names, items, table, self.inode, self.mtime, self.ctime, self.selection = _HEAD.unpack_from(
            raw
        )
        self.count: int = count
        self.flags: int = flags
        start = _HEAD.size
        self.own = raw[start : start + own]
        start += own
        self.rows = raw[start : start + 32 * count]
        start += 32 * count
        self._lengths = start
        self.kinds = raw[start + 4 * count : start + 5 * count]
        start += 5 * count
        self._names = (start, start + names)
        self._items = start + names
        self._table = self._items + items
        if self._table + table != len(raw):
            raise ValueError("a directory record has another length than it says")

    @property
    def table(self) -> bytes:
        return self.raw[self._table :]

    @property
    def items(self) -> bytes:
        return self.raw[self._items : self._table]

    @property
    def is_split(self) -> bool:
        return bool(self.flags & SPLIT)

    @property
    def leaves(self) -> list[tuple[int, bytes]]:
        """Key and first name of each leaf of a split directory."""
        keys = struct.unpack(f"<{len(self.items) // _U64.size}Q", self.items)
        return list(zip(keys, self.raw[slice(*self._names)].split(b"/"), strict=True))

    @cached_property
    def names(self) -> list[bytes]:
        found = self.raw[slice(*self._names)].split(b"/") if self.count else []
        if len(found) != self.count:
            raise ValueError("a directory record has other names than it says")
        return found

    @cached_property
    def place(self) -> dict[bytes, int]:
        """Number of each name."""
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def lengths(self) -> NDArray[np.uint32]:
        import numpy as np

        return np.frombuffer(self.raw, "<u4", self.count, self._lengths)

    @cached_property
    def ends(self) -> list[int]:
        """Where in ``items`` those of each entry end."""
        return list(accumulate(struct.unpack_from(f"<{self.count}I", self.raw, self._lengths)))

    def row(self, number: int) -> bytes:
        return self.rows[32 * number : 32 * number + 32]

    def item(self, number: int) -> bytes:
        """The items of one entry."""
        ends = self.ends
        start = ends[number - 1] if number else 0
        return self.raw[self._items + start : self._items + ends[number]]

    def part(self, start: int, stop: int) -> tuple[bytes, bytes, bytes]:
        """Items, lengths (u32) and kinds of the entries [start, stop)."""
        if start == 0 and stop == self.count:
            return self.items, self.raw[self._lengths : self._lengths + 4 * stop], self.kinds
        first = self._items + (self.ends[start - 1] if start else 0)
        last = self._items + (self.ends[stop - 1] if stop else 0)
        lengths = self.raw[self._lengths + 4 * start : self._lengths + 4 * stop]
        return self.raw[first:last], lengths, self.kinds[start:stop]


class Draft:
    """A record in the making. ``items`` are given with absolute payload references; the rest as in the table above."""

    __slots__ = ("_items", "_rows", "ctime", "flags", "inode", "kinds", "lengths", "mtime", "names", "own", "selection")

    def __init__(
        self, inode: int = 0, mtime: int = 0, ctime: int = 0, selection: bytes = NO_SELECTION, own: bytes = b""
    ) -> None:
        self.inode, self.mtime, self.ctime, self.selection, self.own = inode, mtime, ctime, selection, own
        self.names: list[bytes] = []
        self.kinds = bytearray()
        self.lengths = array("I")  # of the items of each entry
        self.flags = 0
        self._rows = bytearray()
        self._items = bytearray()

    def add(self, kind: bytes, name: bytes, row: bytes, item: Buffer) -> None:
        self.kinds += kind
        self.names.append(name)
        self.lengths.append(len(item))
        self._rows += row
        self._items += item
        if kind == b"d":
            self.flags |= HAS_DIRECTORIES

    def add_all(self, record: Record, start: int, stop: int, items: Buffer) -> None:
        """The entries [start, stop) of a record, with these items."""
        kinds = record.kinds[start:stop]
        self.kinds += kinds
        self.names += record.names[start:stop]
        self.lengths.extend(record.lengths[start:stop].tolist())
        self._rows += record.rows[32 * start : 32 * stop]
        self._items += items
        if _DIRECTORY in kinds:
            self.flags |= HAS_DIRECTORIES

    def entries(self) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
        """All of them, as they were added one by one."""
        at = 0
        for number, (name, length) in enumerate(zip(self.names, self.lengths, strict=True)):
            row, item = self._rows[32 * number : 32 * number + 32], self._items[at : at + length]
            yield bytes(self.kinds[number : number + 1]), name, bytes(row), bytes(item)
            at += length

    def add_files(self, names: Sequence[bytes], rows: Sequence[bytes], items: Sequence[bytes]) -> None:
        """Regular files, each as by ``add``."""
        self.kinds += b"f" * len(names)
        self.names += names
        self.lengths.extend(map(len, items))
        self._rows += b"".join(rows)
        self._items += b"".join(items)

    def encode(self, table: bytes = b"") -> tuple[bytes, Layout]:
        """The record, and where the contents of its files lie."""
        items, layout = _relative(self._items, self.lengths, self.kinds)
        return self._join(len(self.names), items, table), layout

    def encode_split(self, leaves: Sequence[tuple[int, bytes]]) -> bytes:
        """The record of a split directory; key and first name of each of its leaves."""
        self.flags |= SPLIT
        self.names = [first for _, first in leaves]
        return self._join(0, struct.pack(f"<{len(leaves)}Q", *(key for key, _ in leaves)), b"")

    def _join(self, count: int, items: Buffer, table: bytes) -> bytes:
        names = b"/".join(self.names)
        head = _HEAD.pack(
            self.flags,
            count,
            len(self.own),
            len(names),
            len(items),
            len(table),
            self.inode,
            self.mtime,
            self.ctime,
            self.selection,
        )
        lengths = struct.pack(f"<{len(self.lengths)}I", *self.lengths)
        return b"".join((head, self.own, self._rows, lengths, self.kinds, names, items, table))


def content_sizes(record: Record) -> NDArray[np.int64]:
    """Bytes of the contents of each file of a record, as the archive says."""
    import numpy as np

    places = reference_places(record.lengths.astype(np.int64), record.kinds)
    return read_references(record.items, places)[:, 1]


def _relative(items: bytearray, lengths: array[int], kinds: Buffer) -> tuple[bytearray, Layout]:
    """Items without the offsets of payload references, and these."""
    if _FILE not in kinds:
        return items, NOWHERE
    joined = bytearray(items)
    if len(kinds) < _NUMPY_FROM:
        return joined, _take_few(joined, lengths, kinds)
    import numpy as np

    places = reference_places(np.array(lengths, np.int64), kinds)
    references = read_references(joined, places)
    offsets, sizes = references[:, 0].copy(), references[:, 1].copy()
    write_offsets(joined, places, np.zeros(len(places), np.int64))
    return joined, Layout.of(offsets, sizes)


def _take_few(items: bytearray, lengths: Sequence[int], kinds: Buffer) -> Layout:
    """Take the offsets out of few entries: without numpy, each call of which costs as much as some files."""
    jumps: list[tuple[int, int]] = []
    base = number = at = end = 0
    is_ordered = True
    for kind, length in zip(kinds, lengths, strict=True):
        at += length
        if kind != _FILE:
            continue
        place = at - REFERENCE_FROM_END
        offset, size = _REFERENCE.unpack_from(items, place)
        items[place : place + len(_NO_OFFSET)] = _NO_OFFSET
        if not number:
            base = offset
            is_ordered = offset > 0
        elif offset != end:
            jumps.append((number, offset - end))
            is_ordered = is_ordered and offset > end
        number += 1
        end = offset + size + HEADER_SIZE
    return Layout(base, tuple(jumps)) if is_ordered else NOWHERE


def reference_places(lengths: NDArray[np.int64], kinds: Buffer) -> NDArray[np.int64]:
    """Where in the joined items the payload references of the files are, n entries of the given lengths."""
    import numpy as np

    ends = np.cumsum(lengths, dtype=np.int64)
    places: NDArray[np.int64] = ends[np.frombuffer(kinds, np.uint8) == ord("f")] - REFERENCE_FROM_END
    return places


def read_references(items: Buffer, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """(m, 2): offset and size of the payload references at these places."""
    import numpy as np

    words = _words(items)
    return np.column_stack((words[places], words[places + 8]))


def write_offsets(items: bytearray, places: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
    """Put other offsets into the payload references at these places."""
    _words(items)[places] = offsets


def _words(items: Buffer) -> NDArray[np.int64]:
    """The eight bytes from each place of ``items`` on, as a number."""
    import numpy as np

    return np.ndarray((max(len(items) - 7, 0),), "<i8", items, strides=(1,))


assert REF_SIZE == 2 * REFERENCE_FROM_END
