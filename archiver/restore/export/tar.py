"""Tar files in the PAX format: headers that every tar reads, extended records for what they cannot hold.

    record                   of
    path, linkpath           names that are longer than 100 bytes or no ASCII
    hdrcharset               BINARY for names that are no UTF-8: bsdtar asks for it, GNU tar ignores it and says so
    size, uid, gid, mtime    numbers that do not fit the header; mtime always, for its nanoseconds
    SCHILY.xattr.NAME        extended attributes and file capabilities, as GNU tar and libarchive write them
    SCHILY.acl.access|default   ACLs as text, users and groups by number
    GNU.sparse.*             files with large holes (GNU sparse format 1.0: the map precedes the data)

What no record holds: sockets, chattr flags, project ids.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable
from itertools import chain

from archiver.restore.export.members import KIND_NAMES, Member, NotHeld
from formats.pxar.items import Entry
from formats.pxar.metadata import ACL_UNSET, Acl, Metadata, Stat
from formats.wire import Buffer

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_RECORD = 20 * _BLOCK  # what a tape drive wants to see; tar pads to it
_LARGEST_ID = 8**7 - 1
_LARGEST_DEVICE = 8**7 - 1
_LARGEST_SIZE = 8**11 - 1
_LARGEST_TIME = 8**11 - 1
_LONGEST_NAME = 100
_TYPES = {
    "dir": tarfile.DIRTYPE,
    "file": tarfile.REGTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
}
_Records = dict[bytes, bytes]


class TarWriter:
    """Writes through ``write``. Call ``finish`` at the end."""

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._write = write
        self._length = 0

    def add(self, member: Member, below: bytes) -> list[str]:
        """What of the entry the file does not hold, as short reasons. ``below``: the directory in the file that the
        archive is put in, empty or with a slash at its end. Raises NotHeld."""
        entry = member.entry
        kind = _TYPES.get(entry.kind)
        if kind is None:
            raise NotHeld(f"a {KIND_NAMES[entry.kind]} has no place in a tar file")
        if max(entry.major, entry.minor) > _LARGEST_DEVICE:
            raise NotHeld(f"the device {entry.major}:{entry.minor} has no place in a tar file")
        records: _Records = {}
        contents = member.contents()
        size = entry.size
        name = b"./" + below + member.path + (b"/" if entry.kind == "dir" and member.path else b"")
        if member.holes:
            size, contents = _sparse(member, name, records)
            name = b"GNUSparseFile.0/" + entry.name
        link = b"./" + below + entry.target if entry.kind == "hardlink" else entry.target
        self._put(_header(kind, name, link, size if entry.kind == "file" else 0, entry, records))
        written = 0
        for piece in contents:
            self._put(piece)
            written += len(piece)
        self._put(bytes(-written % _BLOCK))
        return [] if entry.metadata is None else _lost(entry.metadata)

    def leave(self) -> None:
        """Nothing marks the end of a directory."""

    def finish(self) -> None:
        self._put(_END)
        self._put(bytes(-self._length % _RECORD))

    def _put(self, data: Buffer) -> None:
        if len(data):
            self._write(data)
            self._length += len(data)


def _lost(metadata: Metadata) -> list[str]:
    lost = []
    if metadata.stat.flags:
        lost.append("file attributes have no place in a tar file")
    if metadata.quota_project_id:
        lost.append("a project id has no place in a tar file")
    return lost


def _header(kind: bytes, name: bytes, link: bytes, size: int, entry: Entry, records: _Records) -> bytes:
    """All blocks before the contents."""
    info = tarfile.TarInfo()
    info.type = kind
    info.name = _name(b"path", name, records)
    info.size = _number(b"size", size, _LARGEST_SIZE, records)
    info.linkname = _name(b"linkpath", link, records)
    if entry.metadata is not None:
        _describe(info, entry.metadata, records)
    if entry.kind in ("char", "block"):
        info.devmajor, info.devminor = entry.major, entry.minor
    return _extended(records) + info.tobuf(tarfile.USTAR_FORMAT)


def _describe(info: tarfile.TarInfo, metadata: Metadata, records: _Records) -> None:
    stat = metadata.stat
    info.mode = stat.mode & 0o7777
    info.uid = _number(b"uid", stat.uid, _LARGEST_ID, records)
    info.gid = _number(b"gid", stat.gid, _LARGEST_ID, records)
    if stat.mtime_nanos or not 0 <= stat.mtime_secs <= _LARGEST_TIME:
        records[b"mtime"] = _time(stat)
    info.mtime = min(max(stat.mtime_secs, 0), _LARGEST_TIME)
    for attribute, value in metadata.xattrs:
        records[b"SCHILY.xattr." + attribute.replace(b"%", b"%25").replace(b"=", b"%3D")] = value
    if metadata.fcaps is not None:
        records[b"SCHILY.xattr.security.capability"] = metadata.fcaps
    access, default = _access_acl(stat.mode, metadata.acl), _default_acl(metadata.acl)
    if access:
        records[b"SCHILY.acl.access"] = access
    if default:
        records[b"SCHILY.acl.default"] = default


def _time(stat: Stat) -> bytes:
    """Decimal seconds. A time before 1970 counts down from its second: -1.5 s are stored as -2 s and 500 ms."""
    nanos = stat.mtime_secs * 10**9 + stat.mtime_nanos
    seconds, rest = divmod(abs(nanos), 10**9)
    return f"{'-' if nanos < 0 else ''}{seconds}.{rest:09}".encode()


def _name(keyword: bytes, name: bytes, records: _Records) -> str:
    if len(name) > _LONGEST_NAME or not name.isascii():
        records[keyword] = name
    return name[:_LONGEST_NAME].decode("ascii", "replace").replace("\ufffd", "_")


def _number(keyword: bytes, number: int, largest: int, records: _Records) -> int:
    if number <= largest:
        return number
    records[keyword] = str(number).encode()
    return 0


def _extended(records: _Records) -> bytes:
    """The header block and the records that go before an entry."""
    if not records:
        return b""
    data = b"".join(_record(keyword, value) for keyword, value in records.items())
    if not all(_is_text(records.get(keyword, b"")) for keyword in (b"path", b"linkpath", b"GNU.sparse.name")):
        data = _record(b"hdrcharset", b"BINARY") + data
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record(keyword: bytes, value: bytes) -> bytes:
    """``length keyword=value``; the length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def _sparse(member: Member, name: bytes, records: _Records) -> tuple[int, Iterable[Buffer]]:
    """What a file with holes takes in the tar file, and that: the map, and the contents outside of the holes."""
    size = member.entry.size
    data: list[tuple[int, int]] = []
    position = 0
    for start, end in [*map(_blocks_of, member.holes), (size, size)]:
        if position < start:
            data.append((position, start))
        position = max(position, end)
    if not data or data[-1][1] != size:
        data.append((size, size))  # so that the size is known to those who ignore realsize
    numbers = [len(data), *(number for start, end in data for number in (start, end - start))]
    head = b"".join(b"%d\n" % number for number in numbers)
    head += bytes(-len(head) % _BLOCK)
    records |= {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": name,
        b"GNU.sparse.realsize": str(size).encode(),
    }
    pieces = chain([head], *(member.read(start, end) for start, end in data))
    return len(head) + sum(end - start for start, end in data), pieces


