"""The catalog ``pcat1``: names, sizes and times of the files of a snapshot (spec blob-index-crypto.md 10).

    offset  size  content
         0     8  magic 91fd60f9c46758d5
         8        directory blocks, children before parents, the root last
     end-8     8  offset of the root block, u64 little-endian

    block = varint(length of table) table          table = varint(number of entries) entry*
    entry = kind [1], varint(length of name), name, then
            d: varint(start of this block - start of the child's block)     f: varint(size), signed varint(mtime)

The root holds one directory per archive, named as its file (``root.pxar.didx``). A block starts at its length; a
distance is at least 1.

Varints have 7 bits a byte, least significant first, bit 7 set when more follow. Signed: the magnitude; if negative, all
of its bytes have bit 7 set and a byte 0 follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from formats.errors import FormatError, LimitExceeded
from formats.wire import U64, Buffer

MAGIC = bytes.fromhex("91fd60f9c46758d5")

DIRECTORY = b"d"
FILE = b"f"
SYMLINK = b"l"
HARDLINK = b"h"
BLOCK_DEVICE = b"b"
CHAR_DEVICE = b"c"
FIFO = b"p"
SOCKET = b"s"
BARE_KINDS = frozenset((SYMLINK, HARDLINK, BLOCK_DEVICE, CHAR_DEVICE, FIFO, SOCKET))  # nothing but a name

MAX_NAME = 4095  # bytes; longer ones are refused by every reader
MAX_TABLE = 128 << 20  # bytes of the tables a reader holds at once: some five million entries in one directory
MAX_PATH = 64 << 10  # bytes; keeps a walk linear in the size of the catalog

_MAX_U64 = 2**64 - 1
_SMALL = [bytes((value,)) for value in range(128)]


def encode_u64(value: int) -> bytes:
    """Unsigned varint, 1 to 10 bytes; FormatError outside 0..2**64-1."""
    if 0 <= value < 128:
        return _SMALL[value]
    if not 0 <= value <= _MAX_U64:
        raise FormatError("unsigned varint", expected="0 to 2^64-1", got=value)
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_i64(value: int) -> bytes:
    """Signed varint, 1 to 11 bytes; FormatError outside -2**63..2**63-1."""
    if not -(2**63) <= value < 2**63:
        raise FormatError("signed varint", expected="-2^63 to 2^63-1", got=value)
    if value >= 0:
        return encode_u64(value)
    magnitude = bytearray(encode_u64(-value))
    magnitude[-1] |= 128
    magnitude.append(0)
    return bytes(magnitude)


def decode_u64(data: Buffer, pos: int = 0) -> tuple[int, int]:
    """(value, position behind it); FormatError when it ends early, has more than 10 bytes or exceeds 64 bits."""
    value = shift = 0
    for at in range(pos, min(pos + 10, len(data))):
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            if value > _MAX_U64:
                raise FormatError("unsigned varint", offset=pos, expected="at most 64 bits", got=value)
            return value, at + 1
        shift += 7
    raise FormatError("unsigned varint without an end", offset=pos)


def decode_i64(data: Buffer, pos: int = 0) -> tuple[int, int]:
    """(value, position behind it); FormatError when it ends early, has more than 11 bytes or exceeds 64 bits."""
    value = shift = 0
    for at in range(pos, min(pos + 11, len(data))):
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            if not byte:
                value = -value
            if not -(2**63) <= value < 2**63:
                raise FormatError("signed varint", offset=pos, expected="at most 64 bits", got=value)
            return value, at + 1
        shift += 7
    raise FormatError("signed varint without an end", offset=pos)


class CatalogEntry(NamedTuple):
    """One name in a directory. ``size`` in bytes and ``mtime`` in Unix seconds for files only; ``start``, the offset of
    its block, for directories only."""

    kind: bytes  # DIRECTORY, FILE, ...
    name: bytes
    size: int | None = None
    mtime: int | None = None
    start: int | None = None


class _Level:
    """A directory being written."""

    __slots__ = ("children", "count", "name", "table")

    def __init__(self, name: bytes) -> None:
        self.name = name  # checked
        self.count = 0
        self.table = bytearray()  # the entries, without the distances of child directories
        self.children: list[tuple[int, int]] = []  # (where the distance belongs in table, start of the child's block)

    def add(self, kind: bytes, name: bytes, rest: bytes = b"") -> None:
        self.table += kind + encode_u64(len(name)) + name + rest
        self.count += 1

    def block(self, start: int) -> bytes:
        """The whole block, given where it will start."""
        parts = [encode_u64(self.count)]
        done = 0
        for at, child in self.children:
            parts += (bytes(self.table[done:at]), encode_u64(start - child))
            done = at
        parts.append(bytes(self.table[done:]))
        table = b"".join(parts)
        return encode_u64(len(table)) + table


class CatalogWriter:
    """Writes a catalog front to back through ``write``.

    Archives and directories nest: each start has its end; entries come in the order of the archive. Memory is the
    tables of the directories that are open. A call out of turn raises ValueError, a name or number that does not fit
    FormatError.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._levels = [_Level(b"")]
        self._position = len(MAGIC)
        write(MAGIC)

    def start_archive(self, name: str) -> None:
        """A directory of the root, with the full file name of its archive (``root.pxar.didx``)."""
        self._expect(len(self._levels) == 1, "start_archive")
        self._start_level(name.encode())

    def end_archive(self) -> None:
        self._expect(len(self._levels) == 2, "end_archive")
        self._end_level()

    def start_directory(self, name: bytes) -> None:
        self._expect(len(self._levels) >= 2, "start_directory")
        self._start_level(name)

    def end_directory(self) -> None:
        self._expect(len(self._levels) > 2, "end_directory")
        self._end_level()

    def add_file(self, name: bytes, size: int, mtime: int) -> None:
        """A regular file: ``size`` in bytes, ``mtime`` in Unix seconds."""
        self._expect(len(self._levels) >= 2, "add_file")
        _check_name(name)
        self._levels[-1].add(FILE, name, encode_u64(size) + encode_i64(mtime))

    def add(self, kind: bytes, name: bytes) -> None:
        """Any other entry; ``kind`` is one of BARE_KINDS."""
        self._expect(len(self._levels) >= 2 and kind in BARE_KINDS, "add")
        _check_name(name)
        self._levels[-1].add(kind, name)

    def finish(self) -> None:
        """Write the root and where it is. The writer is of no use after that."""
        self._expect(len(self._levels) == 1, "finish")
        root = self._write_block(self._levels.pop())
        self._write(U64.pack(root))

    def _start_level(self, name: bytes) -> None:
        _check_name(name)
        self._levels.append(_Level(name))

    def _end_level(self) -> None:
        level = self._levels.pop()
        parent = self._levels[-1]
        parent.add(DIRECTORY, level.name)
        parent.children.append((len(parent.table), self._write_block(level)))

    def _write_block(self, level: _Level) -> int:
        start = self._position
        block = level.block(start)
        self._write(block)
        self._position += len(block)
        return start

    def _expect(self, allowed: bool, call: str) -> None:
        if not allowed:
            raise ValueError(f"catalog writer: {call} out of turn, {len(self._levels)} levels are open")


