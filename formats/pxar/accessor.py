"""Random access to an archive through its goodbye tables (spec pxar.md 7, 10.2, 10.4).

A directory is opened from its end: the tail record of its goodbye table leads to the table and to the directory's
ENTRY, the records lead to the children. The root ends where the archive ends.

Tables are not believed: a child must lie between its directory's attributes and its directory's table, must have the
name hash of its record, and must end where its record says (a version 2 file with or without its contents). So a
descent always gets into smaller ranges and ends. Going through a whole directory also checks that the children follow
each other without gap or overlap and that no name is there twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Literal

from formats.errors import FormatError, LimitExceeded
from formats.pxar import constants as c
from formats.pxar import goodbye
from formats.pxar.items import (
    AHEAD,
    Entry,
    Window,
    check_payload_header,
    read_child,
    read_preamble,
    read_root,
    usual_child,
)

Node = Entry  # with the ``entry_end`` of the goodbye table

ReadAt = Callable[[int, int], bytes]

_READ = 16 << 10  # at a time, at least
_MAX_TABLE = 128 << 20  # 5.5 million children
_CACHE = 8 << 20  # bytes of tables kept


class _Anywhere(Window):
    """The archive, a piece of it read at a time."""

    __slots__ = ("_read_at", "_size")

    def __init__(self, read_at: ReadAt, size: int) -> None:
        super().__init__()
        self._read_at = read_at
        self._size = size

    def fill(self, position: int, length: int) -> None:
        self.base = position
        length = min(max(length, _READ), self._size - position)
        self.data = self.read(position, length) if length > 0 else b""

    def read(self, position: int, length: int) -> bytes:
        """Exactly ``length`` bytes, which are inside the archive."""
        data = self._read_at(position, length)
        if len(data) != length:
            raise FormatError("archive ends early", offset=position, expected=f"{length} bytes", got=len(data))
        return data


class Accessor:
    """An archive of ``size`` bytes that ``read_at(offset, length)`` reads; version 2 also a payload stream.

    ``read_at`` is only asked for ranges inside the stream and must return all of it. Without a payload stream a version
    2 archive can be listed, not read. Attributes: ``version``, ``prelude``, ``root``. Not for several threads at once.
    Every method raises FormatError where the archive is wrong.
    """

    def __init__(
        self,
        read_at: ReadAt,
        size: int,
        payload_read_at: ReadAt | None = None,
        payload_size: int | None = None,
    ) -> None:
        self._window = _Anywhere(read_at, size)
        self._size = size
        self._payload_read_at = payload_read_at
        self._payload_size = payload_size or 0
        self._tables: OrderedDict[tuple[int, int], bytes] = OrderedDict()  # by start and end of the directory
        self._cached = 0
        self.version, self.prelude, start = read_preamble(self._window)
        self.root: Node = read_root(self._window, start, self.version)._replace(entry_end=size)

    def entries(self, node: Node) -> Iterator[Node]:
        """The children of a directory in the order of the archive."""
        table = self._table(node)
        table_start = node.entry_end - goodbye.table_size(len(table) // goodbye.RECORD_SIZE)
        position, last, ascending = node.content_offset, b"", True
        for start, name_hash, size in goodbye.stream_order(table, table_start):
            if start != position:
                raise FormatError(
                    "goodbye table: position of a child", offset=table_start, expected=position, got=start
                )
            child, position = self._child(node, table_start, start, name_hash, size)
            if ascending and child.name <= last:
                ascending = False
                if goodbye.has_equal_hashes(table):
                    raise FormatError("directory has a name twice", offset=table_start)
            last = child.name
            yield child
        if position != table_start:
            raise FormatError("directory has more entries than its goodbye table", offset=position)

    def children(self, node: Node) -> dict[bytes, Node]:
        """The children of a directory by name, in the order of the archive. Nothing of it is kept for the next call."""
        return {child.name: child for child in self.entries(node)}

    def lookup(self, node: Node, name: bytes) -> Node | None:
        """The child ``name`` of a directory, or None. Reads little more than that child."""
        table = self._table(node)
        table_start = node.entry_end - goodbye.table_size(len(table) // goodbye.RECORD_SIZE)
        wanted = c.U64.pack(goodbye.name_hash(name))
        at = table.find(wanted)
        while at >= 0:
            if at % goodbye.RECORD_SIZE == 0:
                name_hash, distance, size = goodbye.RECORD.unpack_from(table, at)
                child, _ = self._child(node, table_start, table_start - distance, name_hash, size)
                if child.name == name:
                    return child
            at = table.find(wanted, at + 1)
        return None

    def entry_at(self, position: int) -> Node:
        """The entry, no directory, whose FILENAME item is at ``position``; its ``entry_end`` is behind its items."""
        return self._read(position, 1)

    def directory_at(self, end: int) -> Node:
        """The directory below the root that ends at ``end``, its ``entry_end``. Its name is not known."""
        if not self.root.content_offset + goodbye.RECORD_SIZE <= end < self._size:
            raise FormatError("end of a directory outside the archive", offset=end)
        start, directory_start = goodbye.read_tail(
            self._window.read(end - goodbye.RECORD_SIZE, goodbye.RECORD_SIZE), end
        )
        if not self.root.content_offset <= directory_start < start:
            raise FormatError("goodbye table does not fit its directory", offset=start)
        return read_root(self._window, directory_start, self.version)._replace(depth=1, entry_end=end)

    def path_to(self, position: int) -> bytes:
        """The path (``b"a/b"``) of the entry that ``position`` lies in."""
        node, names = self.root, list[bytes]()
        while node.kind == "dir":
            table = self._table(node)
            table_start = node.entry_end - goodbye.table_size(len(table) // goodbye.RECORD_SIZE)
            found = None
            for record in goodbye.stream_order(table, table_start):
                if record[0] > position:
                    break
                found = record
            if found is None:
                break
            node, behind = self._child(node, table_start, *found)
            names.append(node.name)
            if position >= behind:
                break
        return b"/".join(names)

    def open_path(self, path: bytes) -> Node | None:
        """The entry at ``path`` (``b"a/b"`` or ``b"/a/b"``; ``b""`` is the root), or None. Follows no links."""
        node = self.root
        for name in path.split(b"/"):
            if name:
                child = self.lookup(node, name) if node.kind == "dir" else None
                if child is None:
                    return None
                node = child
        return node

    def follow_hardlink(self, node: Node) -> Node:
        """The file that a hard link is another name of. Its ``entry_end`` is behind its items."""
        if node.kind != "hardlink":
            raise ValueError("not a hard link")
        position = node.link_target
        if position < self.root.content_offset:
            raise FormatError("hard link to before the first entry", offset=node.filename_offset, got=position)
        entry = self._read(position, node.target.count(b"/") + 1)
        if entry.kind != "file" or entry.name != node.target.rpartition(b"/")[2] or entry.entry_end > self._size:
            raise FormatError("hard link does not lead to the file it names", offset=node.filename_offset, got=position)
        return entry

    def content(self, node: Node) -> tuple[Literal["archive", "payload"], int, int]:
        """Where the contents of a file are: (stream, offset, size). Reads the header in the payload stream.

        ValueError when ``node`` is no file (follow hard links first) or the payload stream was not given.
        """
        if node.kind != "file":
            raise ValueError("not a regular file")
        if node.payload_offset is None:
            return "archive", node.content_offset, node.size
        if self._payload_read_at is None:
            raise ValueError("the contents are in a payload stream that was not given")
        if node.payload_offset < c.FIRST_PAYLOAD or node.content_offset + node.size > self._payload_size:
            raise FormatError(
                "payload reference",
                offset=node.filename_offset,
                expected=f"inside the stream of {self._payload_size} bytes",
                got=f"{node.size} bytes at {node.payload_offset}",
            )
        header = self._payload_read_at(node.payload_offset, c.HEADER_SIZE)
        check_payload_header(header, c.PAYLOAD, node.size, node.payload_offset)
        return "payload", node.content_offset, node.size

    def _read(self, position: int, depth: int) -> Entry:
        window = self._window
        if position < window.base or position + AHEAD > window.base + len(window.data):
            window.fill(position, AHEAD)
        usual = usual_child(window, position, depth, self.version)
        return usual if usual is not None else read_child(window, position, depth, self.version)

    def _child(self, node: Node, table_start: int, start: int, name_hash: int, size: int) -> tuple[Node, int]:
        """(the child that a record of ``node``'s table describes, position behind its items)."""
        if not node.content_offset <= start < table_start:
            raise FormatError("goodbye table: child outside its directory", offset=table_start, got=start)
        child = self._read(start, node.depth + 1)
        end = start + size
        behind = end if child.kind == "dir" else child.entry_end
        if goodbye.name_hash(child.name) != name_hash:
            raise FormatError("goodbye table: hash of a name", offset=table_start, got=f"{name_hash:#018x}")
        if end != behind and (child.payload_offset is None or end != behind + child.size):
            raise FormatError("goodbye table: size of a child", offset=table_start, expected=behind - start, got=size)
        if not child.entry_end <= behind <= table_start:
            raise FormatError("child does not end inside its directory", offset=start, got=behind)
        return child._replace(entry_end=end), behind

    def _table(self, node: Node) -> bytes:
        """The records of a directory's table, without the tail."""
        if node.kind != "dir":
            raise ValueError("not a directory")
        key = node.entry_start, node.entry_end
        table = self._tables.get(key)
        if table is not None:
            self._tables.move_to_end(key)
            return table
        table = self._read_table(node)
        self._tables[key] = table
        self._cached += len(table)
        while self._cached > _CACHE and len(self._tables) > 1:
            self._cached -= len(self._tables.popitem(last=False)[1])
        return table

    def _read_table(self, node: Node) -> bytes:
        end, room = node.entry_end, node.entry_end - node.content_offset
        if room < goodbye.table_size(0):
            raise FormatError("directory without a goodbye table", offset=node.entry_start)
        data = self._window.read(end - min(room, _READ), min(room, _READ))
        start, directory_start = goodbye.read_tail(data[-goodbye.RECORD_SIZE :], end)
        length = end - start
        if length > room or directory_start != (0 if node.depth == 0 else node.entry_start):
            raise FormatError("goodbye table does not fit its directory", offset=start)
        if length > _MAX_TABLE:
            raise LimitExceeded("size of a goodbye table", offset=start, expected=f"at most {_MAX_TABLE}", got=length)
        item = data[-length:] if length <= len(data) else self._window.read(start, length)
        if c.HEADER.unpack_from(item) != (c.GOODBYE, length):
            raise FormatError("header of a goodbye table", offset=start)
        return item[c.HEADER_SIZE : -goodbye.RECORD_SIZE]
