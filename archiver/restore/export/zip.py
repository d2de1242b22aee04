"""Zip files: contents, modes, owners and times; symlinks as unzip makes them. A zip has no hard links (their contents
are stored again), devices, attributes or ACLs, and its names are UTF-8: other bytes are written as ``\\xNN``.

    extra field   contents
    0x5455 UT     u8 flags 1, i32 mtime, seconds: exact to the second in any time zone, where the DOS time is not
    0x7875 ux     u8 version 1, u8 4, u32 uid, u8 4, u32 gid
"""

from __future__ import annotations

import stat as st
import struct
import time
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from archiver.core.spill import SpillTable
from archiver.restore.export.members import KIND_NAMES, Member, NotHeld
from formats.pxar.metadata import NO_ACL, Metadata
from formats.wire import Buffer

_UT = struct.Struct("<HHBi")
_UX = struct.Struct("<HHBBIBI")
_FIRST = (1980, 1, 1, 0, 0, 0)
_LAST = (2107, 12, 31, 23, 59, 58)
_DIRECTORY = 0x10  # the DOS attribute
_UNIX = 3
_LONGEST_NAME = 0xFFFF  # bytes, with the slash of a directory
_LEVEL = 6
_NUMBER = struct.Struct("<Q")
# time, four small numbers, attributes, CRC, sizes, offset, length of the name, which follows, before extra fields
_ENTRY = struct.Struct("<6H4HIIQQQH")


class ZipWriter:
    """Writes to ``file``, which need not be seekable. Call ``finish`` at the end, and ``close``."""

    def __init__(self, file: IO[bytes], spill_directory: str) -> None:
        """The list of what was written grows with the tree: it is kept in ``spill_directory``, sealed."""
        self._entries = _Entries(spill_directory)
        self._zip = _ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL)
        parts: Any = self._zip
        parts.filelist, parts.NameToInfo = self._entries, _NoNames()

    def add(self, member: Member, below: bytes) -> list[str]:
        """What of the entry the file does not hold, as short reasons. ``below``: the directory in the file that the
        archive is put in, empty or with a slash at its end. Raises NotHeld."""
        entry = member.entry
        path = below + member.path
        if not path:
            return []  # a zip has no entry for the directory that it is unpacked in
        if entry.kind not in ("file", "dir", "symlink"):
            raise NotHeld(f"a {KIND_NAMES[entry.kind]} has no place in a zip file")
        assert entry.metadata is not None
        name, is_exact = _name(path.rstrip(b"/"))
        if len(name.encode()) >= _LONGEST_NAME:
            raise NotHeld("its path is too long for a zip file")
        info = _info(name + ("/" if entry.kind == "dir" else ""), entry.metadata)
        contents: Iterable[Buffer] = [entry.target] if entry.kind == "symlink" else member.contents()
        if entry.kind != "file":
            info.compress_type = zipfile.ZIP_STORED
        info.file_size = entry.size
        with self._zip.open(info, "w", force_zip64=entry.size > zipfile.ZIP64_LIMIT // 2) as out:
            for piece in contents:
                out.write(piece)
        lost = [] if is_exact else [f"its name is {name} in the zip file: names there are UTF-8"]
        return lost + _lost(entry.metadata)

    def leave(self) -> None:
        """Nothing marks the end of a directory."""

    def finish(self) -> None:
        self._zip.close()

    def close(self) -> None:
        """Nothing more is written."""
        self._entries.close()


class _ZipFile(zipfile.ZipFile):
    def __del__(self) -> None:
        """One that was not finished is not finished now: its descriptor may be another file's by then."""


class _NoNames(dict[str, zipfile.ZipInfo]):
    """What ``ZipFile`` asks for a warning about names that come twice, and fills."""

    def __setitem__(self, name: str, info: zipfile.ZipInfo) -> None:
        """Not kept."""


class _Entries:
    """What ``ZipFile`` has of each entry until it writes its list at the end."""

    def __init__(self, directory: str) -> None:
        self._table = SpillTable(directory)
        self._count = 0

    def append(self, info: zipfile.ZipInfo) -> None:
        name = info.filename.encode()
        small = info.compress_type, info.create_version, info.extract_version, info.flag_bits
        sizes = info.compress_size, info.file_size, info.header_offset, len(name)
        numbers = _ENTRY.pack(*info.date_time, *small, info.external_attr, info.CRC, *sizes)
        self._table.put(_NUMBER.pack(self._count), numbers + name + info.extra)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        for number in range(self._count):
            data = self._table.get(_NUMBER.pack(number))
            assert data is not None
            info = zipfile.ZipInfo()
            year, month, day, hour, minute, second, *numbers = _ENTRY.unpack_from(data)
            info.date_time = year, month, day, hour, minute, second
            info.compress_type, info.create_version, info.extract_version, info.flag_bits = numbers[:4]
            info.external_attr, info.CRC, info.compress_size, info.file_size, info.header_offset = numbers[4:9]
            length = numbers[9]
            info.create_system = _UNIX
            info.filename = data[_ENTRY.size : _ENTRY.size + length].decode()
            info.extra = data[_ENTRY.size + length :]
            yield info

    def close(self) -> None:
        self._table.close()


def _name(path: bytes) -> tuple[str, bool]:
    try:
        return path.decode(), True
    except UnicodeDecodeError:
        return path.decode("utf-8", "backslashreplace"), False


def _info(name: str, metadata: Metadata) -> zipfile.ZipInfo:
    stat = metadata.stat
    info = zipfile.ZipInfo()
    info.filename = name  # the constructor ends it at a NUL and turns backslashes on some systems
    info.date_time = _dos_time(stat.mtime_secs)
    info.create_system = _UNIX  # the mode is in the upper half of the attributes
    info.external_attr = (stat.mode & 0xFFFF) << 16 | (_DIRECTORY if st.S_ISDIR(stat.mode) else 0)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.extra = _UX.pack(0x7875, _UX.size - 4, 1, 4, stat.uid, 4, stat.gid)
    if -(2**31) <= stat.mtime_secs < 2**31:
        info.extra = _UT.pack(0x5455, _UT.size - 4, 1, stat.mtime_secs) + info.extra
    return info


def _dos_time(seconds: int) -> tuple[int, int, int, int, int, int]:
    """Local time, as everybody writes it."""
    try:
        local = time.localtime(seconds)[:6]
    except (OverflowError, ValueError, OSError):
        return _FIRST if seconds < 0 else _LAST
    return min(max(local, _FIRST), _LAST)


def _lost(metadata: Metadata) -> list[str]:
    lost = []
    if metadata.xattrs or metadata.fcaps is not None:
        lost.append("extended attributes have no place in a zip file")
    if metadata.acl is not NO_ACL:
        lost.append("an access control list has no place in a zip file")
    if metadata.stat.flags:
        lost.append("file attributes have no place in a zip file")
    if metadata.quota_project_id:
        lost.append("a project id has no place in a zip file")
    return lost