class CatalogReader:
    """Random access to a catalog of ``size`` bytes; ``read_at(offset, length)`` gives exactly that many bytes.

    Every method raises FormatError on bytes that are no catalog, LimitExceeded beyond MAX_TABLE and MAX_PATH; what
    ``read_at`` raises passes through. Only the blocks on the way are read.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        self._read_at = read_at
        self._end = size - U64.size  # of the root block
        if self._end < len(MAGIC) + 2:
            raise FormatError("catalog length", expected="at least 18 bytes", got=size)
        magic = self._read(0, len(MAGIC))
        if magic != MAGIC:
            raise FormatError("catalog magic", offset=0, expected=MAGIC.hex(), got=magic.hex())
        self.root_start: int = U64.unpack(self._read(self._end, U64.size))[0]
        self._check_start(self.root_start)

    def root(self) -> list[CatalogEntry]:
        """The archives: directories named as their files."""
        return self.read_directory(self.root_start)

    def read_directory(self, start: int) -> list[CatalogEntry]:
        """All entries of the directory whose block is at ``start``, in stored order."""
        return list(self.iter_directory(start))

    def iter_directory(self, start: int) -> Iterator[CatalogEntry]:
        """The same one by one, for directories of any size; an error in the block is raised when it is reached."""
        return _entries(*self._table(start))

    def lookup(self, path: bytes) -> CatalogEntry | None:
        """The entry at ``path`` (``[/]ARCHIVE/dir/name``), the first of equal ones; None when there is none."""
        found = CatalogEntry(DIRECTORY, b"", start=self.root_start)
        path = path.removeprefix(b"/")
        for name in path.split(b"/") if path else ():
            if found.start is None:
                return None
            for entry in self.iter_directory(found.start):
                if entry.name == name:
                    found = entry
                    break
            else:
                return None
        return found

    def walk(self) -> Iterator[tuple[bytes, CatalogEntry]]:
        """(path, entry) of everything, each directory before what it holds; paths are like ``/root.pxar.didx/etc``.

        Blocks that are used twice, which could make a small catalog walk forever, raise FormatError.
        """
        unread = self._end - len(MAGIC)  # every block at most once
        held = 0
        path = bytearray(b"/")
        levels: list[tuple[Iterator[CatalogEntry], int, int]] = []  # entries, bytes held, length of path
        start: int | None = self.root_start
        while True:
            if start is not None:
                table, at, block = self._table(start)
                unread -= at + len(table) - start
                held += len(table)
                if unread < 0:
                    raise FormatError("catalog block is part of two directories", offset=start)
                if held > MAX_TABLE:
                    raise LimitExceeded("catalog: open tables", offset=start, expected=f"at most {MAX_TABLE} bytes")
                levels.append((_entries(table, at, block), len(table), len(path)))
            entries, table_size, path_size = levels[-1]
            del path[path_size:]
            entry = next(entries, None)
            if entry is None:
                levels.pop()
                held -= table_size
                if not levels:
                    return
                start = None
                continue
            yield bytes(path) + entry.name, entry
            start = entry.start
            if start is not None:
                path += entry.name + b"/"
                if len(path) > MAX_PATH:
                    raise LimitExceeded("catalog: path", offset=start, expected=f"at most {MAX_PATH} bytes")

    def _table(self, start: int) -> tuple[bytes, int, int]:
        """(table, its offset, start) of the block at ``start``."""
        self._check_start(start)
        head = self._read(start, min(10, self._end - start))
        try:
            length, used = decode_u64(head)
        except FormatError as error:
            raise _moved(error, start) from error
        at = start + used
        if not 1 <= length <= self._end - at:
            raise FormatError("catalog table length", offset=start, expected=f"1 to {self._end - at}", got=length)
        if length > MAX_TABLE:
            raise LimitExceeded("catalog table length", offset=start, expected=f"at most {MAX_TABLE}", got=length)
        return self._read(at, length), at, start

    def _check_start(self, start: int) -> None:
        if not len(MAGIC) <= start < self._end:
            raise FormatError("catalog block offset", expected=f"{len(MAGIC)} to {self._end - 1}", got=start)

    def _read(self, offset: int, length: int) -> bytes:
        data = self._read_at(offset, length)
        if len(data) != length:
            raise FormatError("catalog ends early", offset=offset, expected=f"{length} bytes", got=len(data))
        return data


def _check_name(name: bytes, offset: int | None = None) -> None:
    if not 1 <= len(name) <= MAX_NAME or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise FormatError("catalog name", offset=offset, expected="one path component", got=repr(name[:80]))


def _moved(error: FormatError, base: int) -> FormatError:
    """The same error with its offset counted from the start of the catalog."""
    return FormatError(error.what, offset=base + (error.offset or 0), expected=error.expected, got=error.got)


def _entries(table: bytes, at: int, start: int) -> Iterator[CatalogEntry]:
    """The entries of a table that lies at offset ``at`` of the catalog, in the block at ``start``."""
    try:
        count, pos = decode_u64(table)
        for _ in range(count):
            entry, pos = _entry(table, pos, start)
            yield entry
    except FormatError as error:
        raise _moved(error, at) from error
    if pos != len(table):
        raise FormatError("catalog table has trailing bytes", offset=at + pos, got=f"{len(table) - pos} bytes")


def _entry(table: bytes, pos: int, start: int) -> tuple[CatalogEntry, int]:
    """(entry, position behind it). Offsets in errors count from the table."""
    kind = table[pos : pos + 1]
    length, name_at = decode_u64(table, pos + 1)
    after = name_at + length
    if not 1 <= length <= MAX_NAME or after > len(table):
        raise FormatError("catalog name length", offset=pos + 1, expected=f"1 to {MAX_NAME}, in the table", got=length)
    name = table[name_at:after]
    _check_name(name, name_at)
    if kind == FILE:
        size, after = decode_u64(table, after)
        mtime, after = decode_i64(table, after)
        return CatalogEntry(kind, name, size, mtime), after
    if kind == DIRECTORY:
        distance, end = decode_u64(table, after)
        if not 1 <= distance <= start - len(MAGIC):
            raise FormatError("catalog distance", offset=after, expected=f"1 to {start - len(MAGIC)}", got=distance)
        return CatalogEntry(kind, name, start=start - distance), end
    if kind not in BARE_KINDS:
        raise FormatError("catalog entry kind", offset=pos, expected="one of dflhbcps", got=repr(kind))
    return CatalogEntry(kind, name), after