def _blocks_of(hole: tuple[int, int]) -> tuple[int, int]:
    """Data between holes fill whole blocks in the file: GNU tar reads it so."""
    start, end = hole
    return start + -start % _BLOCK, end - end % _BLOCK


def _permissions(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for letter, bit in zip("rwx", (4, 2, 1), strict=True))


def _access_acl(mode: int, acl: Acl) -> bytes:
    """Empty when the mode says it all."""
    if not acl.users and not acl.groups and acl.group_obj is None:
        return b""
    mask = mode >> 3 & 7
    group = mask if acl.group_obj is None else acl.group_obj
    return _acl(mode >> 6 & 7, acl.users, group, acl.groups, mask, mode & 7)


def _default_acl(acl: Acl) -> bytes:
    four = acl.default
    if four is None:
        return b""
    return _acl(four.user_obj, acl.default_users, four.group_obj, acl.default_groups, four.mask, four.other)


def _acl(
    user: int,
    users: tuple[tuple[int, int], ...],
    group: int,
    groups: tuple[tuple[int, int], ...],
    mask: int,
    other: int,
) -> bytes:
    entries = [("user:", user), *((f"user:{owner}", bits) for owner, bits in users)]
    entries += [("group:", group), *((f"group:{owner}", bits) for owner, bits in groups)]
    entries += [("mask:", mask), ("other:", other)]
    return ",".join(f"{who}:{_permissions(bits)}" for who, bits in entries if bits != ACL_UNSET).encode()
