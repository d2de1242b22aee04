"""Writes pxar archives item by item, with nothing but struct, so that every rule can be broken on purpose.

Left alone it writes valid archives (tests/hostile/test_build.py compares them with golden ones); each hostile archive
breaks exactly one thing. Nothing of ``formats`` is used: a mistake there must not repeat itself here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from siphashc import siphash

FORMAT_VERSION = 0x730F6C75DF16A40D
PRELUDE = 0xE309D79D9F7B771B
ENTRY = 0xD5956474E588ACEF
ENTRY_V1 = 0x11DA850A1C1CCEFF
FILENAME = 0x16701121063917B3
SYMLINK = 0x27F971E7DBF5DC5F
HARDLINK = 0x51269C8422BD7275
DEVICE = 0x9FC9E906586D5CE9
XATTR = 0x0DAB0229B57DCD03
ACL_USER = 0x2CE8540A457D55B8
ACL_GROUP = 0x136E3ECEB04C03AB
ACL_GROUP_OBJ = 0x10868031E9582876
ACL_DEFAULT = 0xBBBB13415A6896F5
ACL_DEFAULT_USER = 0xC89357B40532CD1F
ACL_DEFAULT_GROUP = 0xF90A8A5816038FFE
FCAPS = 0x2DA9DD9DB5F7FB67
QUOTA_PROJID = 0xE07540E82F7D1CBB
PAYLOAD = 0x28147A1B0B7C1A25
PAYLOAD_REF = 0x419D3D6BC4BA977E
GOODBYE = 0x2FEC4FA642D5731D
PAYLOAD_START = 0x834C68C2194A4ED2
PAYLOAD_TAIL = 0x6C72B78B984C81B5
TAIL_MARKER = 0xEF5EED5B753E1555

MAX = 2**64 - 1
DIR, REG, LNK, CHR, FIFO, SOCK = 0o040755, 0o100644, 0o120777, 0o020600, 0o010644, 0o140755

_HASH_KEY = struct.pack("<QQ", 0x83AC3F1CFBB450DB, 0xAA4F1B6879369FBD)

Record = list[int]  # hash, distance back from the goodbye item, size
Edit = Callable[[list[Record]], list[Record]]


def name_hash(name: bytes) -> int:
    return int(siphash(_HASH_KEY, name))


def item_bytes(kind: int, content: bytes = b"", size: int | None = None) -> bytes:
    """One item; ``size`` overrides the true one (16 + content)."""
    return struct.pack("<QQ", kind, 16 + len(content) if size is None else size) + content


def words(*values: int) -> bytes:
    """Unsigned 64-bit integers, little-endian, wrapped at 2^64."""
    return struct.pack(f"<{len(values)}Q", *(value & MAX for value in values))


def stat_bytes(
    mode: int, *, flags: int = 0, uid: int = 0, gid: int = 0, secs: int = 0, nanos: int = 0, reserved: int = 0
) -> bytes:
    """The content of an ENTRY."""
    return struct.pack("<QQIIqII", mode, flags, uid, gid, secs, nanos, reserved)


def search_tree(records: list[Record]) -> list[Record]:
    """Sorted records in the order of a complete binary search tree stored level by level."""
    tree: list[Record] = [[]] * len(records)
    following = iter(sorted(records))

    def fill(index: int) -> None:  # in order; as deep as the logarithm of the count
        if index < len(tree):
            fill(2 * index + 1)
            tree[index] = next(following)
            fill(2 * index + 2)

    fill(0)
    return tree


@dataclass
class _Open:
    """A directory being written: where its ENTRY is, its finished children, the one being written."""

    start: int
    children: list[Record] = field(default_factory=list)  # hash, FILENAME position, size
    child: Record | None = None


class Writer:
    """``archive`` and ``payload`` (version 2) grow as items are written. ``items`` lists (stream, position, kind)."""

    def __init__(self, version: int, head: bytes | None = None) -> None:
        self.version = version
        self.archive = bytearray()
        self.payload = bytearray()
        self.items: list[tuple[str, int, int]] = []
        self._open: list[_Open] = []
        if head is not None:
            self.archive += head
        elif version == 2:
            self.item(FORMAT_VERSION, words(2))
        if version == 2:
            self.payload_item(PAYLOAD_START)

    @property
    def position(self) -> int:
        return len(self.archive)

    def item(self, kind: int, content: bytes = b"", size: int | None = None) -> int:
        """Write one item to the archive and return its position."""
        start = len(self.archive)
        self.items.append(("archive", start, kind))
        self.archive += item_bytes(kind, content, size)
        return start

    def payload_item(self, kind: int, content: bytes = b"", size: int | None = None) -> int:
        """The same for the payload stream."""
        start = len(self.payload)
        self.items.append(("payload", start, kind))
        self.payload += item_bytes(kind, content, size)
        return start

    def entry(self, mode: int, **stat: int) -> int:
        return self.item(ENTRY, stat_bytes(mode, **stat))

    def name(self, name: bytes, end: bytes = b"\0") -> int:
        """The FILENAME that starts a child; its record is made when the next one starts or the directory ends."""
        self._finish_child()
        start = self.item(FILENAME, name + end)
        self._open[-1].child = [name_hash(name), start, 0]
        return start

    def _finish_child(self) -> None:
        directory = self._open[-1]
        if directory.child is not None:
            directory.child[2] += len(self.archive) - directory.child[1]
            directory.children.append(directory.child)
            directory.child = None

    def root(self, mode: int = DIR, **stat: int) -> None:
        self.entry(mode, **stat)
        self._open.append(_Open(0))

    def directory(self, name: bytes, mode: int = DIR, **stat: int) -> int:
        """Open a directory; returns the position of its FILENAME."""
        start = self.name(name)
        self._open.append(_Open(self.entry(mode, **stat)))
        return start

    def close(self, edit: Edit = lambda records: records) -> int:
        """Write the goodbye table (``edit`` gets the records, tail last) and leave; returns its position."""
        self._finish_child()
        directory = self._open.pop()
        here = len(self.archive)
        records = search_tree([[hashed, here - start, size] for hashed, start, size in directory.children])
        records.append([TAIL_MARKER, here - directory.start, 16 + 24 * (len(records) + 1)])
        return self.item(GOODBYE, b"".join(words(*record) for record in edit(records)))

    def abandon(self) -> None:
        """Leave the directory without a table."""
        self._finish_child()
        self._open.pop()

    def finish(self) -> None:
        """Close whatever is open; end the payload stream."""
        while self._open:
            self.close()
        if self.version == 2:
            self.payload_item(PAYLOAD_TAIL)

    def file(self, name: bytes, data: bytes = b"data", *, mode: int = REG, attributes: bytes = b"", **stat: int) -> int:
        """A whole regular file; ``attributes`` are raw items behind the ENTRY. Returns the FILENAME position."""
        start = self.name(name)
        self.entry(mode, **stat)
        self.raw(attributes)
        self.contents(data)
        return start

    def raw(self, data: bytes) -> None:
        """Raw items (well formed ones are entered in ``items``)."""
        at = 0
        while at < len(data):
            kind, size = struct.unpack_from("<QQ", data, at)
            self.items.append(("archive", len(self.archive) + at, kind))
            at += size
        self.archive += data

    def contents(self, data: bytes) -> None:
        """The body of a regular file, the version's way."""
        if self.version == 1:
            self.item(PAYLOAD, data)
        else:
            self.reference(self.payload_item(PAYLOAD, data), len(data))

    def reference(self, offset: int, size: int) -> None:
        """A PAYLOAD_REF; the goodbye record counts the contents, as for files written anew."""
        self.item(PAYLOAD_REF, words(offset, size))
        child = self._open[-1].child
        if child is not None:
            child[2] += size

    def symlink(self, name: bytes, target: bytes, *, mode: int = LNK, **stat: int) -> int:
        start = self.name(name)
        self.entry(mode, **stat)
        self.item(SYMLINK, target + b"\0")
        return start

    def hardlink(self, name: bytes, path: bytes, target: int) -> int:
        """``target`` is the FILENAME position the link claims to point at."""
        start = self.name(name)
        self.item(HARDLINK, words(start - target) + path + b"\0")
        return start

    def special(self, name: bytes, mode: int, device: tuple[int, int] | None = None, **stat: int) -> int:
        start = self.name(name)
        self.entry(mode, **stat)
        if device is not None:
            self.item(DEVICE, words(*device))
        return start
