"""The messages of the FUSE kernel protocol that a read-only file system needs (include/uapi/linux/fuse.h, 7.31 on).

A request is read from /dev/fuse as a whole, a reply is written as a whole; integers as the machine has them.

    request  u32 length, u32 opcode, u64 unique, u64 node, u32 uid, gid, pid, u16 length of extensions, u16 0; body
    reply    u32 length, i32 0 or minus an errno, u64 unique; body

    attributes   u64 inode, size, blocks of 512 bytes; i64 atime, mtime, ctime; u32 their nanoseconds, mode, links,
                 uid, gid, device, block size, 0                                                             88 bytes
    entry        u64 node, generation, seconds that the name and the attributes are valid; u32 nanoseconds of both;
                 attributes                                                                                 128 bytes
    dirent       u64 inode, offset of the next one; u32 length of the name, type; name, padded to 8 bytes

Nothing here is a file operation: ``server.py`` has those.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

ROOT = 1  # node of the root

LOOKUP, FORGET, GETATTR, READLINK = 1, 2, 3, 5
OPEN, READ, STATFS, RELEASE = 14, 15, 17, 18
GETXATTR, LISTXATTR, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 26, 27, 28, 29
IOCTL, BATCH_FORGET, READDIRPLUS, LSEEK = 39, 42, 44, 46

NEWEST_MINOR = 31  # of the protocol as it is spoken here: later ones only add what we do not ask for
OLDEST_MINOR = 23  # Linux 3.15: until then the reply to INIT is shorter

# flags of INIT
ASYNC_READ = 1 << 0
READDIRPLUS_SUPPORT = 1 << 13
PARALLEL_DIRECTORIES = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22

# flags of OPEN and OPENDIR
KEEP_CACHE = 1 << 1
CACHE_DIRECTORY = 1 << 3
NO_FLUSH = 1 << 5

REQUEST = struct.Struct("=IIQQIIIHH")
REPLY = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
ATTRIBUTES = struct.Struct("=QQQqqqIIIIIIIIII")
ENTRY = struct.Struct("=QQQQII")  # without the attributes
ATTR_OUT = struct.Struct("=QII")  # seconds that the attributes are valid, nanoseconds; they follow
OPEN_OUT = struct.Struct("=QII")
READ_IN = struct.Struct("=QQIIQII")
RELEASE_IN = struct.Struct("=QIIQ")
FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
DIRENT = struct.Struct("=QQII")
XATTR_IN = struct.Struct("=II")
XATTR_OUT = struct.Struct("=II")
LSEEK_IN = struct.Struct("=QQII")
LSEEK_OUT = struct.Struct("=Q")
IOCTL_IN = struct.Struct("=QIIQII")
IOCTL_OUT = struct.Struct("=iIII")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")

_FOREVER = 1 << 32  # seconds
_DIRENT_ALIGNMENT = 8


class Request(NamedTuple):
    opcode: int
    unique: int
    node: int
    body: memoryview


class Attributes(NamedTuple):
    """``device``: as in stat; ``mtime_nanos`` counts forward from ``mtime``, which may be negative."""

    mode: int
    size: int = 0
    blocks: int = 0  # of 512 bytes
    mtime: int = 0
    mtime_nanos: int = 0
    links: int = 1
    uid: int = 0
    gid: int = 0
    device: int = 0


class Found(NamedTuple):
    """A name that leads to a node. ``valid``: how many seconds the kernel need not ask again; None: never again."""

    node: int
    attributes: Attributes
    valid: float | None = None


class Listed(NamedTuple):
    """An entry of a directory. ``found`` is None where the kernel is to look the name up when it wants to know more;
    ``mode`` tells the type at least."""

    name: bytes
    inode: int
    mode: int
    found: Found | None = None


def decode_request(data: bytes) -> Request:
    """Of what was read from the device. Raises struct.error, ValueError."""
    length, opcode, unique, node, _, _, _, extensions, _ = REQUEST.unpack_from(data)
    if length != len(data):
        raise ValueError(f"a request of {length} bytes has {len(data)}")
    return Request(opcode, unique, node, memoryview(data)[REQUEST.size : length - 8 * extensions])


def encode_attributes(inode: int, attributes: Attributes) -> bytes:
    mode, size, blocks, mtime, nanos, links, uid, gid, device = attributes
    return ATTRIBUTES.pack(
        inode, size, blocks, mtime, mtime, mtime, nanos, nanos, nanos, mode, links, uid, gid, _device(device), 4096, 0
    )


def _device(device: int) -> int:
    """In the 32 bits that a kernel has for it: 12 of the major number, 20 of the minor one."""
    if not device:
        return 0
    major = (device >> 8 & 0xFFF) | (device >> 32 & ~0xFFF)
    minor = (device & 0xFF) | (device >> 12 & ~0xFF)
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12


def _time(seconds: float | None) -> tuple[int, int]:
    if seconds is None:
        return _FOREVER, 0
    whole = int(seconds)
    return whole, int((seconds - whole) * 1e9)


def encode_entry(found: Found) -> bytes:
    seconds, nanos = _time(found.valid)
    head = ENTRY.pack(found.node, 0, seconds, seconds, nanos, nanos)
    return head + encode_attributes(found.node, found.attributes)


_NO_ENTRY = bytes(ENTRY.size + ATTRIBUTES.size)


def encode_attr_out(found: Found) -> bytes:
    return ATTR_OUT.pack(*_time(found.valid), 0) + encode_attributes(found.node, found.attributes)


def encode_listed(listed: Listed, next_offset: int, *, plus: bool) -> bytes:
    """An entry of a directory, with its attributes (``plus``) where they are given."""
    name = listed.name
    dirent = DIRENT.pack(listed.inode, next_offset, len(name), listed.mode >> 12)
    padding = bytes(-(DIRENT.size + len(name)) % _DIRENT_ALIGNMENT)
    if not plus:
        return dirent + name + padding
    entry = _NO_ENTRY if listed.found is None else encode_entry(listed.found)
    return b"".join((entry, dirent, name, padding))
