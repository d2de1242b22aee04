"""Reading the file catalog: the tree of one snapshot as its run has it, without touching the archive.

Raises Lost where the database does not have what it should: then the archive itself has to be asked.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator

from archiver.core.row import ROW
from archiver.store.catalog.catalog import Catalog, Place
from archiver.store.catalog.record import UNSORTED, Record
from formats.errors import FormatError
from formats.pxar import constants as c
from formats.pxar.items import Entry, Kind, Window, read_child, read_root
from formats.pxar.metadata import NO_ACL, Metadata, Stat

KINDS: dict[int, Kind] = {
    ord("d"): "dir",
    ord("f"): "file",
    ord("l"): "symlink",
    ord("h"): "hardlink",
    ord("b"): "block",
    ord("c"): "char",
    ord("p"): "fifo",
    ord("s"): "socket",
}
LETTERS = {kind: bytes([letter]) for letter, kind in KINDS.items()}

_FILE = ord("f")
_END = c.HEADER.pack(c.GOODBYE, c.HEADER_SIZE)  # what tells a reader that an entry's items end
_BEHIND_NAME = c.HEADER_SIZE + 1  # bytes of a FILENAME item, the name apart
_PLAIN_FILE = _BEHIND_NAME + c.ENTRY_SIZE + c.REF_SIZE
_STAT_AND_SIZE = struct.Struct("<16xQQIIqI4x24xQ")
_LINK_TARGET = c.HEADER_SIZE + c.U64.size  # from the start of a HARDLINK item


class Lost(Exception):
    """The catalog cannot answer."""


class _Bytes(Window):
    """The items of one entry."""

    __slots__ = ()

    def __init__(self, items: bytes) -> None:
        super().__init__()
        self.data = items + _END

    def fill(self, position: int, length: int) -> None:
        """There is no more."""


class Item:
    """An entry of a directory, decoded where it is looked at. ``name`` is b"" for the root."""

    __slots__ = ("_number", "_record", "kind", "name")

    def __init__(self, record: Record, number: int, name: bytes) -> None:
        kind = KINDS.get(record.kinds[number])
        if kind is None:
            raise Lost
        self.kind: Kind = kind
        self.name = name
        self._record, self._number = record, number

    @property
    def row(self) -> tuple[int, int, int, int]:
        """Inode, size, mtime and ctime in ns as they were found; of a directory inode, -1, its key, 0."""
        inode, size, mtime, ctime = ROW.unpack(self.raw_row)
        return inode, size, mtime, ctime

    @property
    def raw_row(self) -> bytes:
        return self._record.row(self._number)

    @property
    def key(self) -> int:
        """Of a directory's own record."""
        return self.row[2] % 2**64

    @property
    def size(self) -> int:
        """Bytes of a file's contents as the archive says, else 0."""
        return int.from_bytes(self._record.item(self._number)[-c.U64.size :], "little") if self.kind == "file" else 0

    @property
    def items(self) -> bytes:
        """Those of the archive without where the contents lie; nothing of a directory."""
        items = self._record.item(self._number)
        return items[: -c.PAIR.size] + items[-c.U64.size :] if self.kind == "file" else items

    @property
    def entry(self) -> Entry:
        """What the archive says about it; without any positions. ValueError for a directory: ask RunTree."""
        if self.kind == "dir":
            raise ValueError("a directory's own record tells about it")
        items = self._record.item(self._number)
        try:
            if self.kind == "hardlink":
                target = items[c.HEADER_SIZE + len(self.name) + 1 + _LINK_TARGET : -1]
                return Entry("hardlink", self.name, 1, None, 0, 0, None, target, 0, 0, 0, 0, 0, 0)
            if self.kind == "file" and len(items) == len(self.name) + _PLAIN_FILE:
                return _plain_file(self.name, items, 0)
            entry = read_child(_Bytes(items), 0, 1, 2)
        except FormatError as error:
            raise Lost from error
        return entry._replace(content_offset=0, payload_offset=None, entry_start=0, entry_end=0)


def _plain_file(name: bytes, items: bytes, start: int) -> Entry:
    """A file with nothing but FILENAME, ENTRY and PAYLOAD_REF, as nearly all have; they begin at ``start``."""
    found = _STAT_AND_SIZE.unpack_from(items, start + len(name) + _BEHIND_NAME)
    new = tuple.__new__  # takes half the time of the named tuples' own
    metadata = new(Metadata, (new(Stat, found[:6]), (), NO_ACL, None, None))
    return new(Entry, ("file", name, 1, metadata, found[6], 0, None, b"", 0, 0, 0, 0, 0, 0))


