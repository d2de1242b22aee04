"""One entry of an archive: what it is, and how its items are read (spec pxar.md 3-6, 10.3, 10.4).

    entry   := [FILENAME] ENTRY attributes body | FILENAME HARDLINK       only the root has no FILENAME
    body    := PAYLOAD (version 1) or PAYLOAD_REF (version 2) of a regular file | SYMLINK | DEVICE |
               nothing for a fifo, socket or directory: they end before a FILENAME or GOODBYE

The sequential decoder and the random accessor share this: both look at the stream through a Window. Nothing is
believed before it is checked: lengths are capped, the type of the mode must agree with the body, names and targets end
with their NUL and have no other.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, NoReturn

from formats.errors import FormatError, LimitExceeded
from formats.pxar import constants as c
from formats.pxar.metadata import NO_ACL, Acl, DefaultAcl, Metadata, Stat

Kind = Literal["dir", "file", "symlink", "hardlink", "fifo", "socket", "char", "block"]

KINDS: dict[int, Kind] = {
    c.FIFO: "fifo",
    c.CHAR: "char",
    c.DIRECTORY: "dir",
    c.BLOCK: "block",
    c.REGULAR: "file",
    c.LINK: "symlink",
    c.SOCKET: "socket",
}

# The longest run of items that ``usual_child`` looks at.
AHEAD = c.HEADER_SIZE + c.MAX_NAME + 1 + c.ENTRY_SIZE + c.REF_SIZE
_ENTRY_AND_NEXT = struct.Struct("<QQQQIIqIIQQQQ")  # ENTRY, header of the next item, two numbers (those of PAYLOAD_REF)
_LARGE = 1 << 62  # sizes and positions beyond are left to the general reader

_NAMED = {
    c.ACL_USER: "users",
    c.ACL_GROUP: "groups",
    c.ACL_DEFAULT_USER: "default_users",
    c.ACL_DEFAULT_GROUP: "default_groups",
}


class Entry(NamedTuple):
    """One entry. All positions count from the start of the archive (mpxar) stream unless said otherwise.

    name             b"" for the root
    depth            0 for the root
    metadata         None for a hard link
    size             bytes of a file's contents
    content_offset   file: where its contents start, in the archive (version 1) or the payload stream (version 2);
                     directory: where its first child (or its goodbye table) starts
    payload_offset   version 2: position of the file's PAYLOAD item in the payload stream, else None
    target           of a symlink; of a hard link: the path of the linked file relative to the root
    link_offset      hard link: distance back from its FILENAME item to that of the linked file
    filename_offset  position of the FILENAME item (0 for the root)
    entry_start      position behind the FILENAME item
    entry_end        position behind the entry's last item, contents included (version 1). From the Decoder, which has
                     not seen the end of a directory yet, the same as ``content_offset`` for a directory. From the
                     Accessor as the goodbye table gives it, which may count the contents in version 2 too.
    """

    kind: Kind
    name: bytes
    depth: int
    metadata: Metadata | None
    size: int
    content_offset: int
    payload_offset: int | None
    target: bytes
    link_offset: int
    major: int
    minor: int
    filename_offset: int
    entry_start: int
    entry_end: int

    @property
    def link_target(self) -> int:
        """Position of the FILENAME item of the file a hard link points to."""
        return self.filename_offset - self.link_offset


class Window(ABC):
    """A piece of an archive stream: ``data`` starts at stream position ``base``. Subclasses move it with ``fill``."""

    __slots__ = ("base", "data")

    def __init__(self) -> None:
        self.base = 0
        self.data = b""

    @abstractmethod
    def fill(self, position: int, length: int) -> None:
        """Make ``data`` cover [position, position + length), or as much of it as the stream has."""

    def take(self, position: int, length: int) -> bytes:
        """Exactly ``length`` bytes; FormatError when the stream ends before. The caller has capped ``length``."""
        start = position - self.base
        if start < 0 or start + length > len(self.data):
            self.fill(position, length)
            start = position - self.base
        piece = self.data[start : start + length]
        if len(piece) != length:
            raise FormatError("archive ends early", offset=position, expected=f"{length} bytes", got=len(piece))
        return piece

    def header(self, position: int) -> tuple[int, int]:
        """(type, content length) of the item at ``position``."""
        kind, size = c.HEADER.unpack(self.take(position, c.HEADER_SIZE))
        if size < c.HEADER_SIZE:
            raise FormatError(f"size of a {c.item_name(kind)} item", offset=position, expected="at least 16", got=size)
        return kind, size - c.HEADER_SIZE

    def fixed(self, position: int, kind: int, length: int, expected: int) -> bytes:
        """Content of an item (header at ``position``) that must be ``expected`` bytes long."""
        if length != expected:
            raise FormatError(f"length of a {c.item_name(kind)} item", offset=position, expected=expected, got=length)
        return self.take(position + c.HEADER_SIZE, expected)

    def capped(self, position: int, kind: int, length: int, limit: int) -> bytes:
        """Content of an item (header at ``position``) that may be at most ``limit`` bytes long."""
        if length > limit:
            raise LimitExceeded(
                f"length of a {c.item_name(kind)} item", offset=position, expected=f"at most {limit}", got=length
            )
        return self.take(position + c.HEADER_SIZE, length)


def read_preamble(window: Window) -> tuple[int, bytes | None, int]:
    """(version, prelude or None, position of the root's ENTRY item)."""
    kind, length = window.header(0)
    if kind != c.FORMAT_VERSION:
        return 1, None, 0
    (version,) = c.U64.unpack(window.fixed(0, kind, length, 8))
    if version not in (1, 2):
        raise FormatError("format version of the archive", offset=16, expected="1 or 2", got=version)
    position = c.VERSION_ITEM.size
    kind, length = window.header(position)
    if kind != c.PRELUDE:
        return version, None, position
    prelude = window.capped(position, kind, length, c.MAX_PRELUDE)
    return version, prelude, position + c.HEADER_SIZE + length


def read_root(window: Window, position: int, version: int) -> Entry:
    """The root, whose ENTRY item is at ``position``; it must be a directory."""
    root = _read_entry(window, position, b"", 0, 0, version)
    if root.kind != "dir":
        raise FormatError("root of the archive", offset=position, expected="a directory", got=root.kind)
    return root


def usual_child(window: Window, position: int, depth: int, version: int) -> Entry | None:
    """The entry at ``position`` if it is a file or directory without other attributes and wholly in the window.

    None for everything else, wrong items included: the general reader says what they are.
    """
    data = window.data
    at = position - window.base
    if at + c.HEADER_SIZE > len(data):
        return None
    kind, size = c.HEADER.unpack_from(data, at)
    start = at + size
    if kind != c.FILENAME or not 17 < size <= 17 + c.MAX_NAME or start + _ENTRY_AND_NEXT.size > len(data):
        return None
    name = data[at + 16 : start - 1]
    unpacked = _ENTRY_AND_NEXT.unpack_from(data, start)
    item, length, mode, flags, uid, gid, seconds, nanos, _, body, body_size, offset, contents = unpacked
    if item != c.ENTRY or length != c.ENTRY_SIZE or nanos >= 10**9 or data[start - 1] or not c.valid_name(name):
        return None
    new = tuple.__new__  # takes half the time of the named tuples' own
    metadata = new(Metadata, (new(Stat, (mode, flags, uid, gid, seconds, nanos)), (), NO_ACL, None, None))
    own = position + size
    end = own + c.ENTRY_SIZE
    if mode >> 12 == c.DIRECTORY and (body == c.FILENAME or body == c.GOODBYE):
        return new(Entry, ("dir", name, depth, metadata, 0, end, None, b"", 0, 0, 0, position, own, end))
    if mode >> 12 != c.REGULAR:
        return None
    if version == 2:
        if body != c.PAYLOAD_REF or body_size != c.REF_SIZE or offset > _LARGE or contents > _LARGE:
            return None
        reference, content_offset, end = offset, offset + c.HEADER_SIZE, end + c.REF_SIZE
    else:
        if body != c.PAYLOAD or not c.HEADER_SIZE <= body_size <= _LARGE:
            return None
        reference, content_offset, contents, end = None, end + c.HEADER_SIZE, body_size - c.HEADER_SIZE, end + body_size
    return new(
        Entry, ("file", name, depth, metadata, contents, content_offset, reference, b"", 0, 0, 0, position, own, end)
    )


def read_child(window: Window, position: int, depth: int, version: int) -> Entry:
    """The entry whose FILENAME item is at ``position``."""
    kind, length = window.header(position)
    if kind != c.FILENAME:
        raise FormatError("start of an entry", offset=position, expected="FILENAME", got=c.item_name(kind))
    name = _terminated(window.capped(position, kind, length, c.MAX_NAME + 1), kind, position)
    if not c.valid_name(name):
        raise FormatError("file name in the archive", offset=position, got=repr(name[:80]))
    start = position + c.HEADER_SIZE + length
    kind, length = window.header(start)
    if kind == c.HARDLINK:
        return _read_hardlink(window, start, length, name, position, depth)
    return _read_entry(window, start, name, position, depth, version)


def _terminated(content: bytes, kind: int, position: int) -> bytes:
    """``content`` without its NUL."""
    if content.partition(b"\0")[1:] != (b"\0", b""):
        raise FormatError(f"{c.item_name(kind)} item does not end with its only NUL", offset=position)
    return content[:-1]


def _read_hardlink(window: Window, start: int, length: int, name: bytes, filename_offset: int, depth: int) -> Entry:
    content = window.capped(start, c.HARDLINK, length, 8 + c.MAX_NAME + 1)
    if length <= 8:
        raise FormatError("length of a HARDLINK item", offset=start, expected="more than 8", got=length)
    (distance,) = c.U64.unpack_from(content)
    if not 0 < distance <= filename_offset:
        raise FormatError("distance of a hard link", offset=start, expected=f"1 to {filename_offset}", got=distance)
    target = _terminated(content[8:], c.HARDLINK, start)
    if not c.valid_link_path(target):
        raise FormatError("target of a hard link", offset=start, got=repr(target[:80]))
    end = start + c.HEADER_SIZE + length
    return Entry("hardlink", name, depth, None, 0, 0, None, target, distance, 0, 0, filename_offset, start, end)


def _read_entry(window: Window, start: int, name: bytes, filename_offset: int, depth: int, version: int) -> Entry:
    """The entry whose ENTRY item is at ``start``."""
    stat, position = _read_stat(window, start)
    metadata, position = _read_attributes(window, stat, position)
    entry_type = stat.mode >> 12
    kind = KINDS[entry_type]
    body, length = window.header(position)
    end = position + c.HEADER_SIZE + length
    size = content_offset = major = minor = 0
    payload_offset = None
    target = b""
    if entry_type == c.REGULAR:
        if body != (c.PAYLOAD if version == 1 else c.PAYLOAD_REF):
            _wrong_body(kind, body, position)
        if version == 1:
            size, content_offset = length, position + c.HEADER_SIZE
        else:
            payload_offset, size = c.PAIR.unpack(window.fixed(position, body, length, 16))
            content_offset = payload_offset + c.HEADER_SIZE
        if size > c.MAX_FILE_SIZE or content_offset > c.MAX_FILE_SIZE:
            raise LimitExceeded("size or position of a file's contents", offset=position, got=size)
    elif entry_type == c.LINK:
        if body != c.SYMLINK:
            _wrong_body(kind, body, position)
        target = _terminated(window.capped(position, body, length, c.MAX_NAME + 1), body, position)
        if not target:
            raise FormatError("empty target of a symlink", offset=position)
    elif entry_type in (c.CHAR, c.BLOCK):
        if body != c.DEVICE:
            _wrong_body(kind, body, position)
        major, minor = c.PAIR.unpack(window.fixed(position, body, length, 16))
    else:
        if body not in (c.FILENAME, c.GOODBYE):
            _wrong_body(kind, body, position)
        end = position
        if entry_type == c.DIRECTORY:
            content_offset = position
    return Entry(
        kind, name, depth, metadata, size, content_offset, payload_offset, target, 0, major, minor,
        filename_offset, start, end,
    )  # fmt: skip


def _wrong_body(kind: Kind, body: int, position: int) -> NoReturn:
    raise FormatError(
        "item does not fit the type of its entry", offset=position, got=f"{c.item_name(body)} in a {kind}"
    )


def _read_stat(window: Window, start: int) -> tuple[Stat, int]:
    """(stat, position behind it) of the ENTRY or ENTRY_V1 item at ``start``."""
    kind, length = window.header(start)
    if kind == c.ENTRY:
        stat = Stat(*c.STAT.unpack(window.fixed(start, kind, length, 40))[:6])
    elif kind == c.ENTRY_V1:
        mode, flags, uid, gid, nanos = c.STAT_V1.unpack(window.fixed(start, kind, length, 32))
        stat = Stat(mode, flags, uid, gid, *divmod(nanos, 10**9))
    else:
        raise FormatError(
            "item behind a FILENAME or at the start", offset=start, expected="ENTRY", got=c.item_name(kind)
        )
    if stat.mode >> 12 not in KINDS:
        raise FormatError("mode of an entry", offset=start, got=oct(stat.mode))
    if stat.mtime_nanos >= 10**9:
        raise FormatError("nanoseconds of an entry", offset=start, expected="below 10^9", got=stat.mtime_nanos)
    return stat, start + c.HEADER_SIZE + length


def _read_attributes(window: Window, stat: Stat, start: int) -> tuple[Metadata, int]:
    """(metadata, position of the item behind the attributes). They may come in any order."""
    position = start
    xattrs: list[tuple[bytes, bytes]] = []
    named: dict[str, list[tuple[int, int]]] = {}
    group_obj = quota = default = fcaps = None
    for count in range(c.MAX_ATTRIBUTES + 1):
        kind, length = window.header(position)
        if kind == c.XATTR:
            name, nul, value = window.capped(position, kind, length, c.MAX_XATTR).partition(b"\0")
            if not name or not nul:
                raise FormatError("extended attribute without a name", offset=position)
            xattrs.append((name, value))
        elif kind in _NAMED:
            pair = c.PAIR.unpack(window.fixed(position, kind, length, 16))
            named.setdefault(_NAMED[kind], []).append(pair)
        elif kind == c.ACL_GROUP_OBJ and group_obj is None:
            (group_obj,) = c.U64.unpack(window.fixed(position, kind, length, 8))
        elif kind == c.ACL_DEFAULT and default is None:
            default = DefaultAcl(*c.FOUR.unpack(window.fixed(position, kind, length, 32)))
        elif kind == c.FCAPS and fcaps is None:
            fcaps = window.capped(position, kind, length, c.MAX_XATTR)
        elif kind == c.QUOTA_PROJID and quota is None:
            (quota,) = c.U64.unpack(window.fixed(position, kind, length, 8))
        else:
            # also for a second one of the four unique attributes: no body item has their types
            break
        position += c.HEADER_SIZE + length
        if count == c.MAX_ATTRIBUTES or position - start > c.MAX_ATTRIBUTE_BYTES:
            raise LimitExceeded("attributes of an entry", offset=start)
    acl = NO_ACL
    if named or group_obj is not None or default is not None:
        lists = {key: tuple(pairs) for key, pairs in named.items()}
        acl = Acl(group_obj=group_obj, default=default, **lists)
    return Metadata(stat, tuple(xattrs), acl, fcaps, quota), position


def check_payload_header(data: bytes, kind: int, size: int, offset: int) -> None:
    """FormatError unless ``data``, from ``offset`` of the payload stream, is the header of a ``kind`` item."""
    if data != c.HEADER.pack(kind, c.HEADER_SIZE + size):
        raise FormatError(f"header in the payload stream: no {c.item_name(kind)} of {size} bytes", offset=offset)