class RunTree:
    """The tree of the snapshot of one time."""

    def __init__(self, catalog: Catalog, time: int) -> None:
        run = catalog.run(time)
        if run is None:
            raise Lost
        self.time = time
        self.root = run.root
        self.catalog = catalog
        self._last: tuple[int, Record] | None = None  # who asks about a directory then asks what is in it

    def place(self, key: int) -> Place:
        """Where the record of a directory is: of one that is as it was in another run, the same place."""
        place = self.catalog.find(self.time, key)
        if place is None:
            raise Lost
        return place

    def record(self, key: int) -> Record:
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        record = self.catalog.load(self.place(key))
        if record is None:
            raise Lost
        self._last = key, record
        return record

    def records(self, key: int) -> Iterator[Record]:
        """The record of a directory, or those of its leaves."""
        record = self.record(key)
        if not record.is_split:
            yield record
            return
        for leaf, _ in record.leaves:
            yield self.record(leaf)

    def entries(self, key: int) -> Iterator[Item]:
        """The entries of a directory in the order of the archive."""
        for record in self.records(key):
            yield from items_of(record)

    def lookup(self, key: int, name: bytes) -> Item | None:
        """The entry ``name`` of a directory."""
        for leaf in candidates(self.record(key), key, name):
            record = self.record(leaf)
            number = record.place.get(name)
            if number is not None:
                return Item(record, number, name)
        return None

    def open_path(self, path: bytes) -> Item | None:
        """The entry at ``path`` (``b"a/b"`` or ``b"/a/b"``), or None, for the root too. Follows no links."""
        item = None
        for name in path.split(b"/"):
            if name:
                key = self.root if item is None else item.key if item.kind == "dir" else None
                item = None if key is None else self.lookup(key, name)
                if item is None:
                    return None
        return item

    def directory(self, path: bytes) -> int | None:
        """The key of the directory at ``path``; None when there is none."""
        if not path.strip(b"/"):
            return self.root
        item = self.open_path(path)
        return item.key if item is not None and item.kind == "dir" else None

    def entry(self, item: Item) -> Entry:
        """What the archive says about an entry; without any positions."""
        return item.entry if item.kind != "dir" else self.directory_entry(item.key, item.name)

    def described(self, key: int) -> Iterator[tuple[list[Entry], int | None]]:
        """What ``entry`` says about the entries of a directory, in a fraction of the time: those up to and with each
        directory among them, and that one's key."""
        for record in self.records(key):
            items, ends, start = record.items, record.ends, 0
            if ends and ends[-1] != len(items):
                raise Lost
            found: list[Entry] = []
            for number, (name, kind, end) in enumerate(zip(record.names, record.kinds, ends, strict=True)):
                if kind == _FILE and end - start == len(name) + _PLAIN_FILE:
                    found.append(_plain_file(name, items, start))
                else:
                    item = Item(record, number, name)
                    found.append(self.entry(item))
                    if item.kind == "dir":
                        yield found, item.key
                        found = []
                start = end
            if found:
                yield found, None

    def directory_entry(self, key: int, name: bytes = b"") -> Entry:
        """What the archive says about a directory itself."""
        return directory_entry(self.record(key).own, name)


def directory_entry(own: bytes, name: bytes) -> Entry:
    """What the archive says about the directory whose record has this ``own``."""
    try:
        entry = read_root(_Bytes(own), 0, 2)
    except FormatError as error:
        raise Lost from error
    return entry._replace(name=name, content_offset=0, entry_end=0)


def items_of(record: Record) -> Iterator[Item]:
    """The entries of a record, or of a leaf."""
    for number, name in enumerate(record.names):
        yield Item(record, number, name)


def candidates(record: Record, key: int, name: bytes) -> list[int]:
    """Keys of the records in which the entry ``name`` of the directory ``key`` can be: its own, or those of leaves."""
    if not record.is_split:
        return [key]
    leaves = record.leaves
    if record.flags & UNSORTED:
        return [leaf for leaf, _ in leaves]
    number = bisect_right(leaves, name, key=lambda leaf: leaf[1]) - 1
    return [leaves[number][0]] if number >= 0 else []
